# SPDX-License-Identifier: Apache-2.0
"""The protocol to engines in their own processes, with one that has no model; the choice of peers; drift."""

import io
import json
import sys

import numpy
import pytest
from rich.console import Console

from bench import drift, report
from bench.__main__ import parser
from bench.peers import PEERS, chosen
from bench.peers.protocol import PeerError, PeerProcess
from bench.prompts import Prompts, closed
from bench.serve import Contender, Workload, _measure, line_of, measured, medians, run_workload


def fake(model: str = "any") -> PeerProcess:
    process = PeerProcess(sys.executable, "tests.bench.fake_peer", threads=1)
    try:
        process.load(model, 1, "f32", timeout_s=60)
    except PeerError:
        process.close()
        raise
    return process


@pytest.fixture
def peer():
    process = fake()
    yield process
    process.close()


def test_a_run_gives_every_request_its_tokens(peer):
    requests = closed(Prompts(range(100)), users=3, rounds=2, prompt_len=5, max_tokens=4)
    records = peer.run(requests)
    assert [record.tokens for record in records] == [[4, 3, 2, 1]] * 6
    assert [record.num_prompt_tokens for record in records] == [5] * 6
    for first, second in zip(records[:3], records[3:], strict=True):
        assert second.arrival_s == first.token_s[-1]
        assert second.user == first.user
    for record in records:
        assert record.arrival_s <= record.token_s[0] <= record.token_s[-1]


def test_what_a_library_prints_does_not_stand_between_answers(peer):
    assert len(peer.run(closed(Prompts(range(100)), 1, 1, 5, 2))) == 1
    assert "a library talks" in peer.last_words()


def test_logits_come_back_whole_or_not_at_all(peer):
    assert peer.logits([2, 0]).tolist() == [[0, 0, 1, 0], [1, 0, 0, 0]]
    hidden = fake("hidden")
    assert hidden.logits([2, 0]) is None
    hidden.close()


def test_a_peer_that_cannot_load_says_why():
    with pytest.raises(PeerError, match="FileNotFoundError: no such model"):
        fake("missing")


def test_a_peer_that_dies_is_reported_with_its_last_words():
    process = fake("dies")
    requests = closed(Prompts(range(100)), 1, 1, 5, 2)
    with pytest.raises(PeerError, match="out of memory, for example"):
        process.run(requests)
    process.close()


def test_a_failing_engine_leaves_the_others_their_rows(peer):
    dying = fake("dies")
    facts = {"precision": "none"}
    contenders = [Contender("dying", dying, facts), Contender("fake", peer, facts, {"drift_kl": 0.5})]

    class Arguments:
        rounds, open_s = 1, 0.05

    rows = []
    arguments = Arguments()
    for text in ("closed:2x5+20", "open:100x5+3"):
        rows += run_workload(contenders, Workload.parse(text), Prompts(range(1000)), arguments, repeat=0)
    assert [("error" in row, row["engine"]) for row in rows] == [(True, "dying"), (False, "fake")] * 2
    assert rows[1]["decode_tok_per_s"] > 0
    assert rows[1]["drift_kl"] == 0.5
    assert rows[3]["ttft_p50_ms"] >= 0
    assert "error" not in line_of(rows[1])
    assert "decode tok/s" in line_of(rows[1])
    assert "out of memory, for example" in line_of(rows[0])
    dying.close()


def test_rows_come_one_by_one(peer):
    """What is on disk when a run is killed: every row before."""

    class Arguments:
        rounds, open_s, repeats = 1, 0.05, 2

    workloads = [Workload.parse("closed:1x5+3"), Workload.parse("closed:2x5+3")]
    said = io.StringIO()
    rows = measured(
        [Contender("fake", peer, {"precision": "none"})], workloads, Prompts(range(99)), Arguments(), Console(file=said)
    )
    assert next(rows)["workload"] == "closed:1x5+3"
    assert said.getvalue().count("fake: ") == 1
    assert [row["workload"] for row in rows] == ["closed:2x5+3", "closed:1x5+3", "closed:2x5+3"]


def test_a_run_that_is_stopped_keeps_and_shows_its_rows(peer, tmp_path, monkeypatch):
    class Stopping:
        """The second workload is one too many."""

        def __init__(self):
            self.runs = 0

        def run(self, requests):
            self.runs += 1
            if self.runs > 2:  # the first warms up
                raise KeyboardInterrupt
            return peer.run(requests)

    monkeypatch.setattr(report, "RESULTS", tmp_path)
    args = parser().parse_args(["serve", "--no-drift", "--rounds", "1"])
    contenders = [Contender("fake", Stopping(), {"precision": "none"})]
    workloads = [Workload.parse("closed:1x5+3"), Workload.parse("closed:2x5+3")]
    said = io.StringIO()
    code = _measure(contenders, workloads, Prompts(range(999)), "any", args, Console(file=said, width=300))
    assert code == 130
    assert "stopped; 1 rows were measured" in said.getvalue()
    assert "closed:1x5+3 on" in said.getvalue()
    assert "closed:2x5+3 on" not in said.getvalue()
    (lines,) = tmp_path.glob("*.jsonl")
    assert json.loads(lines.read_text())["workload"] == "closed:1x5+3"


def test_a_peer_that_is_missing_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr("bench.peers.FOLDER", tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    found, missing = chosen("installed")
    assert found == []
    assert [peer.name for peer in missing] == list(PEERS)
    assert all(peer.install.startswith("bash bench/setup_peers.sh ") for peer in missing)


def test_peers_are_chosen_by_name_and_variant(monkeypatch, tmp_path):
    monkeypatch.setattr("bench.peers.FOLDER", tmp_path)
    (tmp_path / "openvino-genai" / "bin").mkdir(parents=True)
    (tmp_path / "openvino-genai" / "bin" / "python").touch()
    found, _ = chosen("openvino-genai:f32")
    assert [(peer.name, variant) for peer, variant in found] == [("openvino-genai", "f32")]
    assert chosen("none") == ([], [])
    with pytest.raises(ValueError, match="there is no peer 'nobody'; choose from"):
        chosen("nobody")
    with pytest.raises(ValueError, match="no variant 'f4'; it has bf16, f32"):
        chosen("openvino-genai:f4")


def test_kl_is_zero_for_equal_logits_and_known_for_two_tokens():
    logits = numpy.array([[1.0, 2.0, 3.0]], dtype=numpy.float32)
    assert drift.mean_kl(logits, logits + 5) == pytest.approx(0, abs=1e-12)
    p, q = numpy.array([[0.75, 0.25]]), numpy.array([[0.5, 0.5]])
    want = 0.75 * numpy.log(1.5) + 0.25 * numpy.log(0.5)
    assert drift.mean_kl(numpy.log(p), numpy.log(q)) == pytest.approx(want)
    with pytest.raises(ValueError, match="cannot be compared"):
        drift.mean_kl(logits, logits[:, :2])


def test_drift_asks_for_logits_or_for_greedy_tokens(peer):
    exact = [numpy.eye(4, dtype=numpy.float32)[[0, 1, 2, 3]]]
    assert drift.measure(peer, exact, [[0, 1, 2, 2]], positions=4)["agrees_percent"] == 75.0
    hidden = fake("hidden")  # its only token is 1
    found = drift.measure(hidden, exact, [[0, 1, 2, 3]], positions=4)
    assert found == {"drift_kl": None, "agrees_percent": 25.0}
    hidden.close()


def test_workloads_are_read_and_refused():
    assert Workload.parse("closed:8x128+64").requests(Prompts(range(9999)), rounds=2, open_s=1, seed=0)[15].user == 7
    arrivals = Workload.parse("open:50x4+2").requests(Prompts(range(999)), rounds=1, open_s=2, seed=1)
    times = [request.arrival_s for request in arrivals]
    assert times == sorted(times)
    assert 60 < len(times) < 140
    for text in ("closed:8", "closed:1.5x2+2", "open:0x2+2", "closed:2x0+2", "burst:2x2+2"):
        with pytest.raises(ValueError, match=r"write closed|whole"):
            Workload.parse(text)


def test_repeats_are_shown_by_their_median():
    rows = [{"workload": "w", "engine": "e", "precision": "p", "output_tok_per_s": rate} for rate in (1.0, 9.0, 2.0)]
    assert medians(rows) == [{**rows[0], "output_tok_per_s": 2.0}]
