# SPDX-License-Identifier: Apache-2.0
"""Host memory on huge pages, for what is streamed: weights, keys and values, a step's buffers.

Walking through 4 KiB pages costs address translations: on a virtual machine streaming weights took 1.1 to 1.4 times as
long.
"""

from __future__ import annotations

import contextlib
import mmap
import threading

import torch
from torch import Tensor

HUGE_PAGE = 2 << 20
LINE = 64


def host_bytes(num_bytes: int) -> Tensor:
    """Zeros [num_bytes] uint8 that start a huge page, where the system has them; given back with the last view of them.

    Raises:
        OSError, OverflowError: there is not that much address space.
    """
    if num_bytes == 0:
        return torch.empty(0, dtype=torch.uint8)
    memory = mmap.mmap(-1, num_bytes + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    whole = torch.frombuffer(memory, dtype=torch.uint8)
    start = -whole.data_ptr() % HUGE_PAGE
    return whole[start : start + num_bytes]


class Arena:
    """Cuts pieces from runs of huge pages, so that small tensors share them. Any thread may take.

    A run is given back with the last tensor cut from it.
    """

    def __init__(self, run_bytes: int = 32 << 20) -> None:
        self._run_bytes = run_bytes
        self._left = torch.empty(0, dtype=torch.uint8)
        self._lock = threading.Lock()

    def take(self, num_bytes: int) -> Tensor:
        """Zeros [num_bytes] uint8, 64-byte aligned."""
        if num_bytes > self._run_bytes // 4:
            return host_bytes(num_bytes)
        rounded = -(-num_bytes // LINE) * LINE
        with self._lock:
            if rounded > len(self._left):
                self._left = host_bytes(self._run_bytes)
            piece, self._left = self._left[:num_bytes], self._left[rounded:]
        return piece
