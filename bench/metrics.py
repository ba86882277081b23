# SPDX-License-Identifier: Apache-2.0
"""From the records of a run to its figures. Every figure's definition is in DEFINITIONS and is printed with it."""

from __future__ import annotations

from collections.abc import Sequence

from bench.timing import percentile
from bench.workload import Record

DEFINITIONS = """\
TTFT: first token - arrival. TPOT: (last token - first token) / (tokens - 1) of each request with two tokens or more.
prompt tok/s: prompt tokens of the first request of every user / the time until the last of them has its first token.
decode tok/s: tokens out from then until the first of them is complete / that time: all users decode, nobody waits. It
is given where users have 8 tokens each or more in that time; context: tokens behind a query then, on average.
output tok/s: all output tokens / the time of the whole run. Every request generates exactly the asked number of tokens.
Open loop: Poisson arrivals at a rate; TTFT counts from when a request was due, whether the engine looked or not."""


LEAST_TOKENS = 8  # of each user, while all decode: fewer are a few steps, and say nothing


def ttft_s(record: Record) -> float:
    return record.token_s[0] - record.arrival_s


def tpot_s(record: Record) -> float | None:
    """None below two tokens."""
    if len(record.token_s) < 2:
        return None
    return (record.token_s[-1] - record.token_s[0]) / (len(record.token_s) - 1)


def figures(records: Sequence[Record], *, closed: bool) -> dict[str, float | None]:
    """Rates in tokens a second, waits in milliseconds, of a run whose every request has at least one token.

    Args:
        closed: users were fixed: then the first request of each user makes the first wave, and prompt and decode
            rates are taken from it.
    """
    first_tokens = sorted(ttft_s(record) for record in records)
    between = sorted(gap for record in records if (gap := tpot_s(record)) is not None)
    end_s = max(record.token_s[-1] for record in records)
    result: dict[str, float | None] = {
        "output_tok_per_s": sum(len(record.tokens) for record in records) / end_s,
        "ttft_p50_ms": percentile(first_tokens, 0.5) * 1e3,
        "ttft_p99_ms": percentile(first_tokens, 0.99) * 1e3,
        "tpot_p50_ms": percentile(between, 0.5) * 1e3 if between else None,
        "tpot_p99_ms": percentile(between, 0.99) * 1e3 if between else None,
    }
    if closed:
        result |= wave_rates(first_wave(records))
    return result


def first_wave(records: Sequence[Record]) -> list[Record]:
    """The first request of every user."""
    wave: dict[int, Record] = {}
    for record in records:
        wave.setdefault(record.user, record)
    return list(wave.values())


def wave_rates(wave: Sequence[Record]) -> dict[str, float | None]:
    """Prompt and decode rates of requests that started together; no decode rate where they hardly decode together."""
    all_started_s = max(record.token_s[0] for record in wave)
    first_done_s = min(record.token_s[-1] for record in wave)
    rates: dict[str, float | None] = {
        "prompt_tok_per_s": sum(record.num_prompt_tokens for record in wave) / all_started_s,
        "decode_tok_per_s": None,
        "decode_context": None,
    }
    contexts = [
        record.num_prompt_tokens + place  # of the query that made token `place`, itself included
        for record in wave
        for place, time_s in enumerate(record.token_s)
        if all_started_s < time_s <= first_done_s
    ]
    if len(contexts) >= len(wave) * LEAST_TOKENS:
        rates["decode_tok_per_s"] = len(contexts) / (first_done_s - all_started_s)
        rates["decode_context"] = sum(contexts) / len(contexts)
    return rates
