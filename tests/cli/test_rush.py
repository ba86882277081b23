# SPDX-License-Identifier: Apache-2.0
"""The rush: arrivals by the clock, people who come back, figures, files; on fake engines."""

from __future__ import annotations

import asyncio
import dataclasses
import math
import time
from collections.abc import AsyncIterator

import pytest
from cli_fakes import FakeAsyncEngine, saved_by

from pagedserve.cli import main, rush_report
from pagedserve.cli import rush as rush_command
from pagedserve.cli.rush_load import PROBES, Call, Rush, arrivals, capacity, consistency, oracle_share, run_rush
from pagedserve.engine.outputs import Delta
from pagedserve.engine.sampling import SamplingParams
from pagedserve.errors import RequestRejected
from pagedserve.eventlog.codec import encode, encode_header
from pagedserve.scheduling.config import SchedulerConfig
from pagedserve.simulate.cluster import Cluster
from pagedserve.simulate.cost import StepCurve
from pagedserve.simulate.workload import Request, Slo, steady


class Door:
    """An engine with a door: it sends the first attempts of some away, and answers everybody else after answer_s."""

    def __init__(self, *, refuse=(), retry_after_s=0.05, answer_s=0.01):
        self.refuse, self.retry_after_s, self.answer_s = set(refuse), retry_after_s, answer_s
        self.asked: list[float] = []
        self.answered: list[float] = []

    async def generate(
        self, prompt: list[int], params: SamplingParams, *, id: str | None = None
    ) -> AsyncIterator[Delta]:
        self.asked.append(time.perf_counter())
        number = prompt[0]
        if number in self.refuse:
            self.refuse.remove(number)
            raise RequestRejected("later", reason="deadline", retry_after_s=self.retry_after_s)
        await asyncio.sleep(self.answer_s)
        self.answered.append(time.perf_counter())
        yield Delta(0, "a", [number])
        await asyncio.sleep(self.answer_s)
        yield Delta(0, "b", [number + 1], finish_reason="length")

    def stats(self):
        return FakeAsyncEngine("any").stats()


def params(call: Call) -> SamplingParams:
    return SamplingParams(max_tokens=call.max_tokens)


def rush_of(engine, calls, *, seconds=0.5, drain_s=5.0):
    rush = Rush("phase", True, Slo(10.0), steady(1.0, seconds), calls)
    asyncio.run(run_rush(engine, rush, params, drain_s=drain_s, changed=lambda: None))
    return rush


def call(number, due_s, **more):
    return Call(number, [number, 7], 2, due_s, first_due_s=due_s, **more)


def test_arrivals_hold_ten_probes_evenly_spread_and_are_drawn_by_seed():
    profile = steady(20, 10)
    calls = arrivals(profile, [[1], [2]], [9], seed=3)
    probes = [c for c in calls if c.probe]
    assert [round(c.due_s, 6) for c in probes] == [0.5 + i for i in range(PROBES)]
    assert {tuple(c.prompt) for c in probes} == {(9,)}
    assert [c.due_s for c in calls] == sorted(c.due_s for c in calls)
    assert calls == arrivals(profile, [[1], [2]], [9], seed=3) != arrivals(profile, [[1], [2]], [9], seed=4)


def test_requests_are_sent_when_due_though_nobody_is_answered():
    engine = Door(answer_s=0.6)
    began = time.perf_counter()
    rush_of(engine, [call(i, 0.02 * i) for i in range(10)])
    sent = [t - began for t in engine.asked]
    # All are sent before the first is answered.
    assert len(sent) == 10
    assert max(engine.asked) < min(engine.answered)
    assert all(t >= 0.02 * i for i, t in enumerate(sent))


def test_who_is_sent_away_comes_back_once_after_the_time_told():
    engine = Door(refuse=[1, 2])
    rush = rush_of(engine, [call(i, 0.01 * i) for i in range(4)])
    summary = rush.results().summary()
    assert (summary.arrivals, summary.served, summary.came_back, summary.came_back_kept) == (4, 2, 2, 2)
    assert summary.refused == {"deadline": 2}
    assert summary.retry_after_s.p50 == 0.05
    back = [c for c in rush.calls if c.attempt == 1]
    assert all(c.due_s >= 0.01 * c.number + 0.05 for c in back)
    assert all(c.first_due_s == pytest.approx(0.01 * c.number) for c in back)


def test_nobody_comes_back_after_the_doors_have_closed():
    rush = rush_of(Door(refuse=[0], retry_after_s=9.0), [call(0, 0.0)])
    assert [c.end for c in rush.calls] == ["deadline"]


def test_who_is_not_answered_in_the_end_is_cut_off_and_kept_no_promise():
    rush = rush_of(Door(answer_s=30.0), [call(0, 0.0)], seconds=0.05, drain_s=0.05)
    summary = rush.results().summary()
    assert (summary.arrivals, summary.kept, summary.refused) == (1, 0, {"abort": 1})
    assert math.isnan(summary.ttft_s.p50)


def test_capacity_is_the_rate_at_which_answers_end():
    class OneAtATime(Door):
        def __init__(self):
            super().__init__()
            self.turn = asyncio.Lock()

        async def generate(self, prompt, params, *, id=None):
            async with self.turn:
                async for delta in super().generate(prompt, params, id=id):
                    yield delta

    rate = asyncio.run(capacity(OneAtATime(), [[1]], params, 12))
    assert 0 < rate <= 50.1


def test_consistency_counts_waits_from_the_first_attempt_and_compares_tokens():
    rush = Rush("phase", True, Slo(1.0), steady(1.0, 1.0))
    rush.calls = [
        call(0, 0.0, probe=True, first_s=0.5, last_s=1.0, token_ids=[1, 2], end="length"),
        call(1, 1.0, probe=True, end="deadline", retry_after_s=1.0),
        call(2, 2.0, probe=True, first_s=2.1, last_s=3.0, token_ids=[1, 3], end="length"),
        call(3, 3.0, probe=True, end="queue_full"),
        Call(1, [1, 7], 2, 2.0, True, 1, 1.0, 4.0, 5.0, [1, 2], "length"),
    ]
    same = consistency(rush)
    assert (same.answered, same.identical) == (3, 2)
    assert (same.least_s, same.median_s, same.most_s) == (pytest.approx(0.1), 0.5, 3.0)


def test_an_oracle_is_asked_on_the_steps_of_the_log(tmp_path):
    config = SchedulerConfig(num_pages=512, page_size=16, max_seqs=4, max_step_tokens=64, max_model_len=512)
    profile, log = steady(30.0, 4.0), tmp_path / "rush.log"
    calls = [call(i, t) for i, t in enumerate(profile.arrivals(1))]
    rush = Rush("phase", True, Slo(0.5), profile, calls)
    assert math.isnan(oracle_share(rush, log))
    lines = [encode_header(config) + "\n"]
    law = StepCurve([(1, 100.0), (64, 150.0)])
    cluster = Cluster(config, law, on_event=lambda record, made: lines.append(encode(record, made) + "\n"))
    real = cluster.run(Request(c.due_s, c.prompt, c.max_tokens, rush.slo) for c in calls).summary()
    log.write_text("".join(lines))
    assert real.kept_share - 0.05 < oracle_share(rush, log) < 1
    # As the engine, it finds no prompt of another's computed: the same share where all ask the same.
    shares = []
    for prompts in ([[7] * 100] * len(calls), [[i] * 100 for i in range(len(calls))]):
        alike = [dataclasses.replace(c, prompt=prompt) for c, prompt in zip(calls, prompts, strict=True)]
        shares.append(oracle_share(Rush("phase", True, Slo(0.5), profile, alike), log))
    assert shares[0] == shares[1] < 0.9


def test_rush_end_to_end(made, tmp_path, capsys, monkeypatch):
    async def measured(*_):
        return 20.0

    monkeypatch.setattr(rush_command, "capacity", measured)
    out = tmp_path / "new" / "rush.png"
    assert main(["rush", "--duration", "4", "--spike", "3", "--slo", "ttft=5s", "--out", str(out)]) == 0
    words = ["capacity, measured", "promises on", "unbounded queue", "goodput, of all arrivals", "vLLM's bench serve"]
    numbers = saved_by(out, capsys.readouterr().out, words)
    assert [phase["name"] for phase in numbers["phases"]] == ["promises on", "unbounded queue"]
    for phase in numbers["phases"]:
        assert phase["summary"]["arrivals"] == len([c for c in phase["calls"] if not c["attempt"]]) > PROBES
        assert 0 < phase["summary"]["kept"] <= phase["summary"]["served"] <= phase["summary"]["arrivals"]
        assert phase["consistency"]["identical"] == PROBES
    first, second = made
    assert first.closed
    assert second.closed
    assert [str(engine.options["event_log"]) for engine in made] == [
        str(tmp_path / "new" / f"rush-{name}.log") for name in ("promises", "unbounded")
    ]
    # No request finds another's prompt.
    assert len(set(first.salts)) == len(first.salts)


def test_the_line_while_it_runs():
    rush = Rush("phase", True, Slo(1.0), steady(2.0, 10.0), [call(0, 0.0, end="length"), call(1, 1.0), call(2, 9.0)])
    rush.now_s = 2.0
    assert "2 came, 1 answered, 0 sent away" in rush_report.line(rush)


@pytest.mark.parametrize(
    "words, says",
    [
        (["--out", "rush.gif"], "ends in .png"),
        (["--duration", "1"], "at least 4 seconds"),
        (["--spike", "0.5"], "at least 1"),
        (["--returns", "-1"], "0 or more"),
        (["--slo", "soon"], "--slo is 'soon'"),
    ],
)
def test_rush_refuses_with_words(made, words, says, tmp_path, capsys):
    assert main(["rush", "--out", str(tmp_path / "rush.png"), *words]) == 2
    assert says in capsys.readouterr().err
    assert made == []
