# SPDX-License-Identifier: Apache-2.0
"""Which versions of Triton can run these kernels."""

from __future__ import annotations

import importlib.metadata
import re

from pagedserve.errors import BackendUnavailable

# 3.6.0 is the first whose semantics can be given a tensor type and a builder of one's own, as `interpreter` does.
OLDEST = (3, 6)
ABOVE_NEWEST = (4, 0)


def refusal(version: str | None) -> str | None:
    """Why a version of Triton cannot be used, in a sentence; None where it can. version None: it is not installed."""
    advice = "install one with: pip install 'triton>=3.6,<4'"
    if version is None:
        return f"Triton is not installed: {advice}"
    found = re.match(r"(\d+)\.(\d+)", version)
    if found is None or not OLDEST <= (int(found[1]), int(found[2])) < ABOVE_NEWEST:
        return f"Triton {version} is not supported, 3.6 up to below 4 are: {advice}"
    return None


def installed() -> str | None:
    """The installed version of Triton, or None."""
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return None


def require() -> None:
    """Raises BackendUnavailable where Triton is missing or unsuitable."""
    reason = refusal(installed())
    if reason is not None:
        raise BackendUnavailable(reason)
