# SPDX-License-Identifier: Apache-2.0
"""Triton in the table of backends: who is chosen, what is refused and how, and torch's view of the ops."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench.__main__ import main as bench
from pagedserve import ops
from pagedserve.errors import BackendUnavailable
from pagedserve.ops import registry
from pagedserve.ops.cases import make_inputs
from pagedserve.ops.registry import TRITON_OPS, Call
from pagedserve.specs import SPECS, TensorSpec
from tests.ops.agreement import copied

pytest.importorskip("triton", reason="Triton is not installed")

from pagedserve.backends.triton import catalogue, trials, version
from pagedserve.backends.triton.__main__ import main
from pagedserve.backends.triton.catalogue import ModelShape
from pagedserve.backends.triton.target import Target, read_table
from pagedserve.backends.triton.tune import Trial, candidates, tune, write_table

pytestmark = pytest.mark.triton


def small_call(op):
    case = max(SPECS[op].cases(), key=lambda case: len(make_inputs(op, case)))
    return make_inputs(op, replace(case, lens=case.lens[:3], q_lens=case.q_lens[:3]) if case.lens else case)


@pytest.mark.parametrize("op", TRITON_OPS)
def test_a_function_compiles_as_one_graph(op):
    torch.compiler.reset()
    call = small_call(op)

    def plain(arguments):
        return getattr(ops, op)(**arguments, backend="triton-interpreted")

    eager, compiled = copied(call), copied(call)
    want = plain(eager)
    got = torch.compile(plain, fullgraph=True, backend="aot_eager")(compiled)
    torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)
    for entry in SPECS[op].tensors:
        if isinstance(entry, TensorSpec) and entry.mutated and entry.name in eager:
            written, other = (calls[entry.name].contiguous().view(torch.uint8) for calls in (compiled, eager))
            assert torch.equal(written, other)


@pytest.mark.parametrize("op", TRITON_OPS)
def test_schema_and_mutation_hold_for_what_triton_does(op, monkeypatch):
    seen = []
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    monkeypatch.setattr(torch.ops.pagedserve, op, lambda *arguments: seen.extend(arguments), raising=False)
    call = small_call(op)
    getattr(ops, op)(**call, backend="triton-interpreted")
    monkeypatch.undo()
    made = {entry.name for entry in SPECS[op].tensors if isinstance(entry, TensorSpec) and entry.made} - call.keys()
    names = [argument.name for argument in getattr(torch.ops.pagedserve, op).default._schema.arguments]
    arguments = [
        value.zero_() if name in made and value is not None else value for name, value in zip(names, seen, strict=True)
    ]
    torch.library.opcheck(getattr(torch.ops.pagedserve, op).default, tuple(arguments))


@pytest.mark.parametrize("op", TRITON_OPS)
def test_the_interpreter_is_never_chosen_by_itself(op):
    rows = {row.backend: row for row in registry.rows_of(op)}
    assert not rows["triton-interpreted"].automatic
    assert rows["triton"].requirement.devices == ("cuda",)
    dtypes = ("float32",) * len(SPECS[op].dispatch)
    function = registry.choose(Call(op, "cpu", dtypes), "auto")
    assert "triton" not in function.__module__


def test_cpu_tensors_are_refused_by_triton_by_name():
    with pytest.raises(BackendUnavailable, match="its tensors are on cpu, it runs on cuda"):
        ops.silu_mul(torch.zeros(2, 8), backend="triton")


def test_float64_is_refused():
    with pytest.raises(BackendUnavailable, match="float64"):
        ops.silu_mul(torch.zeros(2, 8, dtype=torch.float64), backend="triton-interpreted")


@pytest.mark.parametrize("found", ["3.6.0", "3.7.1", "3.9.0"])
def test_versions_that_can_are_taken(found):
    assert version.refusal(found) is None


@pytest.mark.parametrize("found, words", [(None, "not installed"), ("3.5.1", "3.5.1"), ("4.0.0", "4.0.0"), ("x", "x")])
def test_versions_that_cannot_are_refused_with_a_sentence(found, words, monkeypatch):
    reason = version.refusal(found)
    assert words in reason
    assert "pip install" in reason
    monkeypatch.setattr(version, "installed", lambda: found)
    with pytest.raises(BackendUnavailable, match="pip install"):
        version.require()


def test_an_unsuitable_triton_is_the_reason_that_a_call_is_refused(monkeypatch):
    def load(module, op):
        raise BackendUnavailable(version.refusal("3.1.0"))

    monkeypatch.setattr(registry, "_load", load)
    row = next(row for row in registry.TABLE if row.backend == "triton")
    assert registry.refusals(row, Call("paged_decode", "cuda", ("bfloat16", "bfloat16"))) == [version.refusal("3.1.0")]


def test_explain_tells_the_launches():
    told = ops.explain("paged_decode", small_call("paged_decode"))
    (line,) = told.launches["triton-interpreted"]
    assert line.startswith("paged_decode_kernel: ")
    assert "not yet measured" in line
    assert line in str(told)


@pytest.mark.parametrize("op", ["append_kv", "rope_append_kv", "rms_norm", "rope", "silu_mul", "merge_states"])
def test_a_prompt_of_more_tokens_than_a_grid_has_rows_fits(op, monkeypatch):
    monkeypatch.setattr(catalogue, "NUM_TOKENS", 70_000)
    for launch in catalogue.OPS[op](Target(90), ModelShape(hidden=64, intermediate=64, num_q_heads=2, num_kv_heads=1)):
        assert launch.grid[0] >= 70_000
        assert all(size <= 65_535 for size in launch.grid[1:])


def test_a_device_uses_the_newest_table_that_is_not_newer():
    assert [Target(capability).table for capability in (80, 86, 89, 90, 100, 120)] == [80, 80, 80, 90, 90, 90]
    assert [Target(capability).converts_fp8 for capability in (80, 86, 89, 90)] == [False, False, True, True]


def test_tuning_takes_the_fastest_and_signs_it(tmp_path):
    wanted = list(candidates("merge_states"))[1]

    def build(target):
        return [target.config("merge_states", head_dim=64)]

    trial = Trial("merge_states", "one", {}, lambda: build)
    table = tune([trial], Target(90), {"gpu": "none"}, lambda made: 1.0 if made[0].use == wanted else 2.0)
    assert table["merge_states"][-1]["use"] == wanted
    assert table["merge_states"][-1]["measured"] == {"case": "one", "us": 1.0, "gpu": "none"}
    assert read_table(90)["merge_states"][-1]["measured"] is None
    write_table(read_table(90), tmp_path / "table.json")
    shipped = Path(trials.__file__).parent / "configs" / "sm_90.json"
    assert (tmp_path / "table.json").read_text() == shipped.read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to tune on")
def test_tuning_without_a_gpu_says_so(capsys):
    assert main(["tune"]) == 2
    assert "--list" in capsys.readouterr().err
    assert main(["tune", "--list"]) == 0
    assert "paged_prefill" in capsys.readouterr().out


def test_every_trial_stands_for_a_row():
    for trial in trials.TRIALS:
        assert trial.op in read_table(80)
    assert {trial.op for trial in trials.TRIALS} == set(TRITON_OPS)


@pytest.mark.parametrize(
    "flag, words", [("--dry-run", "paged_prefill_kernel: "), ("--explain", "its tensors are on cpu")]
)
def test_bench_tells_what_would_run(flag, words, capsys):
    assert bench(["ops", "paged_prefill", "--backend", "triton", "--grid", "quick", flag]) == 0
    told = capsys.readouterr().out
    assert words in told
    assert "not yet measured" in told
