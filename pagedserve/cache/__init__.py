# SPDX-License-Identifier: Apache-2.0
"""Keys and values in pages: their layout, the pool that holds them, host memory to swap them to."""

from pagedserve.cache.layout import PageLayout
from pagedserve.cache.pool import KVPool
from pagedserve.ops import KVLayer

__all__ = ["KVLayer", "KVPool", "PageLayout"]
