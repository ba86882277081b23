# SPDX-License-Identifier: Apache-2.0
"""The asyncio face on a fake runner: many callers, none of them in another's way."""

import asyncio
import contextlib
import subprocess
import sys
import threading

import pytest

from pagedserve import SamplingParams
from pagedserve.errors import EngineClosed, InvalidInput, RequestRejected
from tests.engine.engine_fakes import FakeAsyncEngine, FakeRunner, program

WAIT_S = 20


def run(main):
    return asyncio.run(asyncio.wait_for(main, WAIT_S))


async def text_of(stream):
    return "".join([delta.text async for delta in stream])


async def until(condition):
    while not condition():
        await asyncio.sleep(0.001)


def test_many_callers():
    async def main():
        async with FakeAsyncEngine(max_seqs=5) as engine:
            streams = [engine.generate(f"{i}|", SamplingParams(max_tokens=12, n=1)) for i in range(40)]
            return await asyncio.gather(*map(text_of, streams))

    assert run(main()) == [(f"{i}|" * 12)[:12] for i in range(40)]


def test_deltas_add_up_and_end_with_metrics():
    async def main():
        async with FakeAsyncEngine() as engine:
            return [delta async for delta in engine.generate("abc", SamplingParams(max_tokens=9, n=3, logprobs=0))]

    deltas = run(main())
    for index in range(3):
        mine = [delta for delta in deltas if delta.index == index]
        assert "".join(delta.text for delta in mine) == "abcabcabc"
        assert [token for delta in mine for token in delta.token_ids] == list(b"abcabcabc")
        assert sum(len(delta.logprobs) for delta in mine) == 9
        assert [delta.finish_reason for delta in mine[:-1]] == [None] * (len(mine) - 1)
        assert (mine[-1].finish_reason, mine[-1].metrics.num_output_tokens) == ("length", 9)


def test_chat_messages():
    async def main():
        async with FakeAsyncEngine() as engine:
            return await text_of(engine.generate([{"role": "user", "content": "x"}], SamplingParams(max_tokens=7)))

    assert run(main()) == "user: x"


def test_abort_by_id():
    async def main():
        async with FakeAsyncEngine(FakeRunner(step_s=0.001)) as engine:
            stream = engine.generate("abc", SamplingParams(max_tokens=250), id="mine")
            first = await anext(stream)
            assert engine.abort("mine")
            rest = [delta async for delta in stream]
            assert not engine.abort("mine")
            return stream.id, first, rest

    id, first, rest = run(main())
    assert (id, first.text[0], rest[-1].finish_reason) == ("mine", "a", "abort")


@pytest.mark.parametrize("how", ["cancel", "close", "drop", "timeout"])
def test_a_consumer_that_leaves_aborts_its_request(how):
    async def main():
        async with FakeAsyncEngine(FakeRunner(step_s=0.001), max_seqs=1) as engine:
            stream = engine.generate("abc", SamplingParams(max_tokens=250))
            await anext(stream)
            if how == "cancel":
                task = asyncio.create_task(text_of(stream))
                await asyncio.sleep(0.01)
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
            elif how == "close":
                await stream.aclose()
            elif how == "drop":
                del stream
            else:
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(text_of(stream), 0.01)
            await until(lambda: engine.stats().running == 0)
            return engine.stats().output_tokens

    assert run(main()) < 200


def test_a_slow_consumer_blocks_nobody_and_misses_nothing():
    async def main():
        async with FakeAsyncEngine() as engine:
            slow = engine.generate("abc", SamplingParams(max_tokens=200, logprobs=1))
            fast = await text_of(engine.generate("xyz", SamplingParams(max_tokens=200)))
            await until(lambda: engine.stats().running == 0)
            return fast, [delta async for delta in slow]

    fast, slow = run(main())
    assert fast == ("xyz" * 70)[:200]
    assert "".join(delta.text for delta in slow) == ("abc" * 70)[:200]
    assert len(slow) == 1
    assert len(slow[0].logprobs) == 200


def test_refusals_touch_nobody():
    async def main():
        async with FakeAsyncEngine(num_pages=20) as engine:
            good = asyncio.create_task(text_of(engine.generate("abc", SamplingParams(max_tokens=30), id="good")))
            with pytest.raises(InvalidInput, match="the prompt is empty"):
                engine.generate("")
            with pytest.raises(InvalidInput, match="'good' is still in the engine"):
                engine.generate("abc", id="good")
            for id in ("", "good#1", 7):
                with pytest.raises(InvalidInput, match=f"id is {id!r}"):
                    engine.generate("abc", id=id)
            with pytest.raises(RequestRejected, match="20; shorten the prompt") as refused:
                await text_of(engine.generate("abc", SamplingParams(max_tokens=200)))
            assert refused.value.reason == "never_fits"
            return await good

    assert run(main()) == "abc" * 10


def test_the_engines_death_reaches_every_stream():
    class Dying(FakeRunner):
        def prepare(self, plan):
            if plan.step == 5:
                raise OSError("gone")
            super().prepare(plan)

    async def main():
        engine = FakeAsyncEngine(Dying(), max_seqs=2)
        streams = [text_of(engine.generate("abc", SamplingParams(max_tokens=50))) for _ in range(5)]
        results = await asyncio.gather(*streams, return_exceptions=True)
        assert all(isinstance(result, EngineClosed) for result in results)
        with pytest.raises(EngineClosed, match="died of OSError: gone"):
            engine.generate("abc")
        await engine.close()

    run(main())


def test_close_drains_or_aborts():
    async def main(drain):
        engine = FakeAsyncEngine(FakeRunner(step_s=0.001))
        stream = engine.generate("abc", SamplingParams(max_tokens=100))
        await anext(stream)
        await engine.close(drain=drain)
        deltas = [delta async for delta in stream]
        with pytest.raises(EngineClosed, match="was closed"):
            engine.generate("abc")
        return deltas[-1].finish_reason

    assert run(main(True)) == "length"
    assert run(main(False)) == "abort"


def test_an_event_loop_that_ended_takes_nobody_along():
    engine = FakeAsyncEngine(FakeRunner(step_s=0.001))
    left = []

    async def leave():
        left.append(engine.generate("abc", SamplingParams(max_tokens=250)))
        await anext(left[0])

    run(leave())
    results = {}

    def other(number):
        results[number] = run(text_of_new(number))

    async def text_of_new(number):
        return await text_of(engine.generate(f"{number}", SamplingParams(max_tokens=5)))

    threads = [threading.Thread(target=other, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {number: str(number) * 5 for number in range(4)}
    run(engine.close())


CTRL_C = """
    import asyncio, os, signal, threading
    from pagedserve import SamplingParams
    from tests.engine.engine_fakes import FakeAsyncEngine, FakeRunner

    async def main():
        async with FakeAsyncEngine(FakeRunner(step_s=0.005)) as engine:
            threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
            async for delta in engine.generate("abc", SamplingParams(max_tokens=250)):
                pass
            print("not interrupted")

    asyncio.run(main())
"""


def test_ctrl_c_ends_cleanly():
    result = subprocess.run([sys.executable, "-c", program(CTRL_C)], capture_output=True, text=True, timeout=60)
    assert (result.stdout, result.returncode) == ("", -2)
    assert result.stderr.rstrip().endswith("KeyboardInterrupt")
