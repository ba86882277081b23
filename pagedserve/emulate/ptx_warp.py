# SPDX-License-Identifier: Apache-2.0
"""PTX that threads do together: branches and barriers, shuffles and votes, matrix loads and products."""

from __future__ import annotations

import re

from pagedserve.emulate.ptx_case import CPP_TYPE, Case, Handler

ELEMENT = {
    "bf16": "ptx::BF16", "f16": "ptx::F16", "tf32": "ptx::TF32", "e4m3": "ptx::E4M3", "e5m2": "ptx::E5M2",
    "s8": "int8_t", "u8": "uint8_t",
}  # fmt: skip
ELEMENT_BYTES = {"bf16": 2, "f16": 2, "tf32": 4, "e4m3": 1, "e5m2": 1, "s8": 1, "u8": 1}
SHUFFLES = {"idx": "kIdx", "bfly": "kXor", "up": "kUp", "down": "kDown"}


def branch(case: Case) -> str:
    case.allow("uni")
    return f"goto {case.symbol(case.operands[0]).cpp};"


def indexed_branch(case: Case) -> str:
    case.allow("idx uni")
    targets = case.symbol(case.operands[1]).labels
    gotos = " ".join(f"case {index}: goto {case.symbol(name).cpp};" for index, name in enumerate(targets))
    return f'switch ({case.read(0, "u32")}) {{ {gotos} default: ptx::fail("an index beyond the branch targets"); }}'


def leave(case: Case) -> str:
    case.allow("uni")
    return "return;"


def trap(case: Case) -> str:
    return f'ptx::fail("{case.base}");'


def call(case: Case) -> str:
    """A failed assertion ends the run; other calls are not known."""
    if any("__assertfail" in operand for operand in case.operands):
        return 'ptx::fail("a device assertion failed");'
    raise case.fail("a call that was not inlined")


def hint(case: Case) -> str:
    """What changes how fast things go on the device, and no more."""
    return ";"


def grid_dependency(case: Case) -> str:
    return "ptx::wait_for_previous_kernel();" if case.one_of("wait launch_dependents") == "wait" else ";"


def nanosleep(case: Case) -> str:
    return "ptx::spin_pause();"


def barrier(case: Case) -> str:
    """bar and barrier: .sync and .arrive of the block, and bar.warp.sync."""
    case.allow("cta sync aligned arrive warp")
    if case.has("warp"):
        return f"ptx::warp_sync({case.read(0, 'u32')});"
    count = case.read(1, "u32") if len(case.operands) > 1 else "0u"
    name = "block_arrive" if case.has("arrive") else "block_sync"
    return f"ptx::{name}({case.read(0, 'u32')}, {count});"


def shuffle(case: Case) -> str:
    case.allow(f"sync {' '.join(SHUFFLES)}")
    kind = SHUFFLES[case.one_of(" ".join(SHUFFLES))]
    values = ", ".join((case.read(1, "b32"), case.read(2, "u32"), case.read(3, "u32"), case.read(4, "u32")))
    target, _, inside = case.operands[0].partition("|")
    writes = [case.write(target, "got.value")] + ([case.write(inside, "got.inside")] if inside else [])
    return f"const auto got = ptx::shuffle<ptx::{kind}>({values}); {' '.join(writes)}"


def vote(case: Case) -> str:
    case.allow("sync all any uni ballot")
    kind = case.one_of("all any uni ballot")
    return case.write(0, f"ptx::vote_{kind}({case.read(1, 'pred')}, {case.read(2, 'u32')})")


def match(case: Case) -> str:
    case.allow("sync any")
    return case.write(0, f"ptx::match_any({case.read(1)}, {case.read(2, 'u32')})")


def reduce(case: Case) -> str:
    case.allow("sync add min max and or xor")
    kind = case.one_of("add min max and or xor")
    return case.write(0, f"ptx::reduce_{kind}<{CPP_TYPE[case.type]}>({case.read(1)}, {case.read(2, 'u32')})")


def elect(case: Case) -> str:
    """One lane of the mask, the same each time: here the first."""
    lane, _, chosen = case.operands[0].partition("|")
    mask = case.read(1, "u32")
    first = f"const uint32_t first = ptx::first_lane({mask});"
    return f"{first} {case.write(lane, 'first')} {case.write(chosen, 'ptx::lane() == first')}"


def num_matrices(case: Case, words: str) -> int:
    """How many 8 x 8 matrices ldmatrix or stmatrix moves."""
    case.allow(f"sync aligned m8n8 x1 x2 x4 shared shared::cta {words}")
    if case.type != "b16":
        raise case.fail("matrices of other than 16-bit elements are not known to the translator")
    return int(case.one_of("x1 x2 x4")[1:])


def load_matrix(case: Case) -> str:
    count, transposed = num_matrices(case, "trans"), "true" if case.has("trans") else "false"
    writes = " ".join(case.write(member, f"r[{index}]") for index, member in enumerate(case.vector(0)))
    address = case.address(1, "shared")
    return f"uint32_t r[{count}]; ptx::load_matrices(r, {count}, {address}, {transposed}); {writes}"


def store_matrix(case: Case) -> str:
    count, address = num_matrices(case, ""), case.address(0, "shared")
    return f"const uint32_t r[{count}] = {case.array(1, 'b32')}; ptx::store_matrices(r, {count}, {address});"


def transpose_matrix(case: Case) -> str:
    case.allow("sync aligned m8n8 trans")
    return case.write(0, f"ptx::transpose_matrix({case.read(1, 'b32')})")


def matrix_product(case: Case) -> str:
    """mma.sync: rows of A times columns of B, 16 x 8 results, in every element type of sm_80 to sm_90."""
    shape = next((word for word in case.words if re.fullmatch(r"m\d+n\d+k\d+", word)), "")
    case.allow(f"sync aligned row col satfinite {shape}")
    match = re.fullmatch(r"m16n8k(\d+)", shape)
    if match is None or not case.has("row") or not case.has("col") or len(case.types) != 4:
        raise case.fail("a matrix product of this shape or layout is not known to the translator")
    total, a, b, other = case.types
    if total != other or a not in ELEMENT or b not in ELEMENT or ELEMENT_BYTES[a] != ELEMENT_BYTES[b]:
        raise case.fail("a matrix product of these types is not known to the translator")
    words = int(match[1]) * ELEMENT_BYTES[a] // 8  # registers of A; B has half
    if len(case.vector(1)) != words or len(case.vector(2)) * 2 != words:
        raise case.fail(f"{shape} of {a} takes {words} registers of A and {words // 2} of B")
    sum_type = {"f32": "float", "f16": "ptx::F16", "s32": "int32_t"}[total]
    kind = "b32" if total == "f16" else total
    registers = f"uint32_t a[{words}] = {case.array(1, 'b32')}, b[{words // 2}] = {case.array(2, 'b32')};"
    c = f"{CPP_TYPE[kind]} c[{len(case.vector(3))}] = {case.array(3, kind)};"
    product = f"ptx::mma<{sum_type}, {ELEMENT[a]}, {ELEMENT[b]}, {words}>(c, a, b);"
    writes = " ".join(case.write(member, f"c[{index}]") for index, member in enumerate(case.vector(0)))
    return f"{registers} {c} {product} {writes}"


HANDLERS: dict[str, Handler] = {
    "bra": branch,
    "brx": indexed_branch,
    "ret": leave,
    "exit": leave,
    "trap": trap,
    "brkpt": trap,
    "call": call,
    "griddepcontrol": grid_dependency,
    "setmaxnreg": hint,
    "nanosleep": nanosleep,
    "bar": barrier,
    "barrier": barrier,
    "shfl": shuffle,
    "vote": vote,
    "match": match,
    "redux": reduce,
    "elect": elect,
    "ldmatrix": load_matrix,
    "stmatrix": store_matrix,
    "movmatrix": transpose_matrix,
    "mma": matrix_product,
}
