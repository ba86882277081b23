# SPDX-License-Identifier: Apache-2.0
"""Paged attention, fused batched decoding, and a thin engine that schedules around them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pagedserve.engine import LLM, AsyncEngine, Completion, RequestOutput, SamplingParams

__version__ = "0.1.0"
__all__ = ["LLM", "AsyncEngine", "Completion", "RequestOutput", "SamplingParams", "__version__"]


def __getattr__(name: str) -> object:
    """The engine's names are imported when first used: importing the package costs neither torch nor a model."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("pagedserve.engine"), name)
