# SPDX-License-Identifier: Apache-2.0
"""Sizes of tiles."""

from __future__ import annotations


def power_of_two(size: int, at_least: int = 1) -> int:
    """The smallest power of two that is size and at_least or more."""
    return max(at_least, 1 << max(size - 1, 0).bit_length())


def ceil_div(size: int, by: int) -> int:
    return -(-size // by)
