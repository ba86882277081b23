# SPDX-License-Identifier: Apache-2.0
"""The synchronous face on a fake runner."""

import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from pagedserve import SamplingParams
from pagedserve.engine.channels import Collector, QueueChannel, Stream
from pagedserve.errors import EngineClosed, InvalidInput, RequestRejected, StepError
from tests.engine.engine_fakes import VOCAB_SIZE, FakeLLM, FakeRunner, echo, program

FOUR = SamplingParams(max_tokens=4)


def test_generate():
    with FakeLLM() as llm:
        (one,) = llm.generate("abc", FOUR)
        many = llm.generate(["xy", [97, 98], np.array([99])], [FOUR, SamplingParams(max_tokens=2), FOUR])
        assert llm.generate([]) == []
    assert (one.prompt, one.prompt_token_ids, one.outputs[0].text) == ("abc", [97, 98, 99], "abca")
    assert one.error is None
    assert one.metrics is one.outputs[0].metrics
    assert [output.outputs[0].text for output in many] == ["xyxy", "ab", "cccc"]
    assert [output.prompt for output in many] == ["xy", None, None]
    assert len({output.id for output in many}) == 3


def test_chat():
    turns = [{"role": "user", "content": "hi"}]
    with FakeLLM() as llm:
        (one,) = llm.chat(turns, FOUR)
        two = llm.chat([turns, turns], FOUR)
    assert (one.prompt, one.outputs[0].text) == ("user: hi\n", "user")
    assert [output.outputs[0].text for output in two] == ["user", "user"]


@pytest.mark.parametrize("messages", [[], "hi", {"role": "user", "content": "hi"}, None])
def test_impossible_conversations_are_refused(messages):
    with FakeLLM() as llm, pytest.raises(InvalidInput, match="give a list of messages, or a list of such lists"):
        llm.chat(messages)


@pytest.mark.parametrize("messages", [[3], [[{"role": "user", "content": "hi"}], None]])
def test_a_conversation_that_is_none_is_refused(messages):
    with FakeLLM() as llm, pytest.raises(InvalidInput, match="neither a message nor a list of messages"):
        llm.chat(messages)


def test_stream():
    with FakeLLM() as llm, llm.stream("abc", SamplingParams(max_tokens=5, n=2)) as stream:
        deltas = list(stream)
        assert list(stream) == []
    for index in range(2):
        mine = [delta for delta in deltas if delta.index == index]
        assert "".join(delta.text for delta in mine) == "abcab"
        assert [delta.finish_reason for delta in mine] == [None] * 4 + ["length"]
        assert mine[-1].metrics.num_output_tokens == 5


def test_a_stream_that_is_dropped_aborts_its_request():
    runner = FakeRunner(step_s=0.001)
    with FakeLLM(runner, max_seqs=1) as llm:
        stream = llm.stream("abc", SamplingParams(max_tokens=200))
        next(stream)
        del stream
        assert llm.generate("xy", FOUR)[0].outputs[0].text == "xyxy"
    assert len(runner.plans) < 100


def test_a_stream_tells_what_became_of_its_request():
    def say(completion, num_output):
        return -1 if num_output == 2 else echo(completion, num_output)

    with FakeLLM(FakeRunner(say), num_pages=8) as llm:
        stream = llm.stream("abc", FOUR)
        assert [next(stream).text, next(stream).text] == ["a", "b"]
        with pytest.raises(StepError, match="could not compute"):
            next(stream)
        with pytest.raises(StopIteration):
            next(stream)
        with pytest.raises(RequestRejected, match="the whole pool has 8"):
            next(llm.stream("abc", SamplingParams(max_tokens=100)))


@pytest.mark.parametrize(
    "prompt, message",
    [
        ("", "the prompt is empty"),
        ([], "the prompt is empty"),
        (["ok", ""], "prompt 1 is empty"),
        (["ok", []], "prompt 1 is empty"),
        (["ok", [VOCAB_SIZE]], "prompt 1 holds token id 257; this model's are 0 to 256"),
        (["ok", [-1]], "prompt 1 holds token id -1"),
        (["ok", [1.5]], "prompt 1 holds 1.5"),
        (["ok", [True]], "prompt 1 holds True"),
        (["ok", None], "prompt 1 is a NoneType; give a string or a list of token ids"),
        (7, "prompts is a int; give a string, or a list of prompts"),
        ([1, 2, 3], "prompt 0 is a int; give a string or a list of token ids"),
        ("x" * 256, "the prompt is 256 tokens long; this engine holds 256 tokens of prompt and output"),
    ],
)
def test_impossible_prompts_are_refused_by_name(prompt, message):
    runner = FakeRunner()
    with FakeLLM(runner) as llm, pytest.raises(InvalidInput, match=message):
        llm.generate([prompt] if prompt == [] else prompt, FOUR)
    assert runner.plans == []


@pytest.mark.parametrize(
    "params, message",
    [
        ([FOUR], "params is 1 of them for 2 prompts"),
        ({"max_tokens": 4}, "params is a dict for 2 prompts"),
        ([FOUR, None], None),
        ([FOUR, {"max_tokens": 4}], "params is a dict; give SamplingParams"),
        (SamplingParams(stop_token_ids=[300]), "stop_token_ids holds 300; this model's ids are 0 to 256"),
    ],
)
def test_impossible_params_are_refused(params, message):
    with FakeLLM() as llm:
        if message is None:
            assert len(llm.generate(["ab", "cd"], params)) == 2
            return
        with pytest.raises(InvalidInput, match=message):
            llm.generate(["ab", "cd"], params)


def test_max_tokens_end_with_the_context():
    with FakeLLM() as llm:
        (output,) = llm.generate("x" * 250, SamplingParams(max_tokens=1000, min_tokens=900))
    assert (len(output.outputs[0].token_ids), output.outputs[0].finish_reason) == (6, "length")


def test_one_failed_request_of_many():
    def say(completion, num_output):
        return -1 if completion.request.prompt_token_ids == [98] else echo(completion, num_output)

    with FakeLLM(FakeRunner(say)) as llm:
        outputs = llm.generate(["a", "b", "c"], FOUR)
    assert [output.outputs[0].finish_reason for output in outputs] == ["length", "error", "length"]
    assert [type(output.error) for output in outputs] == [type(None), StepError, type(None)]


def test_seeds_without_a_seed_are_the_engines():
    def say(completion, num_output):
        return completion.seed % 26 + 97

    texts = []
    for _ in range(2):
        with FakeLLM(FakeRunner(say)) as llm:
            texts.append([output.outputs[0].text for output in llm.generate(["x"] * 20, FOUR)])
    assert texts[0] == texts[1]
    assert len(set(texts[0])) > 5


def test_progress(capsys):
    seen = []
    with FakeLLM() as llm:
        llm.generate(["a", "b"], FOUR, progress=lambda done, total: seen.append((done, total)))
        llm.generate(["a", "b"], FOUR, progress=True)
    assert seen == [(0, 2), (1, 2), (2, 2)]
    assert capsys.readouterr().err.endswith("s\n")


def test_stats():
    with FakeLLM() as llm:
        llm.generate(["abcdefgh"] * 3, SamplingParams(max_tokens=5))
        llm.generate(["abcdefgh"], SamplingParams(max_tokens=5))
        stats = llm.stats()
    assert (stats.running, stats.waiting, stats.pages_in_use, stats.num_pages) == (0, 0, 0, 256)
    assert stats.output_tokens == 20
    assert stats.prompt_tokens + stats.prefix_hit_tokens == 32
    assert stats.prefix_query_tokens == 32
    assert stats.steps >= 6


def test_closed():
    llm = FakeLLM()
    llm.close()
    llm.close()
    with pytest.raises(EngineClosed, match="was closed"):
        llm.generate("abc")
    with pytest.raises(EngineClosed, match="was closed"):
        llm.stream("abc")


def test_a_forked_child_is_told_that_the_engine_runs_elsewhere():
    with FakeLLM() as llm:
        child = os.fork()
        if child == 0:  # whatever happens, it must not go on with the tests
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(20)
            try:
                llm.generate("abc")
            except EngineClosed as error:
                os._exit(0 if "forked" in str(error) else 2)
            finally:
                os._exit(3)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert llm.generate("abc", SamplingParams(max_tokens=3))[0].outputs[0].token_ids


def test_closing_from_another_thread_frees_who_waits():
    llm = FakeLLM(FakeRunner(step_s=0.002))
    threading.Timer(0.05, llm.close).start()
    (output,) = llm.generate("abc", SamplingParams(max_tokens=250))
    assert output.outputs[0].finish_reason == "abort"


def test_threads_end_when_the_engine_is_dropped():
    llm = FakeLLM()
    llm.generate("abc", FOUR)
    mine = [thread for thread in threading.enumerate() if thread.name.startswith("pagedserve")]
    del llm
    assert len(mine) == 2
    assert not any(thread.is_alive() for thread in mine)


CTRL_C = """
    import os, signal, threading
    from pagedserve import SamplingParams
    from tests.engine.engine_fakes import FakeLLM, FakeRunner
    LONG = SamplingParams(max_tokens=200)
    runner = FakeRunner(step_s=0.01)
    with FakeLLM(runner) as llm:
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        try:
            {call}
        except KeyboardInterrupt:
            print("interrupted", len(runner.plans) < 100)
            print(llm.generate("ab", SamplingParams(max_tokens=2))[0].outputs[0].text)
            raise
"""


@pytest.mark.parametrize(
    "call",
    [
        'llm.generate(["abc"] * 20, SamplingParams(max_tokens=200))',
        'list(llm.stream("a", SamplingParams(max_tokens=200)))',
    ],
    ids=["generate", "stream"],
)
def test_ctrl_c_ends_cleanly(call):
    result = subprocess.run(
        [sys.executable, "-c", program(CTRL_C.format(call=call))], capture_output=True, text=True, timeout=60
    )
    assert result.stdout == "interrupted True\nab\n"
    assert result.returncode == -2
    assert result.stderr.count("Traceback") == 1
    assert result.stderr.rstrip().endswith("KeyboardInterrupt")


def test_a_program_that_does_not_close_ends():
    code = 'from tests.engine.engine_fakes import FakeLLM; llm = FakeLLM(); s = llm.stream("abc"); print(next(s).text)'
    result = subprocess.run([sys.executable, "-c", program(code)], capture_output=True, text=True, timeout=60)
    assert (result.stdout, result.stderr, result.returncode) == ("a\n", "", 0)


def test_a_stream_dropped_late_leaves_another_of_its_id_alone():
    with FakeLLM(FakeRunner(step_s=0.001)) as llm:
        params = SamplingParams(max_tokens=3)
        channel = QueueChannel()
        request = llm._door.request([97], params, channel, id="same")
        llm._core.submit(request)
        old = Stream(request, channel, llm._core.cancel)
        while request.open:
            time.sleep(0.001)
        collector = Collector(1, lambda done: over.set())
        over = threading.Event()
        llm._core.submit(llm._door.request([98], SamplingParams(max_tokens=30), collector, id="same"))
        old.close()
        assert over.wait(10)
    assert collector.completions[0].finish_reason == "length"
