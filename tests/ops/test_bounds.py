# SPDX-License-Identifier: Apache-2.0
"""Calls at the edge of what kernels count and of what memory they may share."""

import pytest
import torch

from pagedserve import ops
from pagedserve.errors import InvalidInput


def test_a_length_at_the_end_of_32_bits_is_refused_or_exact():
    """Pages of stride 0 hold two billion tokens in one row of numbers."""
    pages = torch.ones(1, 1, 1, 8).expand(1, 2**30, 1, 8)
    table, starts = torch.zeros(1, 2, dtype=torch.int32), torch.tensor([0, 3], dtype=torch.int32)
    for length, legal in ((2**31 - 256, True), (2**31 - 255, False), (2**31 - 1, False)):
        lens = torch.tensor([length], dtype=torch.int32)
        for call in (
            lambda lens=lens: ops.paged_decode(torch.ones(1, 1, 8), pages, pages, table, lens, window=300),
            lambda lens=lens: ops.paged_prefill(torch.ones(3, 1, 8), pages, pages, table, lens, starts, window=300),
        ):
            if legal:
                assert (call() == 1).all()
            else:
                with pytest.raises(InvalidInput, match="supported: up to 2147483392 tokens"):
                    call()


def test_an_output_that_is_still_to_be_read_is_refused():
    x = torch.randn(4, 64)
    with pytest.raises(InvalidInput, match="out begins where x does"):
        ops.linear(x, ops.Weight.from_dense(torch.randn(64, 64)), out=x)
    with pytest.raises(InvalidInput, match="out begins where x does"):
        ops.take_rows(x, torch.tensor([3, 2, 1, 0], dtype=torch.int32), out=x)
