# SPDX-License-Identifier: Apache-2.0
"""The runner under the real scheduler, on a model that sees every token through its pages."""

import random
from queue import SimpleQueue

import numpy as np
import pytest
import torch
from scheduler_audit import audit

from pagedserve.engine.channels import Collector
from pagedserve.engine.core import EngineCore
from pagedserve.engine.requests import Request
from pagedserve.engine.runner import ModelRunner
from pagedserve.engine.sampling import SamplingParams
from pagedserve.ops import StepLimits, sample
from pagedserve.scheduling.scheduler import Scheduler
from tests.engine.engine_fakes import make_config
from tests.engine.symbolic_model import SymbolicPool, SymbolicStep, hash_logits

VOCAB_SIZE = 50


class NoText:
    def push(self, token_id):
        return ""

    def flush(self):
        return ""


def start(**changes):
    config = make_config(**changes)
    limits = StepLimits(
        max_tokens=config.max_step_tokens,
        max_seqs=config.max_seqs,
        max_pages=-(-config.max_model_len // config.page_size),
        max_rows=config.max_seqs,
    )
    pool = SymbolicPool(config.num_pages, config.page_size, config.num_host_pages)
    step = SymbolicStep(pool, limits, VOCAB_SIZE)
    runner = ModelRunner(step, pool, max_len=config.max_model_len, backend="reference")
    return EngineCore(Scheduler(config), runner), step


def submit(core, done, name, prompt, eos=(), **params):
    params = SamplingParams(**params)
    collector = Collector(params.n, done.put)
    collector.prompt, collector.params = prompt, params
    core.submit(
        Request(
            id=str(name),
            prompt_token_ids=prompt,
            params=params,
            max_tokens=params.max_tokens,
            eos_token_ids=frozenset(eos),
            seed=params.seed or 0,
            channel=collector,
            detokenizer=NoText,
            arrival_s=core.clock(),
        )
    )
    return collector


def finish(core, done, collectors):
    for _ in collectors:
        done.get(timeout=20)
    assert core.counters.failed_steps == 0
    audit(core._scheduler)
    core.close()


def expected(prompt, params, seed, eos=()):
    """The tokens of a request alone, one by one, from the definition of sample."""
    tokens = list(prompt)
    for number in range(params.max_tokens):
        logits = torch.from_numpy(hash_logits(tokens, VOCAB_SIZE))[None]
        stops = [*params.stop_token_ids, *eos]
        if number < params.min_tokens and stops:
            logits[0, stops] = -torch.inf
        chosen = sample(
            logits,
            **{
                name: torch.tensor([value], dtype=dtype)
                for name, value, dtype in (
                    ("temperature", params.temperature, torch.float32),
                    ("top_k", params.top_k, torch.int32),
                    ("top_p", params.top_p, torch.float32),
                    ("min_p", params.min_p, torch.float32),
                    ("repetition", params.repetition_penalty, torch.float32),
                    ("presence", params.presence_penalty, torch.float32),
                    ("frequency", params.frequency_penalty, torch.float32),
                    ("seeds", np.uint64(seed).astype(np.int64), torch.int64),
                    ("offsets", len(tokens), torch.int64),
                )
            },
            history=torch.tensor(tokens, dtype=torch.int32),
            history_starts=torch.tensor([0, len(tokens)], dtype=torch.int32),
            output_starts=torch.tensor([len(prompt)], dtype=torch.int32),
            backend="reference",
        )
        tokens.append(int(chosen.tokens[0]))
        if tokens[-1] in stops:
            break
    return tokens[len(prompt) :]


def check(collectors, eos=()):
    for collector in collectors:
        assert collector.error is None
        for completion in collector.completions:
            seed = ((collector.params.seed or 0) + completion.index) % 2**64
            assert completion.token_ids == expected(collector.prompt, collector.params, seed, eos)


def random_request(rng, prompts):
    prompt = list(rng.choice(prompts)) if rng.random() < 0.5 else []
    prompt = prompt + [rng.randrange(VOCAB_SIZE) for _ in range(rng.randrange(0 if prompt else 1, 20))]
    params = {"max_tokens": rng.randrange(1, 24), "temperature": 0.0}
    if rng.random() < 0.5:
        params |= {"temperature": rng.uniform(0.3, 2), "seed": rng.randrange(2**64), "top_k": rng.choice((0, 3, 10))}
        params |= {"top_p": rng.choice((1.0, 0.8)), "min_p": rng.choice((0.0, 0.1)), "n": rng.choice((1, 1, 3))}
    if rng.random() < 0.3:
        params |= {"repetition_penalty": 1.4, "presence_penalty": 0.5, "frequency_penalty": -0.3}
    if rng.random() < 0.3:
        params |= {"stop_token_ids": [rng.randrange(VOCAB_SIZE) for _ in range(5)]}
        params |= {"min_tokens": rng.randrange(min(8, params["max_tokens"]))}
    return prompt, params


@pytest.mark.parametrize(
    "limits",
    [
        {},
        {"prefix_cache": False},
        {"page_size": 1, "num_pages": 400},
        {"page_size": 7, "max_step_tokens": 9, "max_seqs": 5},
        {"num_pages": 17, "watermark": 0.0},
        {"num_pages": 17, "watermark": 0.0, "prefix_cache": False},
        {"num_pages": 17, "watermark": 0.0, "num_host_pages": 40, "swap_page_tokens": 0.0},
    ],
    ids=[
        "plain",
        "no prefix cache",
        "page size 1",
        "small steps",
        "preempted",
        "preempted, no prefix cache",
        "swapped",
    ],
)
def test_tokens_are_those_of_each_request_alone(limits):
    rng = random.Random(str(limits))
    core, _ = start(**limits)
    done = SimpleQueue()
    prompts = [[rng.randrange(VOCAB_SIZE) for _ in range(length)] for length in (5, 16, 23)]
    collectors = []
    for name in range(18):
        prompt, params = random_request(rng, prompts)
        collectors.append(submit(core, done, name, prompt, eos=(7,), **params))
    finish(core, done, collectors)
    if "num_pages" in limits and limits["num_pages"] == 17:
        assert core._scheduler.stats().preemptions > 0
    if "num_host_pages" in limits:
        assert core._scheduler.stats().swaps > 0
    check(collectors, eos=(7,))


def test_aborts_leave_the_others_tokens_alone():
    rng = random.Random(3)
    core, _ = start(num_pages=40, watermark=0.0)
    done = SimpleQueue()
    aborted, kept = [], []
    for name in range(18):
        prompt, params = random_request(rng, [[1, 2, 3, 4, 5]])
        mine = kept if name % 2 else aborted
        mine.append(submit(core, done, name, prompt, **params))
        if name % 2 == 0 and rng.random() < 0.7:
            core.abort(str(name))
    finish(core, done, aborted + kept)
    check(kept)
    for collector in aborted:
        for completion in collector.completions:
            seed = ((collector.params.seed or 0) + completion.index) % 2**64
            whole = expected(collector.prompt, collector.params, seed)
            assert completion.token_ids == whole[: len(completion.token_ids)]


def test_logprobs_are_log_softmax_of_the_raw_logits():
    core, _ = start()
    done = SimpleQueue()
    collectors = [
        submit(core, done, top, [3, 1, 4], max_tokens=6, seed=top, logprobs=top, repetition_penalty=1.5)
        for top in (0, 1, 5, 20)
    ]
    plain = submit(core, done, "plain", [3, 1, 4], max_tokens=6, temperature=0)
    finish(core, done, [*collectors, plain])
    assert plain.completions[0].logprobs is None
    for collector in collectors:
        (completion,) = collector.completions
        tokens = list(collector.prompt)
        for entry in completion.logprobs:
            wanted = torch.log_softmax(torch.from_numpy(hash_logits(tokens, VOCAB_SIZE)), 0)
            assert entry.logprob == pytest.approx(float(wanted[entry.token_id]), abs=1e-5)
            values, ids = wanted.topk(collector.params.logprobs)
            assert [token for token, _ in entry.top] == ids.tolist()
            assert [value for _, value in entry.top] == pytest.approx(values.tolist(), abs=1e-5)
            tokens.append(entry.token_id)
        assert tokens[3:] == completion.token_ids
        assert completion.cumulative_logprob == pytest.approx(sum(entry.logprob for entry in completion.logprobs))


def test_nan_logits_fail_their_request_alone():
    core, step = start()
    done = SimpleQueue()
    run = step.run

    def poisoned(num_tokens, num_seqs, num_rows):
        logits = run(num_tokens, num_seqs, num_rows)
        for i, token in enumerate(step.inputs.logit_rows[:num_rows].tolist()):
            if int(step.inputs.token_ids[token]) == 49:
                logits[i] = torch.nan
        return logits

    step.run = poisoned
    bad = submit(core, done, "bad", [1, 2, 49], max_tokens=5, temperature=0)
    good = [submit(core, done, i, [1, 2, i], max_tokens=5, temperature=0, stop_token_ids=[49]) for i in range(5)]
    finish(core, done, [bad, *good])
    assert "no logit was a number" in str(bad.error)
    check(good)


def test_a_step_that_fails_once_is_computed_again():
    core, step = start()
    done = SimpleQueue()
    run, failed = step.run, []

    def shaky(num_tokens, num_seqs, num_rows):
        if num_rows > 3 + len(failed):  # more rows than one, which would fail its request
            failed.append(num_rows)
            raise MemoryError("for once")
        return run(num_tokens, num_seqs, num_rows)

    step.run = shaky
    collectors = [submit(core, done, i, [i, 2, 3], max_tokens=8, temperature=0, n=2) for i in range(4)]
    for _ in collectors:
        done.get(timeout=20)
    core.close()
    assert core.counters.failed_steps == len(failed) > 1
    check(collectors)
