# SPDX-License-Identifier: Apache-2.0
"""sample: one token per row of logits, from that row's own parameters and its own random numbers.

    l       = penalised logits; those that are not finite are never chosen
    s       = (l - max l) / temperature
    kept    = top-k, then top-p of what top-k left, then min-p
    token   = argmax over kept of s + noise(seed, offset, token), the lowest id among equals

Random numbers are Philox4x32-10 (Salmon, Moraes, Dror, Shaw 2011), four tokens to a call:

    key     = (seed low 32 bits, seed high 32 bits)
    counter = (token // 4, 0, offset low 32 bits, offset high 32 bits)
    bits    = word token % 4 of the result
    u       = ((bits >> 9) + 0.5) * 2 ** -23        exact in float32, never 0 and never 1
    noise   = -log(-log(u))                         float32

so a row's choice depends on that row alone: not on its neighbours, its place in the batch or vocab_size.
Source: Gumbel 1954 (argmax of logits plus noise draws from their softmax); Holtzman et al. 2020 (top-p);
Keskar et al. 2019 (repetition penalty).
"""

from typing import Any

import torch
from torch import Tensor

from pagedserve.backends.operands import Sample

WORD = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10


def _product(multiplier: int, word: Tensor) -> tuple[Tensor, Tensor]:
    """High and low 32 bits. int64 wraps at 64 bits, which leaves both right."""
    product = word * multiplier
    return (product >> 32) & WORD, product & WORD


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Philox4x32-10. Words are int64 tensors holding 32 bits each.

    Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011, section 5.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        high0, low0 = _product(MULTIPLIERS[0], c0)
        high1, low1 = _product(MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + KEY_STEPS[0]) & WORD, (k1 + KEY_STEPS[1]) & WORD
    return c0, c1, c2, c3


def gumbel_noise(seed: int, offset: int, vocab_size: int, device: torch.device | str = "cpu") -> Tensor:
    """Noise of every token of a row, [vocab_size] float32."""
    quad = torch.arange((vocab_size + 3) // 4, dtype=torch.int64, device=device)  # [ceil(vocab_size / 4)]
    zero = torch.zeros_like(quad)
    words = philox(
        (quad, zero, zero + (offset & WORD), zero + ((offset >> 32) & WORD)),
        (seed & WORD, (seed >> 32) & WORD),
    )
    bits = torch.stack(words, dim=1).flatten()[:vocab_size]  # [vocab_size]
    u = ((bits >> 9).to(torch.float32) + 0.5) * 2.0**-23
    return -torch.log(-torch.log(u))


def penalise(
    logits: Tensor,
    prompt: Tensor,
    output: Tensor,
    *,
    repetition: Tensor,
    presence: Tensor,
    frequency: Tensor,
) -> Tensor:
    """A row's logits [vocab_size] after its penalties; prompt and output are its int64 token ids.

    Repetition divides positive and multiplies negative logits of every token seen; then frequency is
    subtracted once for each time a token stands in the output, then presence once if it does.
    """
    seen = torch.zeros_like(logits, dtype=torch.bool)
    seen[prompt] = True
    seen[output] = True
    counts = torch.zeros_like(logits).index_add_(0, output, torch.ones_like(output, dtype=logits.dtype))
    repeated = torch.where(logits > 0, logits / repetition, logits * repetition)
    logits = torch.where(seen, repeated, logits)
    return (logits - frequency * counts) - presence * (counts > 0).to(logits.dtype)


def keep(scaled: Tensor, top_k: int, top_p: float, min_p: float) -> Tensor:
    """Which tokens may be chosen, [vocab_size] bool. scaled: largest 0, -inf where never chosen."""
    order = torch.sort(scaled, descending=True, stable=True).indices  # ties by lower id
    ranked = scaled[order]
    kept = torch.isfinite(ranked)
    if top_k > 0:
        kept[top_k:] = False
    if top_p < 1:
        weights = torch.where(kept, ranked.double().exp(), 0.0)
        before = torch.cumsum(weights, 0) - weights  # mass of the tokens more likely than this one
        kept &= (before < top_p * weights.sum()) | (torch.arange(len(kept), device=kept.device) == 0)
    if min_p > 0:
        kept &= ranked.exp() >= min_p
    return torch.zeros_like(kept).scatter_(0, order, kept)


def _top(logits: Tensor, logprobs: Tensor, num_top: int) -> tuple[Tensor, Tensor]:
    # By logit: subtracting the log-sum-exp rounds, and would make ties of its own.
    ids = torch.sort(logits, descending=True, stable=True).indices[:num_top]  # ties by lower id
    return torch.where(torch.isfinite(logits[ids]), ids, -1), logprobs[ids]


def sample(*operands: Any) -> None:
    """Writes tokens and logprobs [num_rows], top_tokens and top_logprobs [num_rows, num_top].

    A row without a finite logit gives token -1 and logprob -inf. Log-probabilities are the log softmax of
    the raw logits, over those that are finite; places of the top list beyond them hold -1 and -inf.
    """
    call = Sample.of("sample", *operands)
    logits, tokens, logprobs = call.logits, call.tokens, call.logprobs
    top_tokens, top_logprobs = call.top_tokens, call.top_logprobs
    num_rows, vocab_size = logits.shape
    num_top = top_tokens.shape[1]
    for row in range(num_rows):
        raw = logits[row]  # [vocab_size]
        raw = torch.where(torch.isfinite(raw), raw, -torch.inf)
        begin, end = call.history_starts[row : row + 2].tolist()
        middle = int(call.output_starts[row])
        prompt, output = call.history[begin:middle].long(), call.history[middle:end].long()
        penalties = {name: getattr(call, name)[row] for name in ("repetition", "presence", "frequency")}
        penalised = penalise(raw, prompt, output, **penalties)
        penalised = torch.where(torch.isfinite(penalised), penalised, -torch.inf)
        if not bool((penalised > -torch.inf).any()):
            tokens[row], logprobs[row] = -1, -torch.inf
            top_tokens[row], top_logprobs[row] = -1, -torch.inf
            continue
        largest = penalised.max()
        score = penalised
        if float(call.temperature[row]) > 0:
            scaled = (penalised - largest) / call.temperature[row]
            kept = keep(scaled, int(call.top_k[row]), float(call.top_p[row]), float(call.min_p[row]))
            noise = gumbel_noise(int(call.seeds[row]), int(call.offsets[row]), vocab_size, logits.device)
            score = torch.where(kept, scaled + noise, -torch.inf)
        token = int(torch.nonzero(score == score.max())[0])  # the lowest id among equals
        row_logprobs = torch.log_softmax(raw, 0)
        tokens[row], logprobs[row] = token, row_logprobs[token]
        top_tokens[row, :], top_logprobs[row, :] = -1, -torch.inf
        ids, values = _top(raw, row_logprobs, num_top)
        top_tokens[row, : len(ids)], top_logprobs[row, : len(ids)] = ids.to(torch.int32), values
