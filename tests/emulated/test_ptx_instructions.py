# SPDX-License-Identifier: Apache-2.0
"""PTX written by hand: matrix products of every type against torch, and what the translator reads and refuses."""

import pytest
import torch

from pagedserve.emulate.ptx import Program, PtxError, load, translate
from pagedserve.emulate.ptx_parse import parse

HEAD = ".version 8.5\n.target sm_90a\n.address_size 64\n"


def kernel(name: str, params: str, body: str) -> str:
    return f".visible .entry {name}({params})\n{{\n{body}\nret;\n}}\n"


# ---- matrix products ----

# kind of A and B, k, kind of sums
PRODUCTS = (
    ("bf16", 8, "f32"), ("bf16", 16, "f32"), ("f16", 8, "f32"), ("f16", 16, "f32"), ("f16", 16, "f16"),
    ("tf32", 4, "f32"), ("tf32", 8, "f32"), ("s8", 16, "s32"), ("s8", 32, "s32"), ("e4m3", 32, "f32"),
    ("e5m2", 32, "f32"),
)  # fmt: skip
TORCH = {
    "bf16": torch.bfloat16, "f16": torch.float16, "tf32": torch.float32, "s8": torch.int8,
    "e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2, "f32": torch.float32, "s32": torch.int32,
}  # fmt: skip


def product_kernel(kind: str, k: int, sums: str) -> str:
    """Each lane loads its registers of A, B and C, multiplies, and stores C's."""
    words = k * TORCH[kind].itemsize // 8
    c_words = 2 if sums == "f16" else 4
    names = {"a": words, "b": words // 2, "c": c_words}
    loads = [
        f"ld.param.u64 %rd0, [p{place}]; mad.wide.u32 %rd0, %lane, {4 * count}, %rd0;\n"
        + "".join(f"ld.global.b32 %{name}{i}, [%rd0+{4 * i}];\n" for i in range(count))
        for place, (name, count) in enumerate(names.items())
    ]
    vectors = {name: "{" + ", ".join(f"%{name}{i}" for i in range(count)) + "}" for name, count in names.items()}
    product = f"mma.sync.aligned.m16n8k{k}.row.col.{sums}.{kind}.{kind}.{sums}"
    body = f"""
    .reg .b32 %a<4>; .reg .b32 %b<2>; .reg .{"f32" if sums == "f32" else "b32"} %c<4>;
    .reg .b32 %lane; .reg .b64 %rd<1>;
    mov.u32 %lane, %laneid;
    {"".join(loads)}
    {product} {vectors["c"]}, {vectors["a"]}, {vectors["b"]}, {vectors["c"]};
    {"".join(f"st.global.b32 [%rd0+{4 * i}], %c{i};" for i in range(c_words))}
    """
    return kernel(f"product_{kind}_{k}_{sums}", ", ".join(f".param .u64 p{i}" for i in range(3)), body)


TRANSPOSE = kernel(
    "transpose",
    ".param .u64 p0",
    """
    .reg .b32 %r<2>; .reg .b64 %rd<1>;
    mov.u32 %r1, %laneid; ld.param.u64 %rd0, [p0]; mad.wide.u32 %rd0, %r1, 4, %rd0;
    ld.global.b32 %r0, [%rd0]; movmatrix.sync.aligned.m8n8.trans.b16 %r0, %r0; st.global.b32 [%rd0], %r0;
    """,
)


@pytest.fixture(scope="module")
def products() -> Program:
    return load(HEAD + "".join(product_kernel(*case) for case in PRODUCTS) + TRANSPOSE, name="products")


def test_a_matrix_is_transposed(products):
    matrix = torch.arange(64, dtype=torch.int16).view(8, 8)
    given = matrix.clone()  # lane l has elements 2 l and 2 l + 1, row by row
    products.launch("transpose", grid=(1, 1, 1), threads=32, arguments=[given])
    assert torch.equal(given, matrix.T)


def words_of(matrix: torch.Tensor, rows: list[int]) -> torch.Tensor:
    """[lanes, registers]: of a matrix's given rows, 4 bytes at 4 q of every 16, for lane 4 g + q of row g."""
    bytes_of = matrix.contiguous().view(torch.uint8)
    size = bytes_of.shape[1]
    out = [
        torch.stack([bytes_of[row + lane // 4, start + lane % 4 * 4 :][:4] for lane in range(32)])
        for start in range(0, size, 16)
        for row in rows
    ]
    return torch.stack(out, 1).contiguous().view(torch.int32).squeeze(-1).contiguous()


@pytest.mark.parametrize("kind, k, sums", PRODUCTS)
def test_matrix_products(products, kind, k, sums):
    generator = torch.Generator().manual_seed(4)
    a, b = (torch.randint(-6, 7, (rows, k), generator=generator).float() for rows in (16, 8))
    if kind not in ("s8", "e4m3", "e5m2"):
        a, b = a / 8, b / 4
    c = torch.randint(-9, 10, (16, 8), generator=generator).float()
    a, b, c = a.to(TORCH[kind]), b.to(TORCH[kind]), c.to(TORCH[sums])
    # C's rows are 8 sums: lane 4 g + q has columns 2 q and 2 q + 1 of rows g and g + 8.
    pairs = torch.stack([c.view(2, 8, 4, 2)[r, lane // 4, lane % 4] for lane in range(32) for r in range(2)])
    registers = pairs.reshape(32, 4).contiguous()
    arguments = [words_of(a, [0, 8]), words_of(b, [0]), registers]
    products.launch(f"product_{kind}_{k}_{sums}", grid=(1, 1, 1), threads=32, arguments=arguments)
    expected = c.double() + a.double() @ b.double().T
    got = torch.empty(16, 8, dtype=torch.float64)
    for lane in range(32):
        for r in range(2):
            got[lane // 4 + 8 * r, lane % 4 * 2 : lane % 4 * 2 + 2] = registers[lane, 2 * r : 2 * r + 2].double()
    assert torch.equal(got, expected)  # small whole numbers and eighths: every sum is exact


# ---- what is read ----

BLOCKS = kernel(
    "scopes",
    ".param .u64 out, .param .u32 times",
    """
    .reg .b32 %r<4>; .reg .b64 %rd<3>; .reg .pred %p<3>;
    ld.param.u64 %rd1, [out]; ld.param.u32 %r1, [times]; cvta.to.global.u64 %rd1, %rd1;
    mov.u32 %r2, 0; mov.u32 %r3, 0;
    { .reg .pred done; // a name and a label that the next block has too
    AGAIN: setp.ge.u32 done, %r2, %r1; @done bra END; add.u32 %r2, %r2, 1; bra.uni AGAIN;
    END: }
    { .reg .pred done; .reg .b32 step; mov.u32 step, 3;
    AGAIN: setp.ge.u32 done|%p1, %r3, 30; @%p1 add.u32 %r3, %r3, step; @!done bra AGAIN; }
    table: .branchtargets FIRST, SECOND, THIRD;
    and.b32 %r1, %r1, 3;
    @%p1 bra FIRST;
    brx.idx %r1, table;
    FIRST: mov.u32 %r1, 10; bra STORE;
    SECOND: mov.u32 %r1, 20; bra STORE;
    THIRD: mov.u32 %r1, 30;
    STORE: st.global.v2.b32 [%rd1], {%r2, %r3}; st.global.u32 [%rd1+8], %r1;
    { .reg .b64 pair; .reg .b32 low; mov.b64 pair, {%r1, %r2}; mov.b64 {low, _}, pair; st.global.b32 [%rd1+12], low; }
    """,
)


@pytest.mark.parametrize("times, chosen", [(4, 10), (5, 20), (2, 30)])
def test_blocks_have_names_of_their_own(times, chosen):
    out = torch.zeros(4, dtype=torch.int32)
    load(HEAD + BLOCKS, name="scopes").launch("scopes", grid=(1, 1, 1), threads=1, arguments=[out, times])
    assert out.tolist() == [times, 30, chosen, chosen]


def test_a_module_is_read():
    text = """.version 8.5
    .target sm_90a, debug /* comment ; { */
    .address_size 64
    .global .align 4 .b8 table[3] = {1, 0x2, 3}; // comment }
    .extern .shared .align 16 .b8 memory[];
    .visible .entry run(.param .align 16 .b8 p0[24], .param .f32 p1) .maxntid 128, 1, 1
    { .reg .b32 %r<2>; .shared .align 8 .b64 barrier; .local .align 4 .b8 spilled[12];
      .loc 1 2 3
      mov.u32 %r1, memory; .pragma "nounroll"; ret; }
    """
    module = parse(text)
    entry = module.entries[0]
    assert module.target == "sm_90a"
    assert [(symbol.cpp, symbol.num_bytes, symbol.align) for symbol in entry.params] == [
        ("param_p0", 24, 16),
        ("param_p1", 4, 4),
    ]
    assert [(symbol.kind, symbol.num_bytes) for symbol in entry.variables] == [("shared", 8), ("local", 12)]
    assert module.variables[0].init == bytes([1, 2, 3])
    assert module.variables[1].num_bytes is None
    assert [item.line for item in entry.body] == [9, 9]


# ---- what is refused ----

GROUP = "wgmma.mma_async.sync.aligned.m64n8k16.f32"


@pytest.mark.parametrize(
    "line, message",
    [
        ("frobnicate.s32 %r0, %r0;", r"PTX line 7: frobnicate\.s32 is not known"),
        ("add.rp.f32 %r0, %r0, %r0;", r"PTX line 7: add with \.rp is not known"),
        ("add.sat.s32 %r0, %r0, %r0;", "a saturating integer"),
        ("mma.sync.aligned.m8n8k4.row.col.f32.f16.f16.f32 {%r0}, {%r0}, {%r0}, {%r0};", "this shape or layout"),
        ("mov.u32 %r0, %clusterid.x;", "nothing is named"),
        ("mov.u32 %r0, %absent;", "nothing is named '%absent'"),
        ("ld.global.v2.u32 %r0, [%r0];", "a vector of 1 where the opcode says 2"),
        ("cvt.rp.f16.f32 %r0, %r0;", "rounding up or down"),
        ("call.uni (%r0), other, (%r0);", "a call that was not inlined"),
        ("membar.everywhere;", "membar with .everywhere"),
        ("add.s32 %r0, %r0;", "add takes 3 operands"),
        (f"{GROUP}.f16.f16 {{%r0, %r0, %r0, %r0}}, 0, 0, 1, 1, -1, 0, 0;", "product of negated matrices"),
        (f"{GROUP}.e4m3.e4m3 {{%r0, %r0, %r0, %r0}}, 0, 0, 1, 1, 1;", "this shape or these types"),
        (f"{GROUP}.bf16.bf16 {{%r0, %r0}}, 0, 0, 1, 1, 1, 0, 0;", r"takes n / 2 registers"),
    ],
)
def test_what_is_not_known_stops_with_its_line(line, message):
    with pytest.raises(PtxError, match=message):
        translate(HEAD + kernel("k", "", f".reg .b32 %r<1>;\n{line}"))


@pytest.mark.parametrize(
    "text, message",
    [
        (".func helper() { ret; }", "line 1: a device function that was not inlined"),
        (".visible .entry k() { ret;", "k has no closing brace"),
        (".visible .entry k() { .reg .f31 %f<2>; ret; }", "a type that is not known"),
        (".texref picture;", "not a declaration that is known"),
    ],
)
def test_what_is_no_kernel_is_refused(text, message):
    with pytest.raises(PtxError, match=message):
        parse(text)
