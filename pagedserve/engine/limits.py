# SPDX-License-Identifier: Apache-2.0
"""How large an engine is: pages, sequences, tokens of a step and of a request."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from pagedserve.errors import InvalidInput
from pagedserve.models import ModelConfig

MEMORY_SHARE = 8  # the pool takes at most one part in so many of the machine's memory, unless told otherwise


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """Sizes of an engine, all in tokens, pages or sequences."""

    page_size: int
    num_pages: int
    num_host_pages: int
    max_seqs: int
    max_step_tokens: int
    max_model_len: int

    @property
    def max_pages(self) -> int:
        """Of one sequence."""
        return -(-self.max_model_len // self.page_size)


def choose_limits(
    config: ModelConfig,
    page_bytes: Callable[[int], int],
    *,
    page_size: int,
    num_pages: int | None,
    memory_bytes: int | None,
    num_host_pages: int,
    max_seqs: int,
    max_step_tokens: int,
    max_model_len: int | None,
) -> EngineLimits:
    """Fill in what was left open.

    Args:
        page_bytes: of one page over all layers, by page_size.
        others: as Face.

    Raises:
        InvalidInput: a size cannot be, or the sizes do not fit each other.
    """
    for name, value, least in (
        ("page_size", page_size, 1),
        ("num_pages", num_pages, 1),
        ("memory_bytes", memory_bytes, 1),
        ("num_host_pages", num_host_pages, 0),
        ("max_seqs", max_seqs, 1),
        ("max_step_tokens", max_step_tokens, 1),
        ("max_model_len", max_model_len, 2),
    ):
        optional = name in ("num_pages", "memory_bytes", "max_model_len")
        if (value is None and optional) or (type(value) is int and value >= least):
            continue
        raise InvalidInput(f"{name} is {value!r}; give a whole number of at least {least}" + (" or None" * optional))
    if max_step_tokens < max_seqs:
        raise InvalidInput(
            f"max_step_tokens is {max_step_tokens} with {max_seqs} max_seqs; give at least max_seqs, so that every "
            f"sequence can decode in every step"
        )
    if max_model_len is not None and max_model_len > config.context_length:
        raise InvalidInput(f"max_model_len is {max_model_len}; this model's context is {config.context_length} tokens")
    if num_pages is not None and memory_bytes is not None:
        raise InvalidInput(f"num_pages {num_pages} and memory_bytes {memory_bytes} are both given; give one of them")
    if num_pages is None:
        num_pages = _pages_in(
            memory_bytes, page_bytes(page_size), max_seqs * -(-(max_model_len or config.context_length) // page_size)
        )
    longest = num_pages * page_size
    if max_model_len is not None and max_model_len > longest:
        raise InvalidInput(
            f"max_model_len is {max_model_len}, but {num_pages} pages of {page_size} tokens hold {longest}; "
            f"give more num_pages or memory_bytes, or a smaller max_model_len"
        )
    return EngineLimits(
        page_size=page_size,
        num_pages=num_pages,
        num_host_pages=num_host_pages,
        max_seqs=max_seqs,
        max_step_tokens=max_step_tokens,
        max_model_len=max_model_len or min(config.context_length, longest),
    )


def _pages_in(memory_bytes: int | None, page_bytes: int, wanted: int) -> int:
    """Pages for this memory; where none is given, as many as are wanted, within MEMORY_SHARE."""
    if memory_bytes is None:
        return max(1, min(wanted, _machine_bytes() // MEMORY_SHARE // page_bytes))
    if memory_bytes < page_bytes:
        raise InvalidInput(f"memory_bytes is {memory_bytes}; one page of this model takes {page_bytes}")
    return memory_bytes // page_bytes


def _machine_bytes() -> int:
    """Memory of the machine, or of the control group this process is held to."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        with open("/sys/fs/cgroup/memory.max", encoding="ascii") as file:
            held = file.read().strip()
    except OSError:
        return total
    return min(total, int(held)) if held.isdecimal() else total
