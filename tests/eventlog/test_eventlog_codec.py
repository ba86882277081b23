# SPDX-License-Identifier: Apache-2.0
"""The log: every record comes back as it was; torn ends and other versions are told."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest

from pagedserve.errors import InvalidInput
from pagedserve.eventlog.codec import decode, encode, encode_header, read_log
from pagedserve.eventlog.replay import replay
from pagedserve.eventlog.watched import Planned, WatchedScheduler
from pagedserve.scheduling.config import SchedulerConfig
from pagedserve.scheduling.cost import StepPrices
from pagedserve.scheduling.events import (
    Abort,
    Admit,
    Arrive,
    Drain,
    Expire,
    Finish,
    Preempt,
    Reject,
    Resize,
    StepDone,
    StepFailed,
)
from pagedserve.scheduling.scheduler import Scheduler
from tests.scheduling.symbolic_runner import SymbolicRunner, run_dry, sum_sampler

CONFIG = SchedulerConfig(
    num_pages=8,
    page_size=4,
    max_seqs=3,
    max_step_tokens=8,
    max_model_len=32,
    graph_buckets=(1, 2),
    tenants={"": 1.0, "paying": 2.5},
    prices=StepPrices(token_ms=0.125),
)

RECORDS = [
    Arrive(0.1 + 0.2, "a", (1, 2, 3), 5),
    Arrive(1e-9, "ü\n", (0,), 1, frozenset({3, 1, 2}), 1, "tenant", -2, 0.5, 0.05, 9.75, after="a", cache_salt="salt"),
    Abort(2.0, "a"),
    StepDone(3.0, 7, (1, 2, 3), ("a",), 12.25),
    StepFailed(3.5, 8, "out of\nmemory"),
    Resize(4.0, 5),
    Drain(5.0),
    Planned(6.0, 9, 12, 0.1),
]
DECISIONS = [
    Admit("a"),
    Admit("b", 0.1),
    Reject("b", "invalid", "why", 1.5),
    Expire("c", 2.5),
    Preempt("d"),
    Finish("e", "error", "m"),
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_a_record_comes_back_as_it_was(record) -> None:
    line = encode(record, DECISIONS)
    assert "\n" not in line
    assert decode(line) == (record, DECISIONS)


def test_ints_of_numpy_come_back_as_ints() -> None:
    for prompt in (np.arange(3, dtype=np.int32), list(np.arange(3))):
        record, _ = decode(encode(Arrive(0.0, "a", prompt, 5)))
        assert record == Arrive(0.0, "a", (0, 1, 2), 5)
    record, _ = decode(encode(StepDone(0.0, 1, np.arange(2))))
    assert record == StepDone(0.0, 1, (0, 1))


def test_every_kind_of_record_and_decision_is_covered() -> None:
    assert {type(record) for record in RECORDS} == {
        *(Arrive, Abort, StepDone, StepFailed, Resize, Drain),
        Planned,
    }


def test_the_shape_of_a_line_is_what_version_3_promises() -> None:
    line = encode(Arrive(0.5, "a", [1, 2], 8), [Admit("a")])
    assert line == '["arrive",[0.5,"a",[1,2],8],[["admit",["a"]]]]'
    assert json.loads(encode_header(CONFIG))["pagedserve_log"] == 3


def test_the_config_comes_back() -> None:
    assert read_log([encode_header(CONFIG) + "\n"])[0] == CONFIG


def test_a_torn_last_line_is_left_out() -> None:
    lines = [encode_header(CONFIG) + "\n", encode(RECORDS[0]) + "\n", encode(RECORDS[3])[:20]]
    assert [record for record, _ in read_log(lines)[1]] == [RECORDS[0]]


def test_a_broken_line_inside_is_an_error() -> None:
    lines = [encode_header(CONFIG) + "\n", '["arrive",{"t":0\n', encode(RECORDS[3]) + "\n"]
    with pytest.raises(InvalidInput, match="not a line of an event log"):
        list(read_log(lines)[1])


@pytest.mark.parametrize("line", ["", "[]", "7", '["arrive",{},[]]', '["party",[0],[]]', '["abort",[],[]]', "{}"])
def test_lines_that_are_no_records(line: str) -> None:
    with pytest.raises(InvalidInput, match="not a line"):
        decode(line)


@pytest.mark.parametrize("lines", [[], ["{}"], ["[1]"], ["hello"], [encode(RECORDS[0])]])
def test_logs_without_a_header(lines: list[str]) -> None:
    with pytest.raises(InvalidInput, match="first line is not its header"):
        read_log(lines)


@pytest.mark.parametrize("name", ["num_pages", "num_host_pages", "max_seqs"])
def test_sizes_that_no_replay_has_room_for_are_refused(name: str) -> None:
    huge = dataclasses.replace(CONFIG, **{name: 10**11, "max_step_tokens": 10**12})
    with pytest.raises(InvalidInput, match=rf"{name} is 100,000,000,000; a replay supports at most"):
        read_log([encode_header(huge) + "\n"])
    lines = [encode_header(CONFIG), encode(Resize(1.0, 10**11)), encode(Drain(2.0))]
    with pytest.raises(InvalidInput, match="num_pages is 100,000,000,000"):
        read_log([line + "\n" for line in lines])


def test_another_version_is_refused_by_number() -> None:
    with pytest.raises(InvalidInput, match="version 99; this program reads version 3"):
        read_log(['{"pagedserve_log":99,"config":{}}\n'])


@pytest.mark.parametrize(
    "event",
    [
        Arrive(math.nan, "a", [1], 1),
        Arrive(0.0, "a", "text", 1),
        Arrive(0.0, "a", [None], 1),
        Arrive(0.0, "a", [1], 1, deadline_s=math.nan),
        Arrive(0.0, "a", [1], 1, stop_token_ids=[1]),
        Arrive(0.0, "a", [1], 1, tenant=b"bytes"),
    ],
)
def test_what_was_refused_is_refused_again(event: Arrive) -> None:
    [first] = Scheduler(CONFIG).apply(event)
    record, _ = decode(encode(event))
    [again] = Scheduler(CONFIG).apply(record)
    assert (first.reason, again.reason) == ("invalid", "invalid")


def test_a_run_replays_from_its_log() -> None:
    lines = [encode_header(CONFIG) + "\n"]
    plans = []
    scheduler = WatchedScheduler(CONFIG, lambda record, made: lines.append(encode(record, made) + "\n"))
    runner = SymbolicRunner(scheduler, sum_sampler(5))
    for i in range(6):
        scheduler.apply(Arrive(0.0, f"r{i}", [1, 2, 3, i], 8, frozenset([2])))
    run_dry(runner)
    scheduler.apply(Drain(1.0))
    scheduler.apply(Arrive(1.0, "late", [1], 1))
    config, entries = read_log(lines)
    entries = list(entries)
    num_decisions = 0
    for (_, logged), (made, plan) in zip(entries, replay(config, (record for record, _ in entries)), strict=True):
        assert made == logged
        num_decisions += len(made)
        plans.append(plan)
    assert num_decisions >= 13
    for (record, _), plan in zip(entries, plans, strict=True):
        assert not isinstance(record, Planned) or (plan.step, plan.shape.num_tokens) == (record.step, record.num_tokens)
