# SPDX-License-Identifier: Apache-2.0
"""A tiny random model on the CPU backend: a request's tokens and log probabilities depend on nothing but itself."""

import json
import random

import numpy as np
import pytest
import torch

from pagedserve import LLM, SamplingParams
from pagedserve.engine.limits import choose_limits
from pagedserve.errors import InvalidInput, RequestRejected
from pagedserve.eventlog.codec import read_log
from pagedserve.eventlog.replay import replay
from pagedserve.models import LoadedModel, load_model
from tests.models.model_tools import METADATA, SHAPES, TOKENS, write_gguf

CONTEXT = 384


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Layers are tiny here: two threads would only wait for one another."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PAGEDSERVE_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> LoadedModel:
    """Two layers, 32 wide, float32."""
    rng = np.random.default_rng(0)
    shapes = {name.replace("blk.0", f"blk.{layer}"): shape for name, shape in SHAPES.items() for layer in range(2)}
    tensors = {name: (rng.standard_normal(shape).astype(np.float32) / 3, None) for name, shape in shapes.items()}
    metadata = METADATA | {"llama.block_count": 2, "llama.context_length": CONTEXT}
    return load_model(write_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf", metadata, tensors))


def requests(seed: int, count: int) -> tuple[list[list[int]], list[SamplingParams]]:
    rng = random.Random(seed)
    shared = [rng.randrange(len(TOKENS)) for _ in range(290)]
    prompts, params = [], []
    for number in range(count):
        own = [rng.randrange(len(TOKENS)) for _ in range(rng.randrange(1, 30))]
        prompts.append(shared[: rng.choice((0, 3, 40, 290))] + own)
        sampled = {"temperature": 0.9, "seed": number, "top_p": 0.95} if number % 2 else {"temperature": 0.0}
        params.append(SamplingParams(max_tokens=rng.randrange(4, 24), logprobs=2, ignore_eos=True, **sampled))
    return prompts, params


def answers(tiny, prompts, params, **options):
    options = {"backend": "cpu", "kv_dtype": "float32", "max_seqs": 16, "num_pages": 400, "page_size": 8} | options
    with LLM(tiny, **options) as llm:
        outputs = llm.generate(prompts, params)
        return [(output.outputs[0].token_ids, output.outputs[0].logprobs) for output in outputs], llm.stats()


@pytest.fixture(scope="module")
def alone(tiny):
    """Each request by itself, nothing cached, whole prompts at once."""
    prompts, params = requests(1, 24)
    with LLM(
        tiny, kv_dtype="float32", max_seqs=1, max_step_tokens=512, prefix_cache=False, num_pages=60, backend="cpu"
    ) as llm:
        outputs = [llm.generate([prompt], [each])[0] for prompt, each in zip(prompts, params, strict=True)]
    assert [output.error for output in outputs] == [None] * 24
    return [(output.outputs[0].token_ids, output.outputs[0].logprobs) for output in outputs]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"prefix_cache": False},
        {"page_size": 1, "num_pages": 3000},
        {"page_size": 64, "max_step_tokens": 17, "num_pages": 100},
        {"num_pages": 60},
        {"num_pages": 60, "prefix_cache": False},
        {"num_pages": 60, "num_host_pages": 200},
    ],
    ids=["batch", "no prefix cache", "page size 1", "small chunks", "preempted", "preempted, no cache", "host pages"],
)
def test_tokens_and_logprobs_are_bit_for_bit_those_alone(tiny, alone, options):
    prompts, params = requests(1, 24)
    order = list(range(24))
    random.Random(str(options)).shuffle(order)
    got, stats = answers(tiny, [prompts[i] for i in order], [params[i] for i in order], **options)
    if options.get("num_pages") == 60:
        assert stats.preemptions > 0
    if options.get("prefix_cache", True):
        assert stats.prefix_hit_tokens > 300
    for place, i in enumerate(order):
        assert got[place] == alone[i]


def test_the_number_of_threads_changes_nothing(tiny, alone, monkeypatch):
    monkeypatch.setenv("PAGEDSERVE_THREADS", "3")
    prompts, params = requests(1, 24)
    assert answers(tiny, prompts[:8], params[:8])[0] == alone[:8]


@pytest.mark.parametrize("kv_dtype", ["bfloat16", "float16", "int8", "float8_e4m3fn", "int4"])
def test_other_kv_dtypes_depend_on_nothing_else_either(tiny, kv_dtype):
    prompts, params = requests(2, 12)
    one, _ = answers(tiny, prompts, params, kv_dtype=kv_dtype, max_seqs=1)
    batch, _ = answers(tiny, prompts, params, kv_dtype=kv_dtype)
    assert batch == one


def test_logprobs_are_those_of_the_reference(tiny):
    prompts, params = requests(3, 6)
    ours, _ = answers(tiny, prompts, params)
    reference, _ = answers(tiny, prompts, params, backend="reference")
    for (tokens, logprobs), (wanted, wanted_logprobs) in zip(ours, reference, strict=True):
        assert tokens == wanted
        got = torch.tensor([entry.logprob for entry in logprobs])
        assert torch.allclose(got, torch.tensor([entry.logprob for entry in wanted_logprobs]), atol=1e-4)


def test_n_completions_are_those_of_their_seeds(tiny):
    prompts, _ = requests(4, 1)
    params = SamplingParams(max_tokens=12, seed=5, n=4, ignore_eos=True)
    with LLM(tiny, max_seqs=8, num_pages=100) as llm:
        together = llm.generate(prompts, params)[0].outputs
        singles = [
            llm.generate(prompts, SamplingParams(max_tokens=12, seed=5 + i, ignore_eos=True))[0] for i in range(4)
        ]
    assert [completion.token_ids for completion in together] == [single.outputs[0].token_ids for single in singles]
    assert len({tuple(completion.token_ids) for completion in together}) > 1


def test_the_event_log_replays(tiny, tmp_path):
    path = tmp_path / "events.jsonl"
    prompts, params = requests(5, 10)
    answers(tiny, prompts, params, event_log=path, num_pages=60)
    with open(path, encoding="utf-8") as lines:
        config, records = read_log(lines)
        records = list(records)
    again = list(replay(config, [record for record, _ in records]))
    assert [decisions for _, decisions in records] == [decisions for decisions, _ in again]
    assert sum(plan is not None for _, plan in again) > 10
    assert json.loads(path.read_text().splitlines()[0])["config"]["num_pages"] == 60


@pytest.mark.parametrize(
    "options, message",
    [
        ({"page_size": 0}, "page_size is 0; give a whole number of at least 1"),
        ({"max_seqs": True}, "max_seqs is True"),
        ({"num_pages": 2.0}, "num_pages is 2.0"),
        ({"max_model_len": CONTEXT + 1}, f"this model's context is {CONTEXT} tokens"),
        ({"num_pages": 3, "max_model_len": 100}, "3 pages of 16 tokens hold 48"),
        ({"num_pages": 3, "memory_bytes": 100}, "both given"),
        ({"memory_bytes": 100}, "one page of this model takes"),
        ({"max_seqs": 64, "max_step_tokens": 63}, "give at least max_seqs"),
        ({"backend": "nonsense"}, "there is no backend 'nonsense'; choose from auto, .*reference"),
        (
            {"backend": "cuda"},
            "'cuda' cannot run a model on cpu tensors: it has no embed, .*auto, cpu, reference",
        ),
        ({"kv_dtype": "float64"}, "kv_dtype is 'float64'; supported: auto, float32, bfloat16"),
        ({"prefix_cache": 1}, "prefix_cache is 1; give True or False"),
        ({"seed": 0.5}, "seed is 0.5"),
        ({"max_queue": -1}, "max_queue must be an int of at least 0, or None; got -1"),
        ({"tpot_target_s": "soon"}, "tpot_target_s must be seconds above 0, or None; got 'soon'"),
        ({"tenants": ["a"]}, "tenants must be names with finite weights above 0"),
        ({"dtype": "float32"}, "dtype and quantize are chosen when a model is loaded"),
        ({"event_log": "/nowhere/log"}, "event_log '/nowhere/log' cannot be written: No such file"),
    ],
)
def test_impossible_engines_are_refused(tiny, options, message):
    with pytest.raises(InvalidInput, match=message):
        LLM(tiny, **options)


def test_what_no_model_could_have_is_refused_before_one_is_read():
    for options in ({"backend": "nonsense"}, {"kv_dtype": "int3"}):
        with pytest.raises(InvalidInput, match=next(iter(options.values()))):
            LLM("no-such-model.gguf", **options)


@pytest.mark.parametrize("model", [None, 7, ["a"]])
def test_what_is_no_model_is_refused(model):
    with pytest.raises(InvalidInput, match="give a path, a name, or what load_model returned"):
        LLM(model)


def test_sizes_left_open(tiny):
    def limits(page_bytes, **given):
        sizes = {"page_size": 16, "num_pages": None, "memory_bytes": None, "num_host_pages": 0, "max_seqs": 4}
        sizes |= {"max_step_tokens": 64, "max_model_len": None} | given
        return choose_limits(tiny.config, lambda page_size: page_bytes, **sizes)

    assert (limits(1000).num_pages, limits(1000).max_model_len) == (4 * CONTEXT // 16, CONTEXT)
    assert limits(1000, memory_bytes=5999).num_pages == 5
    assert limits(1000, memory_bytes=5999).max_model_len == 80
    assert limits(1000, max_model_len=33).max_pages == 3
    assert limits(1000, max_model_len=33).num_pages == 12
    assert 1 <= limits(2**30).num_pages < 96


def test_tenants_and_deadlines_are_promises_of_the_engine(tiny):
    with LLM(tiny, tenants={"known": 1.0}, tpot_target_s=0.5) as llm:
        known, stranger, hasty = llm.generate(
            [[1, 2, 3]] * 3,
            [
                SamplingParams(max_tokens=4, tenant="known", ttft_deadline_s=60.0, ignore_eos=True),
                SamplingParams(max_tokens=4, tenant="stranger"),
                SamplingParams(max_tokens=4, tenant="known", ttft_deadline_s=1e-9),
            ],
        )
    assert len(known.outputs[0].token_ids) == 4
    assert isinstance(stranger.error, RequestRejected)
    assert stranger.error.reason == "invalid"
    assert "tenant 'stranger' is unknown; known: known" in str(stranger.error)
    assert isinstance(hasty.error, RequestRejected)
    assert hasty.error.reason == "deadline"
