# SPDX-License-Identifier: Apache-2.0
"""What programs do to memory, watched: accesses outside tensors, and races between programs.

Programs of a launch have no order but the one that atomics make. A clock per program, joined where one program acquires
what another released (Lamport 1978; Mattern 1989), says which accesses are ordered; two accesses of one element that
are not, one of them a write, are a race, whatever order this run took.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Bools = NDArray[np.bool_]
Addresses = NDArray[np.int64]


class OutOfBounds(Exception):
    """An unmasked access outside every tensor of the launch."""


class Race(Exception):
    """Two programs touch an element with nothing that orders them, and one of them writes it."""


class Region:
    """The memory of one tensor, element by element: who wrote and read it last, and when by their own clock."""

    def __init__(self, tensor: Tensor) -> None:
        self.item_bytes = tensor.element_size()
        reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        num_items = reach + 1 if tensor.numel() else 0
        self.begin = tensor.data_ptr()
        self.end = self.begin + num_items * self.item_bytes
        self.writer = np.full(num_items, -1, np.int32)
        self.write_time = np.zeros(num_items, np.int32)
        self.reader = np.full(num_items, -1, np.int32)
        self.read_time = np.zeros(num_items, np.int32)
        self.atomic = np.zeros(num_items, np.bool_)


class Memory:
    """Watches the accesses of one launch.

    Args:
        tensors: those of its arguments.
        num_programs: of its grid.
    """

    def __init__(self, tensors: Iterable[Tensor], num_programs: int) -> None:
        distinct = {(tensor.data_ptr(), tensor.shape, tensor.stride()): tensor for tensor in tensors}
        self._regions = [Region(tensor) for tensor in distinct.values()]
        self._known = np.zeros((num_programs, num_programs), np.int32)  # [me, other]: other's time that I know of
        self._clock = np.ones(num_programs, np.int32)
        self._released: dict[int, NDArray[np.int32]] = {}
        self.program = 0

    def access(
        self, what: str, addresses: Addresses, mask: Bools, item_bytes: int, *, writes: bool, atomic: bool = False
    ) -> None:
        """Notes one access of the running program, of the addresses whose mask is set.

        Raises:
            OutOfBounds, Race: with the program and what it did.
        """
        left = addresses[mask]
        for region in self._regions:
            if not left.size:
                return
            inside = (left >= region.begin) & (left + item_bytes <= region.end)
            if inside.any():
                self._within(what, region, left[inside], writes=writes, atomic=atomic)
                left = left[~inside]
        if left.size:
            raise OutOfBounds(
                f"{what}: program {self.program} touches {left.size} elements outside every tensor of the launch"
            )

    def _within(self, what: str, region: Region, addresses: Addresses, *, writes: bool, atomic: bool) -> None:
        items = (addresses - region.begin) // region.item_bytes
        me, known = self.program, self._known[self.program]
        self._ordered(what, "wrote", me, known, region.writer[items], region.write_time[items], region, items, atomic)
        if not writes:
            region.reader[items], region.read_time[items] = me, self._clock[me]
            return
        self._ordered(what, "read", me, known, region.reader[items], region.read_time[items], region, items, atomic)
        region.writer[items], region.write_time[items], region.atomic[items] = me, self._clock[me], atomic

    def _ordered(
        self,
        what: str,
        did: str,
        me: int,
        known: NDArray[np.int32],
        others: NDArray[np.int32],
        times: NDArray[np.int32],
        region: Region,
        items: Addresses,
        atomic: bool,
    ) -> None:
        unordered = (others >= 0) & (others != me) & (known[np.maximum(others, 0)] < times)
        if atomic:
            unordered &= ~region.atomic[items]
        if unordered.any():
            other = int(others[unordered][0])
            raise Race(f"{what}: program {me} touches what program {other} {did}, with nothing that orders them")

    def synchronise(self, addresses: Addresses, mask: Bools, semantics: str) -> None:
        """An atomic of the running program: what it acquires it knows, what it releases others may."""
        me = self.program
        for address in addresses[mask].tolist():
            if "acquire" in semantics and address in self._released:
                np.maximum(self._known[me], self._released[address], out=self._known[me])
            if "release" in semantics:
                self._known[me, me] = self._clock[me]
                before = self._released.get(address, np.zeros_like(self._known[me]))
                self._released[address] = np.maximum(before, self._known[me])
        self._clock[me] += 1
