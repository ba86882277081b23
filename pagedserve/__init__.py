# SPDX-License-Identifier: Apache-2.0
"""Paged attention, fused batched decoding, and a thin engine that schedules around them."""

__version__ = "0.1.0"
