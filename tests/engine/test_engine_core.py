# SPDX-License-Identifier: Apache-2.0
"""The loop on a fake runner: what comes out, in whatever order and whatever fails."""

import threading
import time
from queue import SimpleQueue

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pagedserve.engine.channels import Collector
from pagedserve.engine.sampling import SamplingParams
from pagedserve.errors import EngineClosed, InvalidInput, RequestRejected, StepError
from tests.engine.engine_fakes import EOS, FakeRunner, echo, make_core, stopped

WAIT_S = 10


class Client:
    """Submits to a core and waits for results."""

    def __init__(self, runner=None, **changes):
        self.core, self.door, self.scheduler = make_core(runner, **changes)
        self.done = SimpleQueue()

    def submit(self, prompt, id=None, **params):
        params = SamplingParams(**{"max_tokens": 8} | params)
        collector = Collector(params.n, self.done.put)
        request = self.door.request(self.door.encode(prompt), params, collector, id=id)
        collector.request = request
        self.core.submit(request)
        return collector

    def wait(self, *collectors):
        missing = set(collectors)
        while missing:
            missing.discard(self.done.get(timeout=WAIT_S))

    def run(self, prompt, **params):
        collector = self.submit(prompt, **params)
        self.wait(collector)
        return collector

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.core.close()


def test_length_and_eos():
    with Client() as client:
        (cut,) = client.run("abc", max_tokens=5).completions
        (ended,) = client.run("ab.", max_tokens=5).completions
    assert (cut.text, cut.token_ids, cut.finish_reason, cut.stop_reason) == ("abcab", list(b"abcab"), "length", None)
    assert (ended.text, ended.token_ids, ended.finish_reason, ended.stop_reason) == ("ab", [97, 98, EOS], "stop", None)


def test_stop_token_is_kept_as_token_but_not_as_text():
    with Client() as client:
        (completion,) = client.run("abc", stop_token_ids=[99]).completions
    assert (completion.text, completion.token_ids) == ("ab", list(b"abc"))
    assert (completion.finish_reason, completion.stop_reason) == ("stop", 99)


def test_ignore_eos_and_special_tokens_in_text():
    with Client() as client:
        (skipped,) = client.run("a.", max_tokens=4, ignore_eos=True).completions
        (shown,) = client.run("a.", max_tokens=4, ignore_eos=True, skip_special_tokens=False).completions
    assert (skipped.text, skipped.finish_reason) == ("aa", "length")
    assert shown.text == "a<eos>a<eos>"


def test_half_characters_are_never_given_out():
    deltas = []

    class Recorder(Collector):
        def put(self, delta):
            deltas.append(delta.text)
            super().put(delta)

    with Client() as client:
        collector = Recorder(1, client.done.put)
        client.core.submit(client.door.request(client.door.encode("äö€😀"), SamplingParams(max_tokens=12), collector))
        client.wait(collector)
    # 11 bytes, then the first byte of the first character again
    assert "".join(deltas) == "äö€😀\ufffd"
    assert deltas == ["", "ä", "", "ö", "", "", "€", "", "", "", "😀", "\ufffd"]


texts = st.text(alphabet="abé", min_size=1, max_size=12)
stop_lists = st.lists(st.text(alphabet="abé", min_size=1, max_size=5), max_size=3)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(texts, stop_lists), min_size=1, max_size=12), st.integers(0, 6))
def test_stop_strings_equal_plain_search(requests, min_tokens):
    with Client() as client:
        collectors = [client.submit(text, stop=stops, max_tokens=20, min_tokens=min_tokens) for text, stops in requests]
        client.wait(*collectors)
    for (text, stops), collector in zip(requests, collectors, strict=True):
        data = (text * 20).encode()[:20]
        (completion,) = collector.completions
        # A stop string counts from the first character that is complete with token min_tokens on.
        ignored = len(data[: max(min_tokens - 1, 0)].decode(errors="ignore"))
        whole, found = stopped(data.decode(errors="ignore"), stops, armed_from=ignored)
        if found is None:
            tail = "\ufffd" if data.decode(errors="replace").endswith("\ufffd") else ""
            assert (completion.text, completion.finish_reason) == (whole + tail, "length")
        else:
            assert (completion.text, completion.finish_reason, completion.stop_reason) == (whole, "stop", found)
            assert bytes(completion.token_ids).decode() == whole + found


def test_n_completions_share_the_prompt():
    def say(completion, num_output):
        return ord("a") + completion.seed % 2**64 % 26

    runner = FakeRunner(say)
    with Client(runner) as client:
        collector = client.run("x" * 21, n=3, seed=2**64 - 1, max_tokens=4)
    assert [completion.text for completion in collector.completions] == [
        chr(ord("a") + seed % 26) * 4 for seed in (2**64 - 1, 0, 1)
    ]
    hits = [completion.metrics.prefix_hit_tokens for completion in collector.completions]
    assert hits[0] == 0
    assert hits[1:] == [20, 20]


def test_logprobs():
    with Client() as client:
        (plain,) = client.run("ab", max_tokens=3).completions
        (zero,) = client.run("ab", max_tokens=3, logprobs=0).completions
        (some,) = client.run("ab", max_tokens=3, logprobs=2).completions
    assert plain.logprobs is None
    assert plain.cumulative_logprob is None
    assert [entry.top for entry in zero.logprobs] == [()] * 3
    assert [entry.logprob for entry in some.logprobs] == [-97.5, -98.5, -97.5]
    assert some.logprobs[0].top == ((0, 0.0), (1, -1.0))
    assert some.cumulative_logprob == -97.5 - 98.5 - 97.5


def test_metrics():
    with Client(FakeRunner(step_s=0.002)) as client:
        (completion,) = client.run("abcd" * 20, max_tokens=4).completions
        (again,) = client.run("abcd" * 20, max_tokens=1).completions
    metrics = completion.metrics
    assert metrics.num_output_tokens == 4
    assert 0 <= metrics.queue_s < metrics.ttft_s < metrics.total_s
    assert metrics.ttft_s >= 0.006  # 80 prompt tokens, 32 a step
    assert metrics.tpot_s == pytest.approx((metrics.total_s - metrics.ttft_s) / 3)
    assert again.metrics.prefix_hit_tokens == 79 or again.metrics.prefix_hit_tokens == 76
    assert again.metrics.tpot_s is None


def test_abort_at_any_time():
    gate = threading.Event()
    with Client(FakeRunner(before_step=lambda plan: gate.wait(WAIT_S)), max_seqs=2) as client:
        running = [client.submit("ab", id=f"r{i}", max_tokens=200) for i in range(2)]
        queued = client.submit("cd", id="queued")
        assert client.core.abort("queued")
        assert client.core.abort("r0")
        assert not client.core.abort("nobody")
        gate.set()
        client.wait(running[0], queued)
        assert [c.completions[0].finish_reason for c in (running[0], queued)] == ["abort", "abort"]
        assert queued.completions[0].token_ids == []
        client.wait(running[1])
    assert running[1].completions[0].token_ids == list(b"ab" * 100)


def test_an_id_is_free_again_once_its_request_is_over():
    with Client() as client:
        for _ in range(20):
            assert client.run("abc", id="same", stop="b", max_tokens=200).completions[0].text == "a"


def test_an_id_in_use_is_refused():
    gate = threading.Event()
    with Client(FakeRunner(before_step=lambda plan: gate.wait(WAIT_S))) as client:
        first = client.submit("abc", id="same")
        with pytest.raises(InvalidInput, match="'same' is still in the engine"):
            client.submit("abc", id="same")
        gate.set()
        client.wait(first)


def test_a_request_whose_logits_are_nan_fails_alone():
    def say(completion, num_output):
        return -1 if completion.request.id == "bad" and num_output == 3 else echo(completion, num_output)

    with Client(FakeRunner(say)) as client:
        good = [client.submit("abc", id=f"good{i}") for i in range(3)]
        bad = client.submit("abc", id="bad", n=2)
        client.wait(*good, bad)
    assert isinstance(bad.error, StepError)
    assert [completion.finish_reason for completion in bad.completions] == ["error", "error"]
    assert bad.completions[0].text == "abc"
    assert all(collector.error is None and collector.completions[0].text == "abcabcab" for collector in good)


def test_a_request_that_fails_its_steps_fails_alone():
    def before_step(plan):
        if "bad" in plan.decode_ids:
            raise RuntimeError("the kernel met a number it does not like")

    with Client(FakeRunner(before_step=before_step)) as client:
        good = [client.submit("abc", id=f"good{i}") for i in range(3)]
        bad = client.submit("abc", id="bad")
        client.wait(*good, bad)
        assert client.core.counters.failed_steps >= 2
    assert isinstance(bad.error, StepError)
    assert "the kernel met a number" in str(bad.error)
    assert all(collector.completions[0].text == "abcabcab" for collector in good)


def test_a_request_whose_output_fails_fails_alone():
    class Broken(Collector):
        def put(self, delta):
            if len(self.completions[0].token_ids) == 2:
                raise ValueError("this caller is broken")
            super().put(delta)

    with Client() as client:
        params = SamplingParams(max_tokens=200)
        broken = Broken(1, client.done.put)
        client.core.submit(client.door.request(client.door.encode("abc"), params, broken))
        good = client.submit("abc")
        client.wait(good, broken)
        assert isinstance(broken.error, StepError)
        assert "this caller is broken" in str(broken.error)
        assert client.run("x").completions[0].text == "x" * 8  # the broken one's pages and row are free again
        deadline = time.monotonic() + WAIT_S
        while client.core._completions:
            assert time.monotonic() < deadline


@pytest.mark.parametrize("where", ["prepare", "run", "scheduler"])
def test_the_engines_death_reaches_everybody(where):
    class Dying(FakeRunner):
        def prepare(self, plan):
            if where == "prepare" and plan.step == 3:
                raise OSError("no such page")
            super().prepare(plan)

        def run(self, plan):
            if where == "run" and plan.step == 3:
                raise SystemExit("killed")
            step = super().run(plan)
            if where == "scheduler" and plan.step == 3:
                step.tokens.append(1)
            return step

    client = Client(Dying(), max_seqs=2)
    collectors = [client.submit("abc", max_tokens=50) for _ in range(6)]
    client.wait(*collectors)
    assert all(isinstance(collector.error, EngineClosed) for collector in collectors)
    with pytest.raises(EngineClosed, match="the engine died of"):
        client.submit("abc")
    client.core.close()


def test_refused_requests_leave_others_alone():
    with Client(num_pages=8, max_queue=1) as client:
        good = client.submit("abc")
        never = client.submit("abc", max_tokens=100)
        client.wait(good, never)
    assert isinstance(never.error, RequestRejected)
    assert never.error.reason == "never_fits"
    assert good.completions[0].text == "abcabcab"


def test_a_refused_first_completion_refuses_all():
    with Client(num_pages=8) as client:
        never = client.run("abc", max_tokens=100, n=4)
        assert client.run("abc").completions[0].text == "abcabcab"
    assert never.error.reason == "never_fits"
    assert [completion.finish_reason for completion in never.completions] == ["error"] * 4


def test_expired_in_the_queue():
    gate = threading.Event()
    with Client(FakeRunner(before_step=lambda plan: gate.wait(WAIT_S)), max_seqs=1) as client:
        running = client.submit("ab", max_tokens=50)
        late = client.submit("cd", ttft_deadline_s=0.01)
        time.sleep(0.02)
        gate.set()
        client.wait(late, running)
    assert isinstance(late.error, RequestRejected)
    assert late.error.reason == "deadline"


def test_preemption_loses_nothing():
    runner = FakeRunner()
    with Client(runner, num_pages=16, max_seqs=4, watermark=0.0) as client:
        collectors = [client.submit(text, max_tokens=40) for text in ("abc", "defg", "hi", "jklmn")]
        client.wait(*collectors)
        assert client.scheduler.stats().preemptions > 0
    for collector, text in zip(collectors, ("abc", "defg", "hi", "jklmn"), strict=True):
        assert collector.completions[0].text == (text * 40)[:40]
    assert sum(collector.completions[0].metrics.preemptions for collector in collectors) > 0


def test_close_aborts_and_drain_finishes():
    client = Client(FakeRunner(step_s=0.001))
    collector = client.submit("abc", max_tokens=60)
    client.core.close(drain=True)
    assert collector.completions[0].token_ids == list(b"abc" * 20)
    client = Client(FakeRunner(step_s=0.001))
    collector = client.submit("abc", max_tokens=200)
    client.core.close()
    client.core.close()
    assert collector.completions[0].finish_reason == "abort"
    with pytest.raises(EngineClosed, match="was closed"):
        client.submit("abc")


def test_host_work_overlaps_the_step():
    """The outputs of a step are out before the next step is done."""
    seen = SimpleQueue()

    class Recorder(Collector):
        def put(self, delta):
            seen.put(delta.token_ids)
            super().put(delta)

    steps = []

    def before_step(plan):
        steps.append(plan.step)
        if len(steps) > 1:
            assert seen.get(timeout=WAIT_S)  # blocks this step until the last one's token is out

    with Client(FakeRunner(before_step=before_step)) as client:
        collector = Recorder(1, client.done.put)
        client.core.submit(client.door.request([1, 2, 3], SamplingParams(max_tokens=6), collector))
        client.wait(collector)
        assert client.core.counters.failed_steps == 0


def test_many_threads():
    with Client(max_seqs=4) as client:
        results = {}

        def work(number):
            mine = SimpleQueue()
            for turn in range(5):
                text = f"{number}:{turn}|"
                collector = Collector(1, mine.put)
                client.core.submit(
                    client.door.request(client.door.encode(text), SamplingParams(max_tokens=12), collector)
                )
                mine.get(timeout=WAIT_S)
                results[number, turn] = (collector.completions[0].text, (text * 12)[:12])

        threads = [threading.Thread(target=work, args=(number,)) for number in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(results) == 60
    assert all(got == wanted for got, wanted in results.values())
