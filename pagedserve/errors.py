# SPDX-License-Identifier: Apache-2.0
"""Every exception pagedserve raises. A message says what was given, what is supported, and what to do."""

import reprlib
from collections.abc import Iterable


class PagedServeError(Exception):
    """The root of pagedserve's own exceptions."""


class InvalidInput(PagedServeError, ValueError):
    """A caller's shape, dtype, length, id or parameter is outside what is supported."""


class BackendUnavailable(PagedServeError, RuntimeError):
    """The named backend cannot run this call here; the message lists what is missing."""


class KernelFault(PagedServeError, RuntimeError):
    """An emulated kernel did what a kernel may not do; the message names kernel, block, thread and source line.

    Attributes:
        kind: a short machine-readable word, "deadlock" or "race" for example; DESIGN.md, "The emulator", lists them.
    """

    def __init__(self, message: str, *, kind: str) -> None:
        super().__init__(message)
        self.kind = kind


class ModelError(PagedServeError, ValueError):
    """A model's files cannot be read, or ask for something that is not supported."""


class RequestRejected(PagedServeError):
    """A request was refused at the door, or dropped before its first token.

    Attributes:
        reason: a short machine-readable word: "never_fits", "invalid", "queue_full", "deadline", "draining".
        retry_after_s: seconds until the same request would be taken; None where it never would.
        hold_s: for so many seconds after that a place is kept for whoever comes with the same id and tenant; None: no
            place is kept.
    """

    def __init__(
        self, message: str, *, reason: str, retry_after_s: float | None = None, hold_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.retry_after_s = retry_after_s
        self.hold_s = hold_s


class StepError(PagedServeError, RuntimeError):
    """The model could not compute a request's step. Other requests go on."""


class EngineClosed(PagedServeError, RuntimeError):
    """The engine was closed, or died; the message says which."""


def require(owner: object, rules: Iterable[tuple[str, object, str]]) -> None:
    """Of each field's rule (its name, whether it holds, what is wanted): InvalidInput that names the first broken."""
    for name, holds, wanted in rules:
        if not holds:
            value = getattr(owner, name)
            given = reprlib.repr(list(value) if isinstance(value, tuple) else value)
            raise InvalidInput(f"{name} must be {wanted}; got {given}")
