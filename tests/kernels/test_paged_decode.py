# SPDX-License-Identifier: Apache-2.0
"""paged_decode as CUDA kernels, emulated: right against float64, the same bits whoever is beside a row, in bounds."""

import itertools
import shutil
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pagedserve import emulate, ops
from pagedserve.backends import cuda_emulated
from pagedserve.errors import BackendUnavailable
from pagedserve.specs import SPECS
from tests.ops.agreement import compare, in_float64
from tests.ops.attention_calls import NAN, Call, Sequences, lay_out, run, sequences

EMULATED = "cuda-emulated"
BF16, F16 = torch.bfloat16, torch.float16
FORMATS = {"bf16": BF16, "f16": F16, "f8": torch.float8_e4m3fn, "i8": torch.int8, "i4": torch.uint8}
FEATURES = ("window", "soft_cap", "sinks", "alibi_slopes")


def decode(call: Call, **more: object) -> tuple[Tensor, Tensor]:
    return run(replace(call, options=call.options | more), backend=EMULATED)


def planned(call: Call, num_blocks: int, spare_bytes: int = 0) -> Tensor:
    """A workspace with a plan for that many blocks, and room for few partials or for all."""
    heads = {"num_q_heads": call.q.shape[1], "num_kv_heads": call.k_pages.shape[2], "head_dim": call.q.shape[2]}
    q_len = call.q_lens[0]
    tokens = 0 if spare_bytes else int(call.kv_lens.clamp(min=0).sum())
    size = ops.decode_workspace_bytes(len(call.kv_lens), **heads, q_len=q_len, max_kv_tokens=tokens)
    workspace = torch.full((size + spare_bytes,), 0xFF, dtype=torch.uint8)
    window = call.options.get("window")
    ops.plan_decode(call.kv_lens, workspace, **heads, q_len=q_len, window=window, num_blocks=num_blocks, backend="cpu")
    return workspace


def same(got: tuple[Tensor, Tensor], want: tuple[Tensor, Tensor]) -> None:
    for mine, other in zip(got, want, strict=True):
        assert torch.equal(mine.nan_to_num(nan=7e7), other.nan_to_num(nan=7e7))


# ---- right ----


SHAPES = [(64, 1), (128, 8), (128, 12), (128, 20), (80, 3), (256, 5), (192, 16), (8, 7), (96, 2)]


def check_against_float64(call: Call, backend: str = EMULATED) -> None:
    """Twice the error of plain torch, plus rounding, as the spec's budget says."""
    spec = SPECS["paged_decode"]
    names = ("q", "k_pages", "v_pages", "page_table", "kv_lens")
    given = {name: getattr(call, name) for name in names} | call.options | {"q_len": call.q_lens[0]}
    oracle = ops.paged_decode(**in_float64(spec, given), return_lse=True, backend="reference")
    plain = ops.paged_decode(**given, return_lse=True, backend="reference")
    for what, mine, theirs, exact in zip(("o", "lse"), run(call, backend=backend), plain, oracle, strict=True):
        compare(spec, what, mine, theirs, exact)


@pytest.mark.parametrize("q_dtype", [BF16, F16], ids=str)
@pytest.mark.parametrize("kv", ["f16", "f8", "i8", "i4"])
def test_every_format_keeps_to_the_budget(kv, q_dtype):
    for number, (head_dim, group_size) in enumerate(SHAPES):
        lens = [270, 0, 17 + number]
        sizes = {"num_kv_heads": 1, "group_size": group_size, "head_dim": head_dim}
        what = sequences([1] * 3, lens, q_dtype=q_dtype, **sizes)
        check_against_float64(lay_out(what, kv_dtype=FORMATS[kv], page_size=(5, 16, 1, 300)[number % 4]))


@pytest.mark.parametrize("kv", FORMATS)
def test_options_together_and_trees(kv):
    q_dtype = BF16 if kv == "bf16" else F16
    for q_len, features in ((1, FEATURES), (4, FEATURES), (16, ("window", "tree_mask")), (5, ("tree_mask", "sinks"))):
        lens = [270, 3]
        what = sequences([q_len] * 2, lens, num_kv_heads=1, q_dtype=q_dtype, features=features, seed=q_len)
        check_against_float64(lay_out(what, kv_dtype=FORMATS[kv], page_size=7))


@pytest.mark.parametrize("head_dim, q_len", [(40, 3), (64, 1), (128, 1), (128, 6), (256, 3)])
@pytest.mark.parametrize("kv", ["bf16", "f16"])
def test_one_query_head_a_kv_head(kv, head_dim, q_len):
    """CUDA cores: strands whole and cut, full and not, with options and without."""
    for features in ((), FEATURES, ("tree_mask", "sinks")):
        sizes = {"num_kv_heads": 2, "group_size": 1, "head_dim": head_dim}
        what = sequences([q_len] * 3, [270, 0, 19], q_dtype=BF16 if kv == "bf16" else F16, features=features, **sizes)
        call = lay_out(what, kv_dtype=FORMATS[kv], page_size=7)
        check_against_float64(call)
        same(decode(call, workspace=planned(call, 9)), decode(call, workspace=planned(call, 1)))


def scaled(call: Call, name: str, factor: float) -> Call:
    return replace(call, options=call.options | {name: call.options[name] * factor})


@pytest.mark.parametrize("kv", ["i8", "f8"])
def test_scales_and_queries_of_any_size(kv):
    """f16 multiplies where the cache holds codes: neither tiny nor huge scales and queries may leave its range."""
    what = sequences([1], [300], q_dtype=BF16, head_dim=64)
    what.v[0][::3] *= 1e-6
    what.v[0][1::3] *= 1e5
    call = lay_out(what, kv_dtype=FORMATS[kv])
    check_against_float64(call)
    check_against_float64(replace(scaled(call, "k_scales", 1e-30), q=call.q * 1e30))
    check_against_float64(replace(scaled(call, "k_scales", 1e25), q=call.q * 1e-25))


def test_what_is_not_a_number_shows():
    for what in ("q", "k", "v"):
        seqs = sequences([1, 1], [40, 40], q_dtype=BF16)
        getattr(seqs, what)[0][0, 0, 5] = NAN
        o, lse = decode(lay_out(seqs, kv_dtype=BF16))
        assert not o[1].isnan().any()
        assert not lse[1].isnan().any()
        assert o[0, 0].isnan().any()
        assert bool(lse[0, 0].isnan()) == (what != "v")


# ---- the same bits ----


def some(q_lens: list[int], kv_lens: list[int], seed: int = 0, features: tuple[str, ...] = ()) -> Sequences:
    return sequences(q_lens, kv_lens, q_dtype=BF16, group_size=3, head_dim=64, features=features, seed=seed)


def alone(what: Sequences, seq: int) -> Sequences:
    options = what.options.copy()
    if "tree_mask" in options:
        options["tree_mask"] = options["tree_mask"][seq : seq + 1]
    return Sequences([what.q[seq]], [what.k[seq]], [what.v[seq]], options)


@pytest.mark.parametrize("kv", ["bf16", "i8", "i4"])
@pytest.mark.parametrize("features", [(), FEATURES], ids=["plain", "features"])
def test_bits_depend_on_the_row_alone(kv, features):
    what = some([2] * 3, [700, 90, 1300], features=features)
    together = decode(lay_out(what, kv_dtype=FORMATS[kv]))
    parts = []
    for seq, page_size in enumerate((1, 33, 256)):
        call = lay_out(alone(what, seq), kv_dtype=FORMATS[kv], page_size=page_size, seed=seq, head_major=seq == 1)
        parts.append(decode(call))
    same((torch.cat([o for o, _ in parts]), torch.cat([lse for _, lse in parts])), together)


@pytest.mark.parametrize("num_blocks", [1, 2, 3, 7, 40])
def test_bits_do_not_depend_on_the_plan(num_blocks):
    call = lay_out(some([1] * 3, [2100, 17, 900]), kv_dtype=BF16)
    want = decode(call, workspace=planned(call, 1))
    same(decode(call, workspace=planned(call, num_blocks)), want)
    same(decode(call, workspace=planned(call, num_blocks, spare_bytes=20000)), want)


# Strands of several groups, which end in a group's middle: one row, rows beside each other, windows that begin in a
# group's middle or in the last group, one query head a KV head.
LONG = [
    ([10_100], {}, 3),
    ([8300, 4097, 17, 0, 9000], {}, 2),
    ([10_100], {"window": 5000}, 3),
    ([9000, 4400], {"window": 300}, 8),
    ([9000], {}, 1),
]


@pytest.mark.parametrize("lens, options, group_size", LONG)
@pytest.mark.parametrize("kv", ["bf16", "i8"])
def test_bits_do_not_depend_on_where_groups_are_cut(kv, lens, options, group_size):
    sizes = {"num_kv_heads": 1, "group_size": group_size, "head_dim": 16, "q_dtype": BF16}
    what = sequences([1] * len(lens), lens, **sizes)
    what.options.update(options)
    call = lay_out(what, kv_dtype=FORMATS[kv])
    want = decode(call, workspace=planned(call, 1))
    for num_blocks in (2, 3, 5, 13, 40, 80):
        workspace = planned(call, num_blocks)
        for _ in range(2):  # counters are 0 again
            same(decode(call, workspace=workspace), want)
    same(decode(call, workspace=planned(call, 40, spare_bytes=20000)), want)
    check_against_float64(call)


@pytest.mark.parametrize("schedule", ["reversed", "random"])
def test_bits_of_groups_do_not_depend_on_who_comes_first(schedule):
    call = lay_out(sequences([1], [9000], num_kv_heads=1, group_size=3, head_dim=16, q_dtype=BF16), kv_dtype=BF16)
    want = decode(call, workspace=planned(call, 1))
    for seed in range(3):
        with emulate.session(emulate.Run(schedule=schedule, seed=seed)):
            same(decode(call, workspace=planned(call, 13)), want)


@pytest.mark.parametrize("grid", [1, 5, 1100])
def test_any_grid_runs_any_plan(grid, monkeypatch):
    """Planned for 13 blocks: on one, on fewer, on more than a plan has places for."""
    call = lay_out(sequences([1], [9000], num_kv_heads=1, group_size=3, head_dim=16, q_dtype=BF16), kv_dtype=BF16)
    want = decode(call, workspace=planned(call, 1))
    workspace = planned(call, 13)
    monkeypatch.setattr(cuda_emulated.OPS, "_default_blocks", lambda where: grid)
    same(decode(call, workspace=workspace), want)


@pytest.mark.parametrize("kv", ["bf16", "f8"])
def test_verifying_is_decoding_one_after_the_other(kv):
    for q_len, group_size in ((5, 1), (4, 3), (7, 2)):
        what = sequences([q_len], [520], group_size=group_size, q_dtype=BF16, features=("sinks", "window"))
        whole = decode(lay_out(what, kv_dtype=FORMATS[kv]))
        steps = []
        for i in range(q_len):
            length = 520 - q_len + i + 1
            one = Sequences([what.q[0][i : i + 1]], [what.k[0][:length]], [what.v[0][:length]], what.options)
            steps.append(decode(lay_out(one, kv_dtype=FORMATS[kv], seed=i)))
        same((torch.cat([o for o, _ in steps]), torch.cat([lse for _, lse in steps])), whole)


@pytest.mark.parametrize("schedule", ["reversed", "random"])
def test_bits_do_not_depend_on_who_comes_first(schedule):
    call = lay_out(some([1] * 2, [1500, 300]), kv_dtype=BF16)
    want = decode(call)
    with emulate.session(emulate.Run(schedule=schedule, seed=11)):
        same(decode(call), want)


def test_a_workspace_serves_again_and_again():
    call = lay_out(some([1] * 2, [1500, 300]), kv_dtype=BF16)
    workspace = planned(call, 12)
    want = decode(call, workspace=workspace)
    for _ in range(2):  # counters are 0 again
        same(decode(call, workspace=workspace), want)


# ---- memory ----


@pytest.mark.parametrize("kv", FORMATS)
@pytest.mark.parametrize("gap", [1, 2, 4, 8])
def test_rows_may_begin_anywhere(kv, gap):
    what = sequences([1, 1], [130, 40], head_dim=72, q_dtype=BF16)
    want = decode(lay_out(what, kv_dtype=FORMATS[kv]))
    same(decode(lay_out(what, kv_dtype=FORMATS[kv], gap=gap, page_size=3)), want)


def test_pages_beyond_4_gib():
    what = some([1], [30])
    call = lay_out(what, kv_dtype=BF16)
    _, page_size, heads, head_dim = call.k_pages.shape
    stride = 2**31 + 64  # elements
    pages = call.page_table[0, :2].tolist()
    moved = []
    for source in (call.k_pages, call.v_pages):
        pool = torch.empty(stride + page_size * heads * head_dim, dtype=BF16)  # untouched memory is not there
        strides = (stride, heads * head_dim, head_dim, 1)
        far = pool.as_strided((2, page_size, heads, head_dim), strides)
        far[0], far[1] = source[pages[0]], source[pages[1]]
        moved.append(far)
    table = call.page_table.clone()
    table[0, :2] = torch.tensor([0, 1], dtype=torch.int32)
    same(decode(replace(call, k_pages=moved[0], v_pages=moved[1], page_table=table)), decode(call))


def test_a_stale_plan_gives_nan_and_reads_nothing():
    call = lay_out(some([1] * 3, [600, 90, 30]), kv_dtype=BF16)
    workspace = planned(call, 6)
    lens = call.kv_lens.clone()
    lens[0] = 20
    o, lse = decode(replace(call, kv_lens=lens), workspace=workspace)
    assert o[0].isnan().all()
    assert lse[0].isnan().all()
    assert not o[1:].isnan().any()
    assert not lse[1:].isnan().any()


def test_no_sequences():
    call = lay_out(some([1], [30]), kv_dtype=BF16)
    empty = replace(call, q=call.q[:0], kv_lens=call.kv_lens[:0], page_table=call.page_table[:0], q_lens=[1])
    o, _ = decode(empty)
    assert o.shape[0] == 0


# A format, group size and kernel; it alone is compiled. 1 column: CUDA cores.
KERNELS = [("bf16", 3, 8), ("i8", 3, 8), ("bf16", 1, 1)]


def small_call(kv: str, group_size: int) -> Call:
    sizes = {"group_size": group_size, "num_kv_heads": 1, "head_dim": 64}
    what = sequences([2] * 2, [600, 40], q_dtype=BF16, features=FEATURES, **sizes)
    return lay_out(what, kv_dtype=FORMATS[kv])


def kernel_alone(columns: int) -> list[str]:
    return ["PAGEDSERVE_DECODE_HEAD_DIM=64", f"PAGEDSERVE_DECODE_COLUMNS={columns}"]


@pytest.mark.parametrize("kv, group_size, columns", KERNELS)
@pytest.mark.parametrize("build", ["bounds", "races"])
def test_sanitizers_find_nothing(build, kv, group_size, columns):
    call = small_call(kv, group_size)
    workspace, want = planned(call, 5), decode(call)
    with emulate.session(emulate.Run(build=build, schedule="random"), defines=kernel_alone(columns)):
        same(decode(call, workspace=workspace), want)


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
@pytest.mark.parametrize("kv, group_size, columns", KERNELS[:2])
def test_what_nvcc_emitted_keeps_to_the_budget(kv, group_size, columns):
    """Not the bits of the source: nvcc contracts products and sums."""
    call = small_call(kv, group_size)
    call = replace(call, options=call.options | {"workspace": planned(call, 5)})
    with emulate.session(ptx="sm_80" if kv == "i8" else "sm_90a", defines=kernel_alone(columns)) as here:
        check_against_float64(call)
    assert here.counters["async_copies"] > 0
    assert here.counters["matrix_products"] > 0


# ---- refusals ----


def test_what_cuda_does_not_run_is_refused_by_name():
    call = lay_out(sequences([1], [30], q_dtype=F16), kv_dtype=BF16)
    with pytest.raises(BackendUnavailable, match="float16 q with bfloat16 k_pages"):
        decode(call)
    for q_dtype, kv_dtype in itertools.product([torch.float32], [torch.float32, BF16]):
        with pytest.raises(BackendUnavailable):
            decode(lay_out(sequences([1], [30], q_dtype=q_dtype), kv_dtype=kv_dtype))
    with pytest.raises(BackendUnavailable, match="up to 32"):
        decode(lay_out(sequences([33], [60], q_dtype=BF16, features=("tree_mask",)), kv_dtype=BF16))
