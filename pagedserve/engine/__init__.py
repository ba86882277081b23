# SPDX-License-Identifier: Apache-2.0
"""Step plans to tensors to tokens: batches, sampling, streaming."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pagedserve.engine.async_engine import AsyncEngine
    from pagedserve.engine.llm import LLM
    from pagedserve.engine.outputs import Completion, Delta, RequestOutput
    from pagedserve.engine.sampling import SamplingParams

__all__ = ["LLM", "AsyncEngine", "Completion", "Delta", "RequestOutput", "SamplingParams"]

_MODULES = {
    "LLM": "llm",
    "AsyncEngine": "async_engine",
    "SamplingParams": "sampling",
    "RequestOutput": "outputs",
    "Completion": "outputs",
    "Delta": "outputs",
}


def __getattr__(name: str) -> object:
    """Names are imported when first used, so that parameters and outputs cost no torch."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
