# SPDX-License-Identifier: Apache-2.0
"""The choice of the next token."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from pagedserve.errors import InvalidInput
from pagedserve.ops.call import prepared, run
from pagedserve.ops.check import MAKE
from pagedserve.specs import SPECS

SAMPLE = SPECS["sample"]
HISTORY = ("history", "history_starts", "output_starts")
PARAMETERS = tuple(entry.name for entry in SAMPLE.tensors[1:-4])

MOST_TOP = 2**20  # of num_top: longer than any vocabulary, and too short to ask for all memory


class Sampled(NamedTuple):
    """tokens [num_rows] int32; logprobs [num_rows]; top_tokens [num_rows, num_top] int32; top_logprobs beside it."""

    tokens: Tensor
    logprobs: Tensor
    top_tokens: Tensor
    top_logprobs: Tensor


def sample(
    logits: Tensor,
    *,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    repetition: Tensor,
    presence: Tensor,
    frequency: Tensor,
    seeds: Tensor,
    offsets: Tensor,
    history: Tensor | None = None,
    history_starts: Tensor | None = None,
    output_starts: Tensor | None = None,
    num_top: int = 0,
    backend: str = "auto",
) -> Sampled:
    """Choose one token for each row of logits.

    In this order: penalties, temperature, top-k, top-p of what top-k left, min-p, then the argmax of
    logit / temperature plus Gumbel noise from Philox keyed by (seed, offset, token). A row's choice depends on that
    row alone; the definition, bit for bit, is backends/reference/sampling.py.

    Args:
        logits: [num_rows, vocab_size] float32. NaN and infinite ones are never chosen.
        temperature: [num_rows] float32; 0: greedy, the lowest id among equals.
        top_k: [num_rows] int32; 0 or below: off. top_p: [num_rows] float32 in (0, 1]; 1: off.
        min_p: [num_rows] float32 in [0, 1], of the most likely token's probability; 0: off.
        repetition: [num_rows] float32 above 0, over prompt and output: divides positive and multiplies negative
            logits; 1: off. presence, frequency: [num_rows] float32, over the output, subtracted once, and once for each
            time; 0: off.
        seeds, offsets: [num_rows] int64, taken as 64 bits each; offset: the position of the token to be chosen.
        history: [history_starts[-1]] int32, each row's tokens, prompt then output; None, with the two beside
            it: no row has any.
        history_starts: [num_rows + 1] int32. output_starts: [num_rows] int32, where in history the output begins.
        num_top: how many of the most likely tokens to return.
        backend: "auto", or one of `backends_of("sample")`.

    Returns:
        Sampled(tokens, logprobs, top_tokens, top_logprobs). Log-probabilities are of the raw logits, natural log; ties
        in the top list go to the lower id. A row without a finite logit has token -1 and logprob -inf, and places of
        the top list beyond the finite logits hold -1 and -inf.

    Raises:
        InvalidInput: shapes, dtypes or parameters do not fit; the message names the row.
        BackendUnavailable: the named backend cannot run this call.

    Cost: reads the logits a few times; a sort of the row where top_p is on.
    Source: Philox, Salmon et al. 2011; Gumbel 1954; top-p, Holtzman et al. 2020; min-p, Nguyen et al. 2024.
    """
    tensors = {
        "temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p, "repetition": repetition,
        "presence": presence, "frequency": frequency, "seeds": seeds, "offsets": offsets, "history": history,
        "history_starts": history_starts, "output_starts": output_starts,
    }  # fmt: skip
    return Sampled(*run(SAMPLE, _operands(logits, tensors, num_top), {}, backend, num_top=num_top)[-4:])


def sampler(
    logits: Tensor, *, num_top: int = 0, backend: str = "auto", **tensors: Tensor | None
) -> Callable[[], Sampled]:
    """As `sample`, checked now and computed whenever the result is called, on what the same tensors hold by then.

    Args:
        tensors: every other tensor of `sample`, by name. What they hold may change between calls; it was checked, but
            for logits and offsets, and must stay valid.

    Returns:
        A function; each call overwrites the tensors that the call before it returned.

    Raises:
        InvalidInput, BackendUnavailable: as `sample`.

    Cost: the checks, some 60 us on the CPU and several times that after a step has emptied the caches, are paid
    once and not at every step of the same batch.
    """
    tensors = dict.fromkeys(HISTORY) | tensors
    if wrong := set(PARAMETERS).symmetric_difference(tensors):
        raise InvalidInput(f"sampler: {', '.join(sorted(wrong))} missing or unknown; give {', '.join(PARAMETERS)}")
    call = prepared(SAMPLE, _operands(logits, tensors, num_top), {}, backend, num_top=num_top)
    return lambda: Sampled(*call()[-4:])


def _operands(logits: Tensor, tensors: Mapping[str, Tensor | None], num_top: int) -> list[Any]:
    if not isinstance(num_top, int) or not 0 <= num_top <= MOST_TOP:
        raise InvalidInput(f"sample: num_top is {num_top!r}; give a whole number from 0 to {MOST_TOP}")
    return [logits, *(tensors[name] for name in PARAMETERS), MAKE, MAKE, MAKE, MAKE]
