# SPDX-License-Identifier: Apache-2.0
"""Attention over paged keys and values, and the merge of partial results."""

from collections.abc import Iterator

from pagedserve.specs.spec import FLOATS, QUANTISED, Case, OpSpec, ScalarSpec, Sizes, TensorSpec

PAGES = "num_pages page_size num_kv_heads head_dim"
SCALES = "num_pages page_size num_kv_heads"
FEATURES = ("window", "soft_cap", "sinks", "alibi_slopes", "tree_mask", "k_scales", "lse")
OPTIONS = (ScalarSpec("scale", "float", 1.0), ScalarSpec("window", "int", 0), ScalarSpec("soft_cap", "float", 0.0))


def _tensors(tokens: str, *own: TensorSpec) -> tuple[TensorSpec, ...]:
    return (
        TensorSpec("q", f"{tokens} num_q_heads head_dim", FLOATS),
        TensorSpec("k_pages", PAGES, (*FLOATS, *QUANTISED)),
        TensorSpec("v_pages", PAGES, ("=k_pages",)),
        TensorSpec("page_table", "num_seqs max_pages", ("int32",)),
        TensorSpec("kv_lens", "num_seqs", ("int32",)),
        *own,
        TensorSpec("sinks", "num_q_heads", ("^q",), optional=True),
        TensorSpec("alibi_slopes", "num_q_heads", ("^q",), optional=True),
        TensorSpec("k_scales", SCALES, ("float32",), optional=True, layout="any"),
        TensorSpec("v_scales", SCALES, ("float32",), optional=True, layout="any"),
        TensorSpec("out", f"{tokens} num_q_heads head_dim", ("=q",), mutated=True, made=True),
        TensorSpec(
            "lse",
            f"{tokens} num_q_heads",
            ("^q",),
            mutated=True,
            made=True,
            optional=True,
            layout="dense",
        ),
    )


def attention_flops(sizes: Sizes) -> float:
    """Two multiply-adds for each element of each visible query-key pair."""
    return 4 * sizes["pairs"] * sizes["num_q_heads"] * sizes["head_dim"]


def kv_row_bytes(sizes: Sizes) -> float:
    """Of one key of one head, its scale included."""
    return sizes["head_dim"] * sizes["k_pages_bytes"] + sizes.get("k_scales_bytes", 0)


def attention_bytes(sizes: Sizes) -> float:
    """Keys and values once, queries and outputs once."""
    kv = 2 * sizes["kv_tokens"] * sizes["num_kv_heads"] * kv_row_bytes(sizes)
    return kv + 2 * sizes["num_tokens"] * sizes["num_q_heads"] * sizes["head_dim"] * sizes["q_bytes"]


def _sizes(num_q_heads: int, num_kv_heads: int, head_dim: int, page_size: int) -> dict[str, int]:
    return {"num_q_heads": num_q_heads, "num_kv_heads": num_kv_heads, "head_dim": head_dim, "page_size": page_size}


# Heads, groups, head_dims and pages that models and caches use, and the odd ones between them.
SHAPES = (
    _sizes(4, 4, 64, 16),
    _sizes(9, 3, 64, 16),
    _sizes(4, 1, 256, 16),
    _sizes(8, 1, 128, 32),
    _sizes(7, 1, 8, 1),
    _sizes(4, 2, 80, 5),
)
LENS = (1, 0, 17, 256, 300, -1, 513)
KV_DTYPES = ("float32", "bfloat16", "float16", "int8", "float8_e4m3fn", "int4")
OPTIONS_ALONE: tuple[dict[str, object], ...] = (
    {"window": 33},
    {"soft_cap": 5.0},
    {"sinks": True},
    {"alibi_slopes": True},
    {"window": 7, "soft_cap": 2.0, "sinks": True, "alibi_slopes": True},
)


def _case(name: str, shape: dict[str, int], lens: tuple[int, ...], q_lens: tuple[int, ...], **more: object) -> Case:
    dtypes = {"q": str(more.pop("q", "float32")), "k_pages": str(more.pop("k_pages", "float32"))}
    heads = f"h{shape['num_q_heads']}/{shape['num_kv_heads']}-d{shape['head_dim']}-p{shape['page_size']}"
    words = [
        name,
        heads,
        *dtypes.values(),
        *(key if value is True else f"{key}={value}" for key, value in more.items()),
    ]
    return Case("-".join(words), shape, dtypes, more, lens, q_lens)


def decode_cases() -> Iterator[Case]:
    ones = (1,) * len(LENS)
    for shape in SHAPES:
        yield _case("decode", shape, LENS, ones)
    for k_pages in KV_DTYPES:
        for q in ("float32", "bfloat16", "float16"):
            yield _case("decode", SHAPES[1], LENS, ones, q=q, k_pages=k_pages)
    for shape in (SHAPES[2], SHAPES[4], SHAPES[5]):
        yield _case("decode", shape, LENS, ones, k_pages="int4")
    for options in OPTIONS_ALONE:
        yield _case("decode", SHAPES[1], LENS, ones, **options)
    for q_len in (2, 5):
        yield _case("decode", SHAPES[1], LENS, (q_len,) * len(LENS), q_len=q_len)
        yield _case("decode", SHAPES[5], LENS, (q_len,) * len(LENS), q_len=q_len, tree_mask=True)


def prefill_cases() -> Iterator[Case]:
    q_lens = (1, 0, 17, 100, 1, 0, 40)
    for shape in SHAPES:
        yield _case("prefill", shape, LENS, q_lens)
    for k_pages in KV_DTYPES:
        yield _case("prefill", SHAPES[1], LENS, q_lens, q="bfloat16", k_pages=k_pages)
    for options in OPTIONS_ALONE:
        yield _case("prefill", SHAPES[5], LENS, q_lens, **options)


def merge_cases() -> Iterator[Case]:
    for num_states, num_tokens, dtype in ((1, 3, "float32"), (2, 5, "float32"), (7, 3, "bfloat16"), (3, 0, "float16")):
        sizes = {"num_states": num_states, "num_tokens": num_tokens, "num_heads": 3, "head_dim": 64}
        yield Case(f"merge-{num_states}x{num_tokens}-{dtype}", sizes, {"o": dtype})


PAGED_DECODE = OpSpec(
    name="paged_decode",
    formula="o[s, h] = softmax(scale * q[s, h] . K[s]) V[s], q_len query tokens a sequence",
    tensors=_tensors(
        "num_seqs*q_len",
        TensorSpec("tree_mask", "num_seqs q_len q_len", ("bool",), optional=True, layout="dense"),
    )
    + (TensorSpec("workspace", "workspace_bytes", ("uint8",), mutated=True, optional=True, layout="dense"),),
    scalars=(ScalarSpec("q_len", "int", 1), *OPTIONS),
    reference="attention.paged_decode",
    flops=attention_flops,
    bytes=attention_bytes,
    cases=decode_cases,
    dispatch=("q", "k_pages"),
    features=FEATURES,
)

PAGED_PREFILL = OpSpec(
    name="paged_prefill",
    formula="o[t, h] = softmax(scale * q[t, h] . K[s]) V[s], ragged queries over a paged prefix",
    tensors=_tensors("num_tokens", TensorSpec("q_starts", "num_seqs+1", ("int32",))),
    scalars=OPTIONS,
    reference="attention.paged_prefill",
    flops=attention_flops,
    bytes=attention_bytes,
    cases=prefill_cases,
    dispatch=("q", "k_pages"),
    features=FEATURES,
)

MERGE_STATES = OpSpec(
    name="merge_states",
    formula="o = sum_i exp(lse_i - lse) o_i, lse = log sum_i exp(lse_i)",
    tensors=(
        TensorSpec("o", "num_states num_tokens num_heads head_dim", FLOATS, layout="dense"),
        TensorSpec("lse", "num_states num_tokens num_heads", ("^o",), layout="dense"),
        TensorSpec("out", "num_tokens num_heads head_dim", ("=o",), mutated=True, made=True, layout="dense"),
        TensorSpec("out_lse", "num_tokens num_heads", ("=lse",), mutated=True, made=True, layout="dense"),
    ),
    scalars=(),
    reference="attention.merge_states",
    flops=lambda n: 2 * n["num_states"] * n["num_tokens"] * n["num_heads"] * n["head_dim"],
    bytes=lambda n: (n["num_states"] + 1) * n["num_tokens"] * n["num_heads"] * n["head_dim"] * n["o_bytes"],
    cases=merge_cases,
    dispatch=("o",),
)

SPECS = (PAGED_DECODE, PAGED_PREFILL, MERGE_STATES)
