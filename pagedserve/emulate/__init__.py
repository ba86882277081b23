# SPDX-License-Identifier: Apache-2.0
"""CUDA kernels on the CPU: compiled with a C++ compiler, run under checks. DESIGN.md, "The emulator", says how."""

from pagedserve.emulate.library import Library, Run, Session, current, library, session
from pagedserve.emulate.reports import Finding

__all__ = ["Finding", "Library", "Run", "Session", "current", "library", "session"]
