# SPDX-License-Identifier: Apache-2.0
"""Every environment variable pagedserve reads, read when asked for, never cached.

PAGEDSERVE_THREADS   threads of the CPU backend (default: the processors this process may run on)
PAGEDSERVE_CPU_ISA   portable, avx2, avx512 or avx512bf16 (default: the best the processor has)

A build reads PAGEDSERVE_CUDA, PAGEDSERVE_CUDA_ARCHS, CUDA_HOME and CUDA_PATH; setup.py says how.
"""

import os

from pagedserve.errors import InvalidInput

ISAS = ("portable", "avx2", "avx512", "avx512bf16")


def num_threads() -> int:
    """Threads of the CPU backend."""
    given = os.environ.get("PAGEDSERVE_THREADS")
    if given is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not given.isdecimal() or not 1 <= int(given) <= 1024:
        raise InvalidInput(f"PAGEDSERVE_THREADS is {given!r}; give a whole number from 1 to 1024")
    return int(given)


def cpu_isa() -> str | None:
    """The instruction set the CPU backend is held to, or None for the best there is."""
    given = os.environ.get("PAGEDSERVE_CPU_ISA")
    if given is not None and given not in ISAS:
        raise InvalidInput(f"PAGEDSERVE_CPU_ISA is {given!r}; supported: {', '.join(ISAS)}")
    return given
