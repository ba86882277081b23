# SPDX-License-Identifier: Apache-2.0
"""The scheduler's choices, each a pure function: who goes first, how much of a prompt, who gives way."""

from __future__ import annotations

from collections.abc import Iterable

from pagedserve.scheduling.config import SchedulerConfig
from pagedserve.scheduling.request import Sequence

OUTPUT_PRICE = 2.0  # of a token sampled, in prompt tokens, where tenants pay


def waiting_key(arrival_s: float, priority: int, priority_s: float) -> float:
    """A request's place in the queue, smallest first: a level of priority is worth priority_s seconds of waiting.

    All wait at the same pace, so the order of two never changes; who waits long enough is ahead of any later arrival.
    """
    return arrival_s - priority * priority_s


def watermark_pages(config: SchedulerConfig, num_pages: int, num_running: int) -> int:
    """Pages to leave free when a prompt is admitted. None where nothing runs: what fits alone must start."""
    return int(config.watermark * num_pages) if num_running else 0


def never_fits(num_prompt: int, max_tokens: int, config: SchedulerConfig, num_pages: int) -> str | None:
    """Why a request can never be computed, or None. The last sampled token is never computed, so needs no place."""
    given = f"prompt of {num_prompt} tokens and max_tokens {max_tokens}"
    advice = "shorten the prompt or lower max_tokens"
    num_tokens = num_prompt + max_tokens
    if num_tokens > config.max_model_len:
        return f"{given} make {num_tokens}, over max_model_len {config.max_model_len}; {advice}"
    needed, size = -(-(num_tokens - 1) // config.page_size), config.page_size
    if needed > num_pages:
        return f"{given} need {needed} pages of {size} tokens; the whole pool has {num_pages}; {advice}"
    return None


def recompute_cost(start: int, stop: int, attention_parity_tokens: int) -> float:
    """The work of computing tokens [start, stop), in tokens with an empty context."""
    return (stop - start) * (1.0 + (start + stop) / (2.0 * attention_parity_tokens))


def choose_victim(running: Iterable[Sequence], last: Sequence | None, attention_parity_tokens: int) -> Sequence:
    """Who gives up its pages: of the lowest priority, the cheapest to compute again.

    Never the oldest, which therefore ends whatever the others do; nor the last victim while there is another. A past
    preemption makes a sequence dearer by its whole price. What it found computed at its start counts as still there.
    """
    candidates = sorted(running, key=lambda seq: seq.order)[1:]
    if len(candidates) > 1:
        candidates = [seq for seq in candidates if seq is not last]

    def price(seq: Sequence) -> tuple[int, float, int]:
        cost = recompute_cost(seq.prefix_hit_tokens, seq.num_computed, attention_parity_tokens)
        return seq.arrival.priority, cost * (1 + seq.preemptions), -seq.order

    return min(candidates, key=price)


def prefers_swap(seq: Sequence, config: SchedulerConfig, num_free_host_pages: int) -> bool:
    """Swap rather than recompute: all pages fit on the host, and moving them there and back is cheaper."""
    num_pages = -(-seq.num_computed // config.page_size)
    if not 0 < num_pages <= num_free_host_pages:
        return False
    again = recompute_cost(seq.prefix_hit_tokens, seq.num_computed, config.attention_parity_tokens)
    return 2 * num_pages * config.swap_page_tokens < again
