# SPDX-License-Identifier: Apache-2.0
"""A sampler is sample(), checked once."""

import pytest
import torch

from pagedserve import ops
from pagedserve.errors import InvalidInput


def parameters(num_rows: int) -> dict[str, torch.Tensor]:
    ones, zeros = torch.ones(num_rows), torch.zeros(num_rows)
    return {
        "temperature": ones, "top_k": zeros.int(), "top_p": ones, "min_p": zeros, "repetition": ones,
        "presence": zeros, "frequency": zeros, "seeds": torch.arange(num_rows), "offsets": torch.zeros(num_rows).long(),
    }  # fmt: skip


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_each_call_reads_what_the_tensors_then_hold(backend):
    logits, tensors = torch.zeros(3, 50), parameters(3)
    sampler = ops.sampler(logits, num_top=2, backend=backend, **tensors)
    for step in range(4):
        logits.copy_(torch.randn(3, 50, generator=torch.Generator().manual_seed(step)))
        tensors["offsets"].fill_(step)
        expected = ops.sample(logits, num_top=2, backend=backend, **tensors)
        for mine, other in zip(sampler(), expected, strict=True):
            assert torch.equal(mine, other)


def test_a_call_overwrites_the_one_before():
    logits, tensors = torch.zeros(1, 8), parameters(1) | {"temperature": torch.zeros(1)}
    sampler = ops.sampler(logits, **tensors)
    logits[0, 3] = 1
    first = sampler().tokens
    logits[0, 5] = 2
    assert sampler().tokens is first
    assert first.tolist() == [5]


def test_what_is_missing_or_unknown_is_named():
    tensors = parameters(2)
    del tensors["min_p"]
    with pytest.raises(InvalidInput, match="min_p, warmth missing or unknown"):
        ops.sampler(torch.zeros(2, 8), warmth=torch.zeros(2), **tensors)


def test_values_are_checked_at_once():
    with pytest.raises(InvalidInput, match="top_p"):
        ops.sampler(torch.zeros(2, 8), **parameters(2) | {"top_p": torch.tensor([0.5, 3.0])})
