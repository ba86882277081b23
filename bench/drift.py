# SPDX-License-Identifier: Apache-2.0
"""How far an engine's next-token distributions are from float32's, over real text given to both."""

from __future__ import annotations

from collections.abc import Sequence

import numpy

from bench.peers.protocol import PeerProcess
from bench.workload import Request

DEFINITIONS = """\
drift KL: mean over positions of sum p log(p / q), p the float32 distribution of the next token (transformers, weights
dequantised), q the engine's, in nats, where the engine exposes its logits. agrees: share of 32 positions of each text
at which the engine's greedy token is float32's."""


def log_softmax(logits: numpy.ndarray) -> numpy.ndarray:
    """Of the last axis, in float64."""
    shifted = logits.astype(numpy.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - numpy.log(numpy.exp(shifted).sum(axis=-1, keepdims=True))


def mean_kl(exact: numpy.ndarray, other: numpy.ndarray) -> float:
    """Mean over rows of KL(softmax(exact) || softmax(other)); logits [num_positions, vocab_size]."""
    if exact.shape != other.shape:
        raise ValueError(f"logits of {exact.shape} and {other.shape} cannot be compared")
    total = 0.0
    for exact_row, other_row in zip(exact, other, strict=True):
        p, q = log_softmax(exact_row), log_softmax(other_row)
        total += float((numpy.exp(p) * (p - q)).sum())
    return total / len(exact)


def measure(
    engine: PeerProcess, exact: Sequence[numpy.ndarray], windows: Sequence[Sequence[int]], *, positions: int = 32
) -> dict[str, float | None]:
    """Drift over windows of text.

    Args:
        exact: float32 logits [len(window), vocab_size] of each window.
        positions: of each window, evenly spread, at which greedy tokens are compared.
    """
    kls: list[float] = []
    agreed: list[bool] = []
    for logits, window in zip(exact, windows, strict=True):
        ends = [int(end) for end in numpy.linspace(len(window) // 4, len(window), positions)]
        own = engine.logits(window)
        if own is not None:
            kls.append(mean_kl(logits, own))
            tokens = [own[end - 1].argmax() for end in ends]
        else:
            records = engine.run([Request(tuple(window[:end]), 1, user=user) for user, end in enumerate(ends)])
            tokens = [record.tokens[0] for record in records]
        agreed += [token == logits[end - 1].argmax() for token, end in zip(tokens, ends, strict=True)]
    return {"drift_kl": float(numpy.mean(kls)) if kls else None, "agrees_percent": 100.0 * float(numpy.mean(agreed))}
