# SPDX-License-Identifier: Apache-2.0
"""Sampling in Triton against the definition: equal tokens, with ties, filters, penalties and rows of no number."""

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from pagedserve import ops

pytestmark = pytest.mark.triton


def call(seed, num_rows=6, vocab_size=300):
    random = torch.Generator().manual_seed(seed)

    def pick(*values, dtype=torch.float32):
        return torch.tensor(values, dtype=dtype)[torch.randint(len(values), (num_rows,), generator=random)]

    logits = torch.randn(num_rows, vocab_size, generator=random) * 3
    logits[::2] = (logits[::2] * 2).round() / 2  # many ties
    logits[0, 5], logits[1, 7], logits[1, 8] = torch.nan, torch.inf, -torch.inf
    logits[-1] = torch.nan
    lens = torch.randint(0, 40, (num_rows,), generator=random)
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), lens.cumsum(0)]).int()
    return {
        "logits": logits,
        "temperature": pick(0.0, 0.5, 1.0, 1.7),
        "top_k": pick(0, 1, 7, 40, dtype=torch.int32),
        "top_p": pick(1.0, 0.31, 0.87),
        "min_p": pick(0.0, 0.013, 0.21),
        "repetition": pick(1.0, 1.3, 0.8),
        "presence": pick(0.0, 0.4),
        "frequency": pick(0.0, 0.3),
        "seeds": torch.randint(-(2**62), 2**62, (num_rows,), generator=random),
        "offsets": torch.randint(0, 2**40, (num_rows,), generator=random),
        "history": torch.randint(vocab_size, (int(starts[-1]),), generator=random, dtype=torch.int32),
        "history_starts": starts,
        "output_starts": starts[:-1] + (lens // 2).int(),
        "num_top": 4,
    }


@pytest.mark.parametrize("seed", range(12))
def test_tokens_are_the_definitions(seed):
    given = call(seed, vocab_size=(300, 1027, 17)[seed % 3])
    ours, theirs = (ops.sample(**given, backend=name) for name in ("triton-interpreted", "reference"))
    assert ours.tokens.tolist() == theirs.tokens.tolist()
    assert ours.top_tokens.tolist() == theirs.top_tokens.tolist()
    torch.testing.assert_close(ours.logprobs, theirs.logprobs, rtol=2e-6, atol=2e-5)
    torch.testing.assert_close(ours.top_logprobs, theirs.top_logprobs, rtol=2e-6, atol=2e-5)


def test_a_row_does_not_depend_on_its_neighbours():
    given = call(3)
    whole = ops.sample(**given, backend="triton-interpreted").tokens
    for row in range(len(whole)):
        begin, end = given["history_starts"][row], given["history_starts"][row + 1]
        alone = {
            name: value[row : row + 1]
            for name, value in given.items()
            if isinstance(value, torch.Tensor) and not name.startswith(("history", "output"))
        }
        alone["history"] = given["history"][begin:end]
        alone["history_starts"] = torch.tensor([0, end - begin], dtype=torch.int32)
        alone["output_starts"] = given["output_starts"][row : row + 1] - begin
        assert ops.sample(**alone, backend="triton-interpreted").tokens.item() == whole[row]
