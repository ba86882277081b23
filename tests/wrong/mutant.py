# SPDX-License-Identifier: Apache-2.0
"""What a wrong kernel is."""

from __future__ import annotations

from dataclasses import dataclass

from pagedserve.emulate.change import Change


@dataclass(frozen=True)
class Mutant:
    """One change to one file of csrc.

    Attributes:
        file, old, new: see `Change`.
        check: a name of checks.CHECKS.
    """

    name: str
    file: str
    old: str
    new: str
    check: str

    @property
    def change(self) -> Change:
        return Change(self.file, self.old, self.new)
