# SPDX-License-Identifier: Apache-2.0
"""append_kv, copy_pages and plan_decode as CUDA kernels, emulated: bit for bit what the CPU gives, in bounds."""

from __future__ import annotations

import mmap
import random

import pytest
import torch
from torch import Tensor

from pagedserve import emulate, ops
from pagedserve.errors import BackendUnavailable, InvalidInput
from pagedserve.ops.check import DTYPES
from pagedserve.specs import SPECS
from pagedserve.specs.plan_layout import PlanLayout

EMULATED = "cuda-emulated"
NAN, INF = float("nan"), float("inf")
NO_RESERVE = 0x4000  # Linux's MAP_NORESERVE, which Python's mmap does not name before 3.13
PAGE_DTYPES = ("float32", "bfloat16", "float16", "int8", "float8_e4m3fn", "int4")
SCALED = ("int8", "float8_e4m3fn", "int4")
RUNS = [emulate.Run(), emulate.Run(schedule="reversed"), emulate.Run(schedule="random", seed=5)]


def bits(tensor: Tensor) -> Tensor:
    """As whole numbers, with one NaN for all: which NaN a conversion makes is nobody's promise."""
    if tensor.dtype == torch.float8_e4m3fn:
        return torch.where(tensor.float().isnan(), 0x7F, tensor.view(torch.uint8))
    if tensor.dtype.is_floating_point:
        tensor = tensor.nan_to_num(nan=12345.0)
    width = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[tensor.element_size()]
    return tensor.view(width)


def pages_of(dtype: str, num_pages: int, page_size: int, heads: int, head_dim: int, gap: int) -> Tensor:
    """Pages full of NaN (or 0xFF), `gap` elements behind each row."""
    width = (head_dim // 2 if dtype == "int4" else head_dim) + gap
    size = DTYPES[dtype].itemsize
    raw = torch.full((num_pages, page_size, heads, width * size), 0xFF, dtype=torch.uint8)
    return raw.view(DTYPES[dtype])[..., : width - gap]


def append(k: Tensor, v: Tensor, dtype: str, slots: list[int], backend: str, page_size: int = 3, gap: int = 0):
    """The pages, their memory behind the rows included, and the scales."""
    _, heads, head_dim = k.shape
    num_pages = max([*slots, 0]) // page_size + 2
    k_pages, v_pages = (pages_of(dtype, num_pages, page_size, heads, head_dim, gap) for _ in range(2))
    scales = [torch.full((num_pages, page_size, heads), NAN) if dtype in SCALED else None for _ in range(2)]
    ops.append_kv(k, v, k_pages, v_pages, torch.tensor(slots), k_scales=scales[0], v_scales=scales[1], backend=backend)
    whole = [pages.as_strided((*pages.shape[:3], pages.shape[3] + gap), pages.stride()) for pages in (k_pages, v_pages)]
    return [bits(tensor) for tensor in (*whole, *scales) if tensor is not None]


def same(got: list[Tensor], want: list[Tensor]) -> None:
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def hard_rows(dtype: torch.dtype, num_tokens: int, heads: int, head_dim: int) -> Tensor:
    """Magnitudes from subnormal to huge, rows of zeros, rows with NaN and infinities."""
    generator = torch.Generator().manual_seed(head_dim)
    x = torch.randn(num_tokens, heads, head_dim, generator=generator)
    x *= torch.logspace(-44, 38, num_tokens * heads).view(num_tokens, heads, 1)
    x[::7] = 0
    x[3, 0, -1], x[4, 0, 0], x[5, -1, head_dim // 2] = NAN, INF, -INF
    return x.to(dtype)


@pytest.mark.parametrize("dtype", PAGE_DTYPES)
@pytest.mark.parametrize("source", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("heads, head_dim, gap", [(2, 64, 0), (3, 40, 1), (1, 6, 0), (2, 256, 8), (1, 264, 16)])
def test_append_gives_the_bits_of_the_cpu(source, dtype, heads, head_dim, gap):
    k, v = hard_rows(source, 16, heads, head_dim), hard_rows(source, 16, heads, head_dim).flip(0)
    slots = torch.randperm(40, generator=torch.Generator().manual_seed(1))[:16].tolist()
    slots[2], slots[9] = -1, -(2**40)
    for x in (k, k.repeat(1, 1, 2)[..., :head_dim]):  # dense rows, then strided ones
        want, got = (append(x, v, dtype, slots, backend, gap=gap) for backend in ("cpu", EMULATED))
        same(got, want)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float8_e4m3fn", "int8", "int4"])
def test_every_rounding_is_the_cpus(dtype):
    """Every bf16 there is, and numbers halfway between the codes of a row whose scale is 1."""
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.bfloat16).float()
    largest = {"int8": 127.0, "int4": 7.0, "float8_e4m3fn": 448.0}.get(dtype)
    if largest is not None:
        halves = torch.arange(-largest * 4, largest * 4 + 1) / 4
        every = every[every.abs() < largest]
        every = torch.cat([halves, torch.nextafter(halves, halves + 1), torch.nextafter(halves, halves - 1), every])
    rows = torch.nn.functional.pad(every, (0, -len(every) % 255)).view(-1, 1, 255)
    x = torch.cat([torch.full((len(rows), 1, 1), 1.0 if largest is None else largest), rows], dim=2)
    if largest is not None:
        x = x.clamp(-largest, largest)
    slots = list(range(len(x)))
    same(append(x, x, dtype, slots, EMULATED, page_size=16), append(x, x, dtype, slots, "cpu", page_size=16))


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.schedule)
def test_the_schedule_of_threads_changes_nothing(run):
    x = hard_rows(torch.bfloat16, 16, 3, 128)
    with emulate.session(run):
        got = append(x, x, "int4", list(range(16)), EMULATED)
    same(got, append(x, x, "int4", list(range(16)), "cpu"))


def copies(seed: int, num_pages: int, count: int) -> tuple[list[int], list[int]]:
    pick = random.Random(seed)
    return ([pick.randrange(num_pages) for _ in range(count)] for _ in range(2))


@pytest.mark.parametrize("page_shape", [(4, 2, 8), (3, 1, 7), (1, 1, 1), (16, 8, 64)])
@pytest.mark.parametrize("num_pages, count", [(4, 30), (40, 30), (40, 8), (3, 1), (5, 0)])
@pytest.mark.parametrize("in_place", [True, False])
def test_copies_happen_in_list_order(page_shape, num_pages, count, in_place):
    """In place, with few pages, most copies read what an earlier one wrote, or write what another reads or writes."""
    src_pages, dst_pages = copies(count, num_pages, count)
    results = []
    for backend in ("reference", EMULATED):
        raw = torch.arange(num_pages * (page_shape[0] + 1) * page_shape[1] * page_shape[2], dtype=torch.int32)
        src = raw.view(torch.float32).view(num_pages, page_shape[0] + 1, *page_shape[1:])[:, : page_shape[0]]
        dst = src if in_place else torch.full_like(src, NAN)
        ops.copy_pages(src, dst, torch.tensor(src_pages).long(), torch.tensor(dst_pages).long(), backend=backend)
        results.append([bits(raw.view(torch.float32)), bits(dst.contiguous())])
    same(*results)


@pytest.fixture
def large_pools():
    """Two pools of 6 GiB of address space each, of which only what is written becomes memory."""
    memory = mmap.mmap(-1, 12 << 30, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_RESERVE)
    pages = torch.frombuffer(memory, dtype=torch.bfloat16).view(-1, 16, 2, 64)
    return pages.chunk(2)


def test_pages_beyond_four_gibibytes(large_pools):
    k_pages, v_pages = large_pools
    last = len(k_pages) - 1
    assert last * k_pages.stride(0) > 1 << 31  # elements; bytes are twice that
    k, v = torch.randn(2, 3, 2, 64).bfloat16()
    slots = [last * 16 + 5, 3, (last - 1) * 16]
    ops.append_kv(k, v, k_pages, v_pages, torch.tensor(slots), backend=EMULATED)
    for x, pages in ((k, k_pages), (v, v_pages)):
        rows = pages.view(-1, 2, 64)
        assert torch.equal(rows[slots], x)
        assert not rows[[slots[0] - 1, slots[0] + 1, 2, 4]].any()
    ops.copy_pages(k_pages, v_pages, torch.tensor([last, 0]), torch.tensor([last // 2, last - 2]), backend=EMULATED)
    assert torch.equal(v_pages[[last // 2, last - 2]], k_pages[[last, 0]])


@pytest.mark.parametrize("build", ["bounds", "races"])
def test_sanitizers_find_nothing(build):
    """AddressSanitizer with exact buffers, and data races by happens-before."""
    x = hard_rows(torch.bfloat16, 12, 2, 40)
    with emulate.session(emulate.Run(build=build, schedule="random")) as session:
        if build == "bounds":  # their threads share nothing that they write
            append(x, x.repeat(1, 1, 2)[..., :40], "int4", list(range(12)), EMULATED)
            pages = torch.zeros(6, 4, 8)
            ops.copy_pages(pages, pages, torch.tensor([0, 1, 2, 1]), torch.tensor([1, 2, 3, 5]), backend=EMULATED)
        case = next(case for case in SPECS["plan_decode"].cases() if case.id == "plan-window")
        workspace = torch.zeros(case.sizes["workspace_bytes"], dtype=torch.uint8)
        lens = torch.tensor(case.lens, dtype=torch.int32)
        ops.plan_decode(lens, workspace, **case.options, backend=EMULATED)
    assert session.findings == []


HEADS = {"num_q_heads": 4, "num_kv_heads": 2, "head_dim": 64}


def test_a_plan_is_replayed_with_other_lengths():
    """One workspace, one set of sizes, many steps: each plan is what a fresh workspace would hold."""
    used = torch.full((ops.decode_workspace_bytes(5, **HEADS, max_kv_tokens=4000),), 0xAB, dtype=torch.uint8)
    for lens in ([1, 1, 1, 1, 1], [3000, 0, -1, 999, 1], [0] * 5, [1 << 20, 7, 7, 7, 7]):
        fresh = used.clone()
        kv_lens = torch.tensor(lens, dtype=torch.int32)
        ops.plan_decode(kv_lens, used, **HEADS, num_blocks=11, backend=EMULATED)
        ops.plan_decode(kv_lens, fresh, **HEADS, num_blocks=11, backend="reference")
        assert torch.equal(used, fresh)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"num_blocks": 1025}, "num_blocks is 1025; give 1 to 1024"),
        ({"num_kv_heads": 3}, "num_q_heads must be a multiple"),
        ({"q_len": 0}, "q_len is 0; give a whole number, 1 or above"),
        ({"head_dim": -8}, "head_dim is -8"),
        ({"num_q_heads": 2**31 - 1, "num_kv_heads": 1}, "supported: up to 2147483647"),
    ],
)
@pytest.mark.parametrize("backend", ["auto", EMULATED])
def test_a_plan_that_cannot_be_is_refused(change, message, backend):
    workspace = torch.zeros(10**6, dtype=torch.uint8)
    with pytest.raises(InvalidInput, match=message):
        ops.plan_decode(torch.ones(3, dtype=torch.int32), workspace, **{**HEADS, **change}, backend=backend)
    assert not workspace.any()


def test_a_workspace_too_small_or_askew_is_refused():
    lens = torch.ones(3, dtype=torch.int32)
    needed = PlanLayout.of(3, *HEADS.values()).partials
    with pytest.raises(InvalidInput, match=f"has {needed - 1} bytes.* takes at least {needed}"):
        ops.plan_decode(lens, torch.zeros(needed - 1, dtype=torch.uint8), **HEADS, backend=EMULATED)
    with pytest.raises(InvalidInput, match="no multiple of 16 bytes"):
        ops.plan_decode(lens, torch.zeros(needed + 8, dtype=torch.uint8)[8:], **HEADS, backend=EMULATED)
    with pytest.raises(InvalidInput, match="max_seqs is -1"):
        ops.decode_workspace_bytes(-1, **HEADS, max_kv_tokens=10)


def test_the_cuda_backend_says_why_it_cannot():
    with pytest.raises(BackendUnavailable, match="its tensors are on cpu, it runs on cuda"):
        ops.copy_pages(torch.zeros(1, 4), torch.zeros(1, 4), torch.tensor([0]), torch.tensor([0]), backend="cuda")
