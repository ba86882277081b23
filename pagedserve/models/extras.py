# SPDX-License-Identifier: Apache-2.0
"""The optional packages that read models, imported when used."""

from __future__ import annotations

import importlib
from types import ModuleType

from pagedserve.errors import ModelError


def optional(module: str, purpose: str) -> ModuleType:
    """The module, or a ModelError that says how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ModelError(
            f"{purpose} needs the package {module.partition('.')[0]} ({error}): pip install 'pagedserve[models]'"
        ) from None
