# SPDX-License-Identifier: Apache-2.0
"""Where the parts of `python -m bench gpu` run: on a GPU, or emulated with tiny shapes."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from bench.report import Row
from pagedserve import ops


@dataclass(frozen=True)
class Place:
    """A GPU with its backend, or the CPU with the emulated one.

    Attributes:
        device: "cuda" or "cpu", where tensors stand.
        backend: of ours that is looked at.
    """

    is_dry: bool

    @property
    def device(self) -> str:
        return "cpu" if self.is_dry else "cuda"

    @property
    def backend(self) -> str:
        return "cuda-emulated" if self.is_dry else "cuda"

    def lacks(self, *names: str) -> str:
        """Which of these ops the backend has no kernel for, in words; "" where it has them all."""
        missing = [name for name in names if self.backend not in ops.backends_of(name)]
        return f"{self.backend} has no {', '.join(missing)}" if missing else ""

    def synchronise(self) -> None:
        if not self.is_dry:
            torch.cuda.synchronize()


def verdict(case: str, error: Exception | None, **facts: object) -> Row:
    """A row that says whether something held, and if not why."""
    return {"case": case, "passes": error is None, "why": "" if error is None else str(error)[:500], **facts}
