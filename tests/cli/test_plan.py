# SPDX-License-Identifier: Apache-2.0
"""The plan command: promises as written, tables, JSON, plot, refusals."""

from __future__ import annotations

import json
import math

import pytest
from cli_fakes import saved_by

from pagedserve.cli import main
from pagedserve.cli.plan import _row, shape_of
from pagedserve.cli.plan_plot import save_plot
from pagedserve.cli.slo import describe, parse_slo, seconds
from pagedserve.errors import InvalidInput
from pagedserve.simulate.capacity import ON_TIME, Planner, Traffic
from pagedserve.simulate.hardware import find_gpu, find_model, roofline
from pagedserve.simulate.workload import Slo

SMALL = [
    *("plan", "--users", "40", "--every", "10s", "--model", "llama-3-8b", "--weights", "fp8", "--gpu", "l40s"),
    *("--prompt-tokens", "3000", "--output-tokens", "200", "--slo", "ttft=3s,tpot=100ms", "--start", "10s"),
    *("--processes", "1"),
]


def test_durations_and_promises():
    given = [seconds(text) for text in ("1s", "50ms", "2 min", ".5s", "20us", "1h")]
    assert given == pytest.approx([1, 0.05, 120, 0.5, 2e-5, 3600])
    assert parse_slo("ttft=1s, tpot=50ms") == Slo(1.0, 0.05)
    assert parse_slo("total=30s") == Slo(total_s=30.0)
    assert describe(Slo(1.0, 0.05)) == "first token within 1 s, tokens apart at most 50 ms"


@pytest.mark.parametrize(
    "text", ["", "ttft", "ttft=1", "ttft=0s", "ttft=-1s", "speed=1s", "ttft=1s,ttft=2s", "tpot=1 week"]
)
def test_promises_that_cannot_be_read(text):
    with pytest.raises(InvalidInput):
        parse_slo(text)


def test_plan_end_to_end(tmp_path, capsys):
    out = tmp_path / "new" / "plan.png"
    assert main([*SMALL, "--out", str(out)]) == 0
    words = ["need", "datasheet", "assumed", "10x for 20 s, promises on", "When to add", "Cost of a million tokens"]
    numbers = saved_by(out, capsys.readouterr().out, words)
    rate, needed = numbers["replica_requests_per_s"], numbers["replicas"]
    assert needed == math.ceil(4.0 / rate)
    assert numbers["steady"]["in_time_share"] >= ON_TIME
    assert numbers["spike_promises"]["in_time_share"] > numbers["spike_unbounded"]["in_time_share"]
    assert numbers["at_once_one_replica"]["arrivals"] == pytest.approx(40, abs=25)
    assert numbers["cost_per_million_tokens"]["full"] == pytest.approx(4.0 / 3600 / (rate * 3200) * 1e6)
    assert 0 < numbers["add_replica"][0]["utilisation"] < 1
    assert numbers["constants"][0]["kind"] == "datasheet"
    # On more processes the answers are the same.
    assert main([*SMALL, "--processes", "2", "--json", "--out", str(out)]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again == {key: value for key, value in numbers.items() if key not in ("date", "machine")}


@pytest.mark.parametrize(
    "words, says",
    [
        (["--gpu", "abacus"], "supported: b200"),
        (["--model", "none-7b"], "supported: llama-3-8b"),
        (["--slo", "ttft=soon"], "no duration"),
        (["--slo", "ttft=1us"], "even for one user at a time"),
        (["--model", "llama-3-70b", "--weights", "bf16"], "take fp8 weights or a larger GPU"),
        (["--out", "plan.jpg"], "ends in .png"),
        (["--out", "file/plan.png"], "give another path"),
        (["--price", "0"], "above 0"),
        (["--spike", "inf"], "finite number"),
        (["--spike", "1e9"], "a factor up to 1,000"),
        (["--prompt-tokens", "1e9"], "the mean prompt is 1,000,000,000 tokens"),
        (["--steps", "none.log"], "cannot be read"),
    ],
)
def test_plan_refuses_with_words(words, says, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    assert main([*SMALL, "--out", str(tmp_path / "plan.png"), *words]) == 2
    assert says in capsys.readouterr().err


def test_as_many_replicas_are_needed_as_keep_the_promise():
    machine = roofline(find_model("llama-3-8b", "fp8"), find_gpu("l40s"))
    planner = Planner(machine, Traffic(10_000, 60.0, Slo(2.0, 0.1), prompt_mean=400.0, output_mean=60.0))
    rate = planner.replica_rate()
    needed, shown = planner.replicas_for_all(2.5 * rate)  # as if one served more than it does
    assert needed > math.ceil(planner.traffic.rate / (2.5 * rate))
    assert shown.results.summary().kept_share >= ON_TIME
    assert shown.results.summary().arrivals > 900


def test_a_time_in_which_nobody_comes_has_a_row_and_a_plot(tmp_path):
    machine = roofline(find_model("llama-3-8b", "fp8"), find_gpu("l40s"))
    nobody = Planner(machine, Traffic(1, 1e6, Slo(3.0))).spiked(1, 2.0, promises=True)
    assert nobody.results.summary().arrivals == 0
    assert _row("steady", nobody)[1:6] == ["nobody came", "-", "- / -", "-", "-"]
    save_plot(tmp_path / "plan.png", nobody, nobody, (nobody,), "nobody")
    assert (tmp_path / "plan.png").exists()


def test_a_folder_gives_its_shape(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(
        json.dumps(
            {
                "architectures": ["LlamaForCausalLM"],
                "model_type": "llama",
                "hidden_size": 4096,
                "intermediate_size": 14336,
                "num_attention_heads": 32,
                "num_hidden_layers": 32,
                "num_key_value_heads": 8,
                "vocab_size": 128256,
                "max_position_embeddings": 8192,
                "rms_norm_eps": 1e-5,
                "hidden_act": "silu",
                "rope_theta": 500000.0,
            }
        )
    )
    shape = shape_of(folder)
    assert (shape.matrix_weights, shape.name) == (find_model("llama-3-8b").matrix_weights, "model")
    assert shape.weight_bytes == find_model("llama-3-8b").weight_bytes
