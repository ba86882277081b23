# SPDX-License-Identifier: Apache-2.0
"""Who computes what in the next step: pure Python, deterministic, no clock, no I/O, no tensors."""
