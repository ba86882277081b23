# SPDX-License-Identifier: Apache-2.0
"""Logs as files: sessions are appended, a torn tail is cut, replay finds every difference, what-if answers."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from pagedserve import cli
from pagedserve.errors import InvalidInput
from pagedserve.eventlog.codec import Session, read_log, read_sessions
from pagedserve.eventlog.replay import compare, outcome, what_if
from pagedserve.eventlog.watched import WatchedScheduler
from pagedserve.eventlog.writer import EventLog
from pagedserve.scheduling.config import SchedulerConfig
from pagedserve.scheduling.cost import StepPrices
from pagedserve.scheduling.events import Admit, Arrive, Expire, Finish, Reject, StepDone

CONFIG = SchedulerConfig(num_pages=64, page_size=4, max_seqs=4, max_step_tokens=32, max_model_len=128)
LAW = StepPrices()


def serve(path: Path, count: int = 30, **fields: object) -> list[str]:
    """Requests that come every 10 ms, logged: how each ended."""
    log = EventLog(path, CONFIG)
    scheduler, t, ends = WatchedScheduler(CONFIG, log), 0.0, list[str]()
    coming = [Arrive(0.01 * i, f"r{i}", [i] * (5 + i % 20), 4 + i % 9, **fields) for i in range(count)]
    while coming or scheduler.num_running + scheduler.num_waiting:
        while coming and coming[0].t <= t:
            ends += ended(scheduler.apply(coming.pop(0)))
        plan = scheduler.plan(t)
        if plan is None:
            t = max(t + 0.001, coming[0].t if coming else 0.0)
            continue
        t += LAW.ms(plan.shape) / 1e3
        samples = len(plan.decode_ids) + sum(chunk.samples for chunk in plan.chunks)
        ends += ended(scheduler.apply(StepDone(t, plan.step, [0] * samples, ms=LAW.ms(plan.shape))))
    log.close()
    return ends


def ended(decisions: list[object]) -> list[str]:
    return [type(made).__name__ for made in decisions if isinstance(made, (Finish, Expire, Reject))]


def sessions(path: Path) -> list[Session]:
    with path.open(encoding="utf-8") as file:
        return list(read_sessions(file))


def test_each_run_appends_a_session(tmp_path: Path) -> None:
    path = tmp_path / "log"
    for _ in range(2):
        serve(path)
    first, second = sessions(path)
    assert first == second
    assert (first.config, len(first.entries) > 60) == (CONFIG, True)


@pytest.mark.parametrize("kept", [1.0, 0.97, 0.5, 0.1])
def test_a_log_that_a_crash_cut_anywhere_is_read_and_continued(tmp_path: Path, kept: float) -> None:
    path = tmp_path / "log"
    serve(path)
    data = path.read_bytes()
    whole = sessions(path)[0].entries
    path.write_bytes(data[: int(kept * len(data))])
    [torn] = sessions(path)
    assert torn.entries == whole[: len(torn.entries)]
    assert compare(torn).differences == []
    serve(path, count=3)
    cut, after = sessions(path)
    assert cut == torn
    assert compare(after).differences == []


def test_zeros_at_the_end_are_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "log"
    serve(path)
    before = sessions(path)[0]
    with path.open("ab") as file:
        file.write(bytes(500))
    assert sessions(path)[0] == before


def test_another_file_is_not_written_to(tmp_path: Path) -> None:
    path = tmp_path / "notes"
    path.write_text("dear diary\n")
    with pytest.raises(InvalidInput, match="is another kind of file; give a new path, or an event log"):
        EventLog(path, CONFIG)
    assert path.read_text() == "dear diary\n"


def test_a_changed_decision_is_found(tmp_path: Path) -> None:
    path = tmp_path / "log"
    serve(path)
    session = sessions(path)[0]
    assert compare(session).decisions > 80
    place = next(i for i, entry in enumerate(session.entries) if entry.decisions == [Admit("r3")])
    session.entries[place] = session.entries[place]._replace(decisions=[Admit("r3", 0.5)])
    [difference] = compare(session).differences
    assert f"line {place + 2}, Arrive" in difference


def test_what_if_nothing_changes_is_what_was(tmp_path: Path) -> None:
    path = tmp_path / "log"
    serve(path)
    with path.open(encoding="utf-8") as file:
        session = read_log(file)
    was, again = outcome(session), what_if(session, CONFIG)
    assert (was.requests, was.served) == (again.requests, again.served) == (30, 30)
    assert again.ttft_s == pytest.approx(was.ttft_s, rel=0.1, abs=2e-3)


def test_what_if_the_machine_were_smaller_or_promises_tighter(tmp_path: Path) -> None:
    path = tmp_path / "log"
    serve(path)
    session = sessions(path)[0]
    fewer = what_if(session, dataclasses.replace(CONFIG, max_seqs=1))
    assert fewer.served == 30
    assert fewer.ttft_s[-1] > 1.5 * outcome(session).ttft_s[-1]
    tight = what_if(session, CONFIG, ttft_deadline_s=0.03)
    assert tight.rejected + tight.expired > 0
    assert tight.served + tight.rejected + tight.expired == 30


def test_the_command_replays_and_asks_what_if(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "log"
    serve(path)
    assert cli.main(["replay", str(path), "--what-if", "max_seqs=2", "--slo", "ttft=1s"]) == 0
    shown = capsys.readouterr().out
    assert " decisions, 0 differ" in shown
    assert "what if" in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--what-if", "speed=2"], "is no FIELD=VALUE; fields: admission"),
        (["--what-if", "max_seqs=two"], "write the value as JSON"),
        (["--what-if", "max_seqs=0"], "max_seqs must be an int of at least 1"),
        (["--what-if", "num_pages=100000000000"], "a replay supports at most 16,777,216"),
        (["--slo", "soon"], "--slo is 'soon'"),
    ],
)
def test_questions_that_cannot_be(tmp_path: Path, capsys: pytest.CaptureFixture[str], words, message) -> None:
    path = tmp_path / "log"
    serve(path, count=3)
    assert cli.main(["replay", str(path), *words]) == 2
    assert message in capsys.readouterr().err


def test_a_log_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["replay", str(tmp_path / "missing")]) == 2
    assert "cannot be read" in capsys.readouterr().err
