# SPDX-License-Identifier: Apache-2.0
"""The CPU kernel of sample against its definition in plain torch, on every instruction set of this processor."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pagedserve import _C
from pagedserve.backends.operands import operand_names
from pagedserve.backends.reference import sampling

ISAS = _C.supported_isas()
TEAMS = {num_threads: _C.Team(num_threads) for num_threads in (1, 2)}
NAN, INF = float("nan"), float("inf")
# float32 log_softmax of torch itself is 9e-6 off over 49152 tokens.
LOGPROB_ERROR = {"rtol": 2e-6, "atol": 2e-5}
POISON_TOKEN, POISON = -7777, 1234.5

all_isas = pytest.mark.parametrize("isa", ISAS, ids=lambda isa: isa.name)


def inputs(logits: Tensor, *, num_top: int = 0, history: list[tuple[list[int], list[int]]] | None = None, **given):
    """Tensors of a call: every filter off where not given, results poisoned. history: (prompt, output) of each row."""
    num_rows = len(logits)
    history = history or [([], [])] * num_rows
    starts = np.cumsum([0] + [len(prompt) + len(output) for prompt, output in history])
    dtypes = {"top_k": torch.int32, "seeds": torch.int64, "offsets": torch.int64}
    defaults = dict.fromkeys(["temperature", "top_k", "min_p", "presence", "frequency", "seeds", "offsets"], 0)
    defaults |= {"top_p": 1, "repetition": 1} | given
    call = {
        name: torch.as_tensor(value).to(dtypes.get(name, torch.float32)).expand(num_rows).contiguous()
        for name, value in defaults.items()
    }
    flat = [token for prompt, output in history for token in prompt + output]
    return {
        "logits": logits,
        **call,
        "history": torch.tensor(flat, dtype=torch.int32),
        "history_starts": torch.tensor(starts, dtype=torch.int32),
        "output_starts": torch.tensor(
            [start + len(prompt) for start, (prompt, _) in zip(starts, history, strict=False)], dtype=torch.int32
        ),
        "tokens": torch.full((num_rows,), POISON_TOKEN, dtype=torch.int32),
        "logprobs": torch.full((num_rows,), POISON),
        "top_tokens": torch.full((num_rows, num_top), POISON_TOKEN, dtype=torch.int32),
        "top_logprobs": torch.full((num_rows, num_top), POISON),
    }


def run_cpu(call: dict[str, Tensor], isa=None, num_threads: int = 2) -> dict[str, Tensor]:
    """The results of the kernel; call's own result tensors stay as they are."""
    results = {name: call[name].clone() for name in ("tokens", "logprobs", "top_tokens", "top_logprobs")}
    logits = call["logits"]
    params = _C.SampleParams(
        logits_stride=logits.stride(0),
        num_rows=logits.shape[0],
        vocab_size=logits.shape[1],
        num_top=call["top_tokens"].shape[1],
        **{name: tensor.data_ptr() for name, tensor in (call | results).items()},
    )
    _C.sample(params, TEAMS[num_threads], isa or _C.detect_isa())
    return results


def run_reference(call: dict[str, Tensor]) -> dict[str, Tensor]:
    results = {name: call[name].clone() for name in ("tokens", "logprobs", "top_tokens", "top_logprobs")}
    operands = call | results
    sampling.sample(*(operands[name] for name in operand_names("sample")))
    return results


def near_tie(call: dict[str, Tensor], row: int, ours: int, theirs: int) -> bool:
    """Whether rounding alone explains two choices: equal scores, or a filter's border, to a part in 10^5."""
    single = {name: tensor[row : row + 1] for name, tensor in call.items() if name not in ("history", "history_starts")}
    raw = torch.where(single["logits"][0].isfinite(), single["logits"][0], -INF)
    begin, middle, end = (
        int(call[n][i]) for n, i in (("history_starts", row), ("output_starts", row), ("history_starts", row + 1))
    )
    logits = sampling.penalise(
        raw,
        call["history"][begin:middle].long(),
        call["history"][middle:end].long(),
        **{name: single[name][0] for name in ("repetition", "presence", "frequency")},
    )
    scaled = (logits - logits.max()) / single["temperature"][0]
    noise = sampling.gumbel_noise(int(single["seeds"]), int(single["offsets"]), len(raw))
    score = scaled + noise
    if abs(float(score[ours] - score[theirs])) <= 1e-5:
        return True
    top_k, top_p, min_p = (float(single[name]) for name in ("top_k", "top_p", "min_p"))
    loose = sampling.keep(scaled, int(top_k), min(top_p + 1e-5, 1.0), min_p * (1 - 1e-5))
    tight = sampling.keep(scaled, int(top_k), top_p - 1e-5, min_p * (1 + 1e-5))
    return bool(loose[ours] and loose[theirs] and not (tight[ours] and tight[theirs]))


def assert_same(call: dict[str, Tensor], got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    for row, (ours, theirs) in enumerate(zip(got["tokens"].tolist(), want["tokens"].tolist(), strict=True)):
        if ours != theirs:
            assert float(call["temperature"][row]) > 0, f"greedy row {row}: {ours} instead of {theirs}"
            assert ours >= 0, f"row {row}: {ours} instead of {theirs}"
            assert near_tie(call, row, ours, theirs), f"row {row}: {ours} instead of {theirs}"
        else:
            torch.testing.assert_close(got["logprobs"][row], want["logprobs"][row], **LOGPROB_ERROR)
    assert got["top_tokens"].tolist() == want["top_tokens"].tolist()
    torch.testing.assert_close(got["top_logprobs"], want["top_logprobs"], **LOGPROB_ERROR)


@st.composite
def calls(draw) -> dict[str, Tensor]:
    num_rows = draw(st.integers(1, 4))
    vocab_size = draw(st.sampled_from([1, 2, 5, 63, 64, 65, 300, 4096, 4097, 9000]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    logits = torch.randn(num_rows, vocab_size, generator=generator) * draw(st.sampled_from([0.0, 1e-3, 1.0, 5.0, 1e4]))
    if draw(st.booleans()):
        logits = logits.round()  # ties
    for value in draw(st.lists(st.sampled_from([NAN, INF, -INF, 3e38, -3e38]), max_size=3)):
        logits[torch.rand(logits.shape, generator=generator) < 0.1] = value
    tokens = st.lists(st.integers(0, vocab_size - 1), max_size=6)
    off_or = lambda off, *on: st.lists(st.sampled_from([off, *on]), min_size=num_rows, max_size=num_rows)  # noqa: E731
    return inputs(
        logits,
        num_top=draw(st.sampled_from([0, 1, 5, 400])),
        history=draw(st.lists(st.tuples(tokens, tokens), min_size=num_rows, max_size=num_rows)),
        temperature=draw(off_or(0.0, 1e-3, 0.7, 1.0, 50.0)),
        top_k=draw(off_or(0, -1, 1, 2, 40, 5000)),
        top_p=draw(off_or(1.0, 0.0, 0.3, 0.9, 0.999)),
        min_p=draw(off_or(0.0, 0.05, 0.9, 1.0)),
        repetition=draw(off_or(1.0, 0.5, 1.3)),
        presence=draw(off_or(0.0, -1.0, 0.4)),
        frequency=draw(off_or(0.0, -0.2, 1.1)),
        seeds=draw(off_or(0, 1, -1, 2**63 - 1, 0xDEADBEEF12345678 - 2**64)),
        offsets=draw(off_or(0, 7, 2**33 + 5)),
    )


@settings(max_examples=150, deadline=None)
@given(calls(), st.sampled_from(ISAS))
def test_equals_the_definition(call, isa):
    assert_same(call, run_cpu(call, isa), run_reference(call))


@all_isas
def test_a_real_vocabulary(isa):
    logits = torch.randn(6, 49152, generator=torch.Generator().manual_seed(3)) * 4
    history = [(list(range(100, 200)), [5, 5, 5, 7])] * 6
    call = inputs(
        logits,
        num_top=20,
        history=history,
        temperature=torch.tensor([0, 0, 1.0, 0.7, 1.0, 100.0]),
        top_k=torch.tensor([0, 0, 0, 50, 20000, 0]),
        top_p=torch.tensor([1, 1, 1, 0.9, 0.95, 0.5]),
        min_p=torch.tensor([0, 0, 0, 0.02, 0, 0]),
        repetition=torch.tensor([1, 1.2, 1, 1.1, 1, 1.3]),
        seeds=torch.arange(6),
        offsets=torch.arange(6) + 100,
    )
    assert_same(call, run_cpu(call, isa), run_reference(call))


@all_isas
def test_the_lowest_id_wins_a_tie(isa):
    logits = torch.zeros(1, 9000)
    logits[0, [8999, 5000, 4100]] = 2.0
    greedy = run_cpu(inputs(logits, num_top=5), isa)
    assert greedy["tokens"].tolist() == [4100]
    assert greedy["top_tokens"].tolist() == [[4100, 5000, 8999, 0, 1]]
    drawn = {int(run_cpu(inputs(logits, temperature=1.0, top_k=2, seeds=seed), isa)["tokens"]) for seed in range(40)}
    assert drawn == {4100, 5000}
    flat = torch.zeros(1, 1000)
    drawn = {int(run_cpu(inputs(flat, temperature=1.0, top_p=0.0035, seeds=seed), isa)["tokens"]) for seed in range(80)}
    assert drawn == {0, 1, 2, 3}


@all_isas
def test_values_that_are_not_finite_are_never_chosen(isa):
    logits = torch.full((6, 300), NAN)
    logits[1] = -INF
    logits[2] = INF
    logits[3, 7] = -3e38
    logits[4, ::2] = 1.0
    logits[5] = torch.arange(300.0)
    logits[5, 299], logits[5, 298] = INF, NAN
    for temperature in (0.0, 1.0):
        got = run_cpu(inputs(logits, temperature=temperature, top_k=3, num_top=2), isa)
        assert got["tokens"][:4].tolist() == [-1, -1, -1, 7]
        assert got["logprobs"][:4].tolist() == [-INF, -INF, -INF, 0.0]
        assert got["top_tokens"].tolist() == [[-1, -1], [-1, -1], [-1, -1], [7, -1], [0, 2], [297, 296]]
        assert int(got["tokens"][4]) in (0, 2, 4)
        assert int(got["tokens"][5]) in (297, 296, 295)


@all_isas
def test_draws_follow_the_distribution(isa):
    """Pearson's statistic of 60,000 draws over 12 tokens stays below its 99.99 % quantile for 11 degrees, 37.4."""
    num_draws = 60_000
    logits = torch.tensor([2.0, 1.5, 1.0, 0.5, 0.0, -0.5, -1.0, -1.5, 0.25, 0.75, -0.25, 1.25])
    call = inputs(logits.expand(num_draws, -1).contiguous(), temperature=0.8, seeds=99, offsets=torch.arange(num_draws))
    counts = torch.bincount(run_cpu(call, isa)["tokens"].long(), minlength=len(logits)).double()
    expected = torch.softmax(logits.double() / 0.8, 0) * num_draws
    assert float(((counts - expected) ** 2 / expected).sum()) < 37.4


@all_isas
def test_a_row_depends_on_itself_alone(isa):
    """Neighbours, place, threads, stride and what stands behind the row change no bit."""
    logits = torch.randn(9, 5000, generator=torch.Generator().manual_seed(1)) * 3
    per_row = {"temperature": torch.arange(9) % 3 / 2, "top_p": 0.8, "seeds": torch.arange(9), "offsets": 4}
    history = [([row], [row + 1, row + 1]) for row in range(9)]
    call = inputs(logits, num_top=3, history=history, repetition=1.2, **per_row)
    together = run_cpu(call, isa)
    for row in range(9):
        wide = torch.full((1, 5100), NAN)
        wide[0, :5000] = logits[row]
        one_row = {name: value[row] if torch.is_tensor(value) else value for name, value in per_row.items()}
        alone = inputs(wide[:, :5000], num_top=3, history=history[row : row + 1], repetition=1.2, **one_row)
        for num_threads in TEAMS:
            got = run_cpu(alone, isa, num_threads)
            for name in got:
                assert torch.equal(got[name][0], together[name][row]), name


@all_isas
def test_penalties_count_prompt_and_output_as_defined(isa):
    logits = torch.tensor([[1.0, 0.9, -1.0, 0.8]])
    chosen = lambda **given: int(run_cpu(inputs(logits, **given), isa)["tokens"])  # noqa: E731
    assert chosen() == 0
    assert chosen(history=[([0], [])], repetition=1.5) == 1  # the prompt counts
    assert chosen(history=[([0], [])], presence=5.0, frequency=5.0) == 0  # the prompt does not count
    assert chosen(history=[([], [0])], presence=0.15) == 1
    assert chosen(history=[([], [0, 1])], presence=0.3) == 3
    assert chosen(history=[([], [0, 1, 1])], frequency=0.11) == 0  # 0.89, 0.68, 0.8
    assert chosen(history=[([], [0, 0, 1])], frequency=0.11) == 3  # 0.78, 0.79, 0.8
