# SPDX-License-Identifier: Apache-2.0
"""The demo's measurements, table, JSON and plot, on a fake engine."""

from __future__ import annotations

import asyncio
import itertools
import json
import math

import pytest
from cli_fakes import FakeAsyncEngine

from pagedserve.cli import main, report
from pagedserve.cli.console import duration, plain_table, size
from pagedserve.cli.live import CrowdView, QueueView
from pagedserve.cli.measure import Answer, Phase, Sample, run_phase
from pagedserve.cli.plot import rates_over, save_plot
from pagedserve.cli.prompts import FIRST_PROMPT, PROMPTS
from pagedserve.engine.sampling import SamplingParams
from pagedserve.simulate.results import percentile

PNG_HEAD = b"\x89PNG\r\n"


def test_there_are_64_prompts_and_no_two_alike():
    assert len(PROMPTS) == 64
    assert len({*PROMPTS, FIRST_PROMPT}) == 65


@pytest.mark.parametrize("end", [0.1, 0.25, 0.26, 0.3, 0.4, 1.0, 1.01])
def test_rates_lose_no_token(end):
    answer = Answer(0, "prompt", 1, arrivals=[(0.0, 1), (0.09, 2), (end, 4)])
    edges, rates = rates_over([answer], 0.25, end)
    assert (edges[0], edges[-1], len(edges)) == (0.0, end, len(rates) + 1)
    widths = [b - a for a, b in itertools.pairwise(edges)]
    assert sum(rate * width for rate, width in zip(rates, widths, strict=True)) == pytest.approx(7)
    assert len(widths) == 1 or min(widths) >= 0.125


def test_demo_end_to_end(made, tmp_path, capsys):
    out = tmp_path / "new" / "demo.png"
    assert main(["demo", "--users", "5", "--max-tokens", "8", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "Answers identical, token by token, in both modes: 5 of 5" in said
    for row in (
        "tokens/s",
        "first token (TTFT) p50 / p99",
        "between tokens (TPOT) p50 / p99",
        "pages in use, mean / peak",
    ):
        assert row in said
    assert out.read_bytes().startswith(PNG_HEAD)
    numbers = json.loads(out.with_suffix(".json").read_text())
    assert [phase["name"] for phase in numbers["phases"]] == ["one user", "5 at once", "one at a time"]
    assert [len(phase["answers"]) for phase in numbers["phases"]] == [1, 5, 5]
    assert numbers["identical_answers"] == 5
    assert numbers["options"]["users"] == 5
    assert numbers["machine"]["threads"] >= 1
    (engine,) = made
    assert engine.most_running == 5
    assert engine.closed
    # A phase finds nothing of another's in the prefix cache.
    assert sorted(set(engine.salts)) == ["at once", "first", "one at a time"]


def test_more_users_than_prompts(made, tmp_path, capsys):
    assert main(["demo", "--users", "66", "--max-tokens", "1", "--out", str(tmp_path / "demo.png")]) == 0
    assert "66 of 66" in capsys.readouterr().out


def test_no_matplotlib_is_said_and_the_numbers_stay(made, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    out = tmp_path / "demo.png"
    assert main(["demo", "--users", "2", "--max-tokens", "2", "--out", str(out)]) == 0
    assert "pip install 'pagedserve[plot]'" in capsys.readouterr().out
    assert out.with_suffix(".json").exists()
    assert not out.exists()


def test_a_place_that_cannot_be_written(made, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["demo", "--out", str(tmp_path / "file" / "demo.png")]) == 2
    assert "give another path" in capsys.readouterr().err
    assert made == []  # said before anything is loaded


def phase_of(*answers: Answer, at_once: bool = True, **more: object) -> Phase:
    return Phase("phase", at_once, list(answers), **more)


def answer(asked_s: float, *arrivals: tuple[float, int]) -> Answer:
    made = Answer(0, "why?", 10, asked_s, arrivals[0][0], arrivals[-1][0], arrivals=list(arrivals))
    made.token_ids = list(range(sum(n for _, n in arrivals)))
    return made


def test_times_of_an_answer():
    one = answer(1.0, (1.5, 1), (2.5, 3), (3.0, 1))
    assert (one.ttft_s, one.total_s, one.tpot_s) == (0.5, 2.0, 1.5 / 4)
    assert answer(0.0, (2.0, 1)).tpot_s is None
    empty = Answer(0, "why?", 10)
    assert (empty.ttft_s, empty.tpot_s, empty.total_s) == (None, None, None)


def test_percentiles_are_those_of_numpy():
    numpy = pytest.importorskip("numpy")
    values = [5.0, 1.0, 4.0, 2.0, 9.0]
    for percent in (0, 1, 50, 75, 99, 100):
        assert percentile(values, percent) == pytest.approx(numpy.percentile(values, percent))
    assert math.isnan(percentile([], 50))


def test_a_phase_one_at_a_time_asks_when_the_one_before_is_answered():
    engine = FakeAsyncEngine("any")
    prompts = [engine.tokenizer.encode_chat([{"role": "user", "content": text}]) for text in ("a b c", "d e", "f")]
    phase = phase_of(*(Answer(i, "", len(p)) for i, p in enumerate(prompts)), at_once=False)
    asyncio.run(run_phase(engine, phase, prompts, SamplingParams(max_tokens=2)))
    assert engine.most_running == 1
    for before, after in zip(phase.answers, phase.answers[1:], strict=False):
        assert after.asked_s >= before.last_s
    assert [len(a.token_ids) for a in phase.answers] == [2, 2, 1]
    assert phase.duration_s == phase.answers[-1].last_s
    assert phase.num_pages == 100


def test_an_error_of_one_user_ends_the_demo_with_its_words(made, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("pagedserve.cli.demo.SYSTEM_PROMPT", "long " * 500)
    assert main(["demo", "--users", "2", "--out", str(tmp_path / "demo.png")]) == 2
    assert "this engine holds 200" in capsys.readouterr().err
    assert made[0].closed


def test_report_counts_waiting_in_line():
    """One at a time, the second user's own wait is short, but not the wait of somebody who came with the first."""
    queue = phase_of(answer(0.0, (0.5, 1), (1.5, 10)), answer(1.5, (2.5, 1), (3.5, 10)), duration_s=3.5, num_pages=50)
    queue.samples = [Sample(0.0, 1, 0, 10), Sample(1.0, 1, 0, 20)]
    queue.model_s = 3.4
    rows = {row[0]: row[1] for row in report.rows([queue])}
    assert rows["first token (TTFT) p50 / p99"] == "750 ms / 995 ms"
    assert rows["had all come at once: TTFT p50 / p99"] == "1.5 s / 2.48 s"
    assert rows["tokens/s"] == "6"
    assert rows["... spent in the model"] == "97.1%"
    assert rows["pages in use, mean / peak"] == "15 / 20 of 50"


def test_identical_answers_are_counted_by_tokens():
    one, other = phase_of(answer(0, (1, 3)), answer(0, (1, 4))), phase_of(answer(0, (1, 3)), answer(0, (1, 5)))
    assert report.num_identical(one, other) == 1


def test_plot_of_empty_and_unfinished_phases(tmp_path):
    path = tmp_path / "demo.png"
    save_plot(path, phase_of(Answer(0, "why?", 3)), phase_of(), "nothing happened", "nowhere")
    assert path.read_bytes().startswith(PNG_HEAD)


def test_live_views_draw():
    rich = pytest.importorskip("rich.console")
    growing = answer(0.0, (0.5, 1), (1.5, 3))
    growing.text = "many\n\nwords " * 40
    phase = phase_of(growing, Answer(1, "how?", 3), samples=[Sample(1.5, 2, 0, 7)], num_pages=9)
    console = rich.Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    for view in (CrowdView(phase), QueueView(phase)):
        console.print(view.render())
    drawn = console.export_text()
    assert "many words" in drawn
    assert "7 of 9 pages" in drawn
    growing.finish_reason = "stop"
    assert "1 of 2 answered" in QueueView(phase).line()


def test_words_for_numbers():
    assert [duration(s) for s in (None, 0.00002, 0.0123, 0.25, 4.567, 200)] == [
        *("-", "20 us", "12.3 ms", "250 ms", "4.57 s", "3 min 20 s")
    ]
    assert [size(n) for n in (5, 2048, 3 * 2**20, 5.5 * 2**30)] == ["5 B", "2 KiB", "3 MiB", "5.5 GiB"]
    assert plain_table("T", ["a", "b"], [["x", "10"], ["long", "1"]]) == "T\na      b\n----  --\nx     10\nlong   1"
