# SPDX-License-Identifier: Apache-2.0
"""Writing and moving cached keys and values."""

from collections.abc import Iterator

from pagedserve.specs.attention import KV_DTYPES, PAGES, SCALES, kv_row_bytes
from pagedserve.specs.spec import FLOATS, QUANTISED, Case, OpSpec, Sizes, TensorSpec


def append_cases() -> Iterator[Case]:
    for k_pages in KV_DTYPES:
        for k in ("float32", "bfloat16"):
            sizes = {"num_tokens": 11, "num_pages": 6, "page_size": 5, "num_kv_heads": 3, "head_dim": 40}
            yield Case(f"append-{k}-{k_pages}", sizes, {"k": k, "k_pages": k_pages})
    yield Case("append-none", {"num_tokens": 0, "num_pages": 2, "page_size": 16, "num_kv_heads": 1, "head_dim": 64})


def copy_cases() -> Iterator[Case]:
    for src in ("float32", "bfloat16", "int8", "uint8"):
        yield Case(f"copy-{src}", {"num_copies": 4, "num_src_pages": 6, "num_dst_pages": 5}, {"src": src})


def append_bytes(sizes: Sizes) -> float:
    """Keys and values read, and written with their scales."""
    row = sizes["head_dim"] * sizes["k_bytes"] + kv_row_bytes(sizes)
    return 2 * sizes["num_tokens"] * sizes["num_kv_heads"] * row


APPEND_KV = OpSpec(
    name="append_kv",
    formula="pages[slot / page_size, slot % page_size] = k, v; a quantised page keeps amax / 127, / 448 or / 7",
    tensors=(
        TensorSpec("k", "num_tokens num_kv_heads head_dim", FLOATS),
        TensorSpec("v", "num_tokens num_kv_heads head_dim", ("=k",)),
        TensorSpec("k_pages", PAGES, (*FLOATS, *QUANTISED), mutated=True),
        TensorSpec("v_pages", PAGES, ("=k_pages",), mutated=True),
        TensorSpec("slot_mapping", "num_tokens", ("int64",)),
        TensorSpec("k_scales", SCALES, ("float32",), mutated=True, optional=True, layout="any"),
        TensorSpec("v_scales", SCALES, ("float32",), mutated=True, optional=True, layout="any"),
    ),
    scalars=(),
    reference="cache.append_kv",
    flops=lambda n: 0,
    bytes=append_bytes,
    cases=append_cases,
    dispatch=("k", "k_pages"),
    features=("k_scales",),
)

COPY_PAGES = OpSpec(
    name="copy_pages",
    formula="dst[dst_pages[i]] = src[src_pages[i]], page by page in order",
    tensors=(
        TensorSpec("src", "num_src_pages ...", (*FLOATS, "int8", "float8_e4m3fn", "uint8"), layout="dense"),
        TensorSpec("dst", "num_dst_pages ...", ("=src",), mutated=True, layout="dense"),
        TensorSpec("src_pages", "num_copies", ("int64",)),
        TensorSpec("dst_pages", "num_copies", ("int64",)),
    ),
    scalars=(),
    reference="cache.copy_pages",
    flops=lambda n: 0,
    bytes=lambda n: 2 * n["num_copies"] * n["page_numel"] * n["src_bytes"],
    cases=copy_cases,
    dispatch=("src",),
)

SPECS = (APPEND_KV, COPY_PAGES)
