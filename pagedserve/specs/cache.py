# SPDX-License-Identifier: Apache-2.0
"""Writing and moving cached keys and values."""

from collections.abc import Iterator

from pagedserve.specs.attention import KV_DTYPES, PAGES, SCALES, kv_row_bytes
from pagedserve.specs.spec import FLOATS, QUANTISED, Budget, Case, OpSpec, ScalarSpec, Sizes, TensorSpec


def append_cases() -> Iterator[Case]:
    for k_pages in KV_DTYPES:
        for k in ("float32", "bfloat16"):
            sizes = {"num_tokens": 11, "num_pages": 6, "page_size": 5, "num_kv_heads": 3, "head_dim": 40}
            yield Case(f"append-{k}-{k_pages}", sizes, {"k": k, "k_pages": k_pages})
    yield Case("append-none", {"num_tokens": 0, "num_pages": 2, "page_size": 16, "num_kv_heads": 1, "head_dim": 64})


def rope_append_cases() -> Iterator[Case]:
    base = {"num_tokens": 7, "num_pages": 4, "page_size": 5, "max_position": 40}
    heads = {"num_q_heads": 6, "num_kv_heads": 2, "head_dim": 40, "rotary_dim": 40}
    norms = {"q_norm": True, "k_norm": True}
    for k_pages in KV_DTYPES:
        for q in ("float32", "bfloat16", "float16"):
            yield Case(f"rope-append-{q}-{k_pages}", base | heads, {"q": q, "k_pages": k_pages}, norms)
    for words, options in (("plain", {}), ("pairs", {"interleaved": True}), ("k-norm", {"k_norm": True, "eps": 0.1})):
        for rotary_dim in (40, 24):
            sizes = base | heads | {"rotary_dim": rotary_dim}
            yield Case(f"rope-append-{words}-{rotary_dim}", sizes, {"q": "float32", "k_pages": "int8"}, options)
    wide = {"num_q_heads": 9, "num_kv_heads": 9, "head_dim": 128, "rotary_dim": 128}
    yield Case("rope-append-wide", base | wide, {"q": "bfloat16", "k_pages": "bfloat16"}, norms | {"interleaved": True})
    yield Case("rope-append-none", base | heads | {"num_tokens": 0})


def copy_cases() -> Iterator[Case]:
    for src in ("float32", "bfloat16", "int8", "uint8"):
        yield Case(f"copy-{src}", {"num_copies": 4, "num_src_pages": 6, "num_dst_pages": 5}, {"src": src})


def append_bytes(sizes: Sizes) -> float:
    """Keys and values read, and written with their scales."""
    row = sizes["head_dim"] * sizes["k_bytes"] + kv_row_bytes(sizes)
    return 2 * sizes["num_tokens"] * sizes["num_kv_heads"] * row


def rope_append_bytes(sizes: Sizes) -> float:
    """Queries read and written; keys and values read, and written with their scales."""
    q = 2 * sizes["num_q_heads"] * sizes["head_dim"] * sizes["q_bytes"]
    kv = 2 * sizes["num_kv_heads"] * (sizes["head_dim"] * sizes["q_bytes"] + kv_row_bytes(sizes))
    return sizes["num_tokens"] * (q + kv)


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

ROPE_APPEND_KV = OpSpec(
    name="rope_append_kv",
    formula="q = rope(norm(q)); pages[slot / page_size, slot % page_size] = rope(norm(k)), v; each rounded once",
    tensors=(
        TensorSpec("q", "num_tokens num_q_heads head_dim", FLOATS, mutated=True),
        TensorSpec("k", "num_tokens num_kv_heads head_dim", ("=q",)),
        TensorSpec("v", "num_tokens num_kv_heads head_dim", ("=q",)),
        TensorSpec("positions", "num_tokens", ("int32",)),
        TensorSpec("cos_sin", "max_position rotary_dim", ("^q",), layout="dense"),
        TensorSpec("k_pages", PAGES, (*FLOATS, *QUANTISED), mutated=True),
        TensorSpec("v_pages", PAGES, ("=k_pages",), mutated=True),
        TensorSpec("slot_mapping", "num_tokens", ("int64",)),
        TensorSpec("q_norm", "head_dim", ("^q",), optional=True),
        TensorSpec("k_norm", "head_dim", ("^q",), optional=True),
        TensorSpec("k_scales", SCALES, ("float32",), mutated=True, optional=True, layout="any"),
        TensorSpec("v_scales", SCALES, ("float32",), mutated=True, optional=True, layout="any"),
    ),
    scalars=(ScalarSpec("eps", "float", 1e-6), ScalarSpec("interleaved", "bool", False)),
    reference="cache.rope_append_kv",
    flops=lambda n: (
        n["num_tokens"] * (n["num_q_heads"] + n["num_kv_heads"]) * (4 * n["head_dim"] + 3 * n["rotary_dim"])
    ),
    bytes=rope_append_bytes,
    cases=rope_append_cases,
    dispatch=("q", "k_pages"),
    budget=Budget(code_steps=1),
    features=("q_norm", "k_norm", "k_scales"),
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

SPECS = (APPEND_KV, ROPE_APPEND_KV, COPY_PAGES)
