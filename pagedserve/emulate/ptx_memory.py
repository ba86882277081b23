# SPDX-License-Identifier: Apache-2.0
"""PTX loads, stores, atomics, fences and asynchronous copies."""

from __future__ import annotations

from pagedserve.emulate.ptx_case import CPP_TYPE, Case, Handler
from pagedserve.emulate.ptx_parse import TYPE_BYTES

SCOPES = "cta cluster gpu sys"
SPACES = "global shared shared::cta shared::cluster local const param param::entry"
CACHES = (
    "ca cg cs lu cv wb wt nc L1::evict_normal L1::evict_unchanged L1::evict_first L1::evict_last L1::no_allocate "
    "L2::evict_first L2::evict_last L2::evict_normal L2::cache_hint L2::64B L2::128B L2::256B"
)
ATOMICS = "add min max and or xor exch cas inc dec"


def vector_words(case: Case, operand: int) -> tuple[str, ...]:
    """The members of a vector operand, whose number the opcode must name."""
    members = case.vector(operand)
    wanted = next((int(word[1:]) for word in case.words if word in ("v2", "v4", "v8")), 1)
    if wanted != len(members):
        raise case.fail(f"a vector of {len(members)} where the opcode says {wanted}")
    return members


def ordering(case: Case) -> str:
    """The C++ name of what an atomic access says about other memory."""
    name = next((word for word in ("acq_rel", "release", "acquire") if case.has(word)), "relaxed")
    return f"ptx::Order::k{''.join(part.capitalize() for part in name.split('_'))}"


def checked(case: Case, pointer: str, num_bytes: int) -> str:
    """The declaration of p, tested for what an access to so many bytes needs."""
    is_shared = "true" if case.space() == "shared" else "false"
    return f"char* const p = (char*){pointer}; ptx::check_access({is_shared}, p, {num_bytes});"


def load(case: Case) -> str:
    case.allow(f"{SPACES} {SCOPES} {CACHES} weak volatile relaxed acquire v2 v4 v8")
    size, members = TYPE_BYTES[case.type], vector_words(case, 0)
    is_atomic = any(case.has(word) for word in ("relaxed", "acquire", "volatile"))
    name, order = ("load_atomic", f", {ordering(case)}") if is_atomic else ("load", "")
    reads = [
        case.write(member, f"ptx::{name}<{CPP_TYPE[case.type]}>(p + {index * size}{order})")
        for index, member in enumerate(members)
    ]
    return " ".join([checked(case, case.address(1, case.space()), size * len(members)), *reads])


def store(case: Case) -> str:
    case.allow(f"{SPACES} {SCOPES} {CACHES} weak volatile relaxed release v2 v4 v8")
    size, members = TYPE_BYTES[case.type], vector_words(case, 1)
    is_atomic = any(case.has(word) for word in ("relaxed", "release", "volatile"))
    name, order = ("store_atomic", f", {ordering(case)}") if is_atomic else ("store", "")
    writes = [
        f"ptx::{name}<{CPP_TYPE[case.type]}>(p + {index * size}, {case.read(member)}{order});"
        for index, member in enumerate(members)
    ]
    return " ".join([checked(case, case.address(0, case.space()), size * len(members)), *writes])


def prefetch(case: Case) -> str:
    """A hint: nothing is read."""
    return ";"


def createpolicy(case: Case) -> str:
    return case.write(0, "(uint64_t)0")


def atomic(case: Case) -> str:
    """atom gives the old value, red does not."""
    case.allow(f"{SPACES} {SCOPES} {ATOMICS} relaxed acquire release acq_rel noftz")
    name = case.one_of(ATOMICS)
    at = 1 if case.base == "atom" else 0
    operands = [case.read(index) for index in range(at + 1, at + (3 if name == "cas" else 2))]
    call = f"ptx::atomic_{name}<{CPP_TYPE[case.type]}>({', '.join(['p', *operands, ordering(case)])})"
    head = checked(case, case.address(at, case.space()), TYPE_BYTES[case.type])
    return f"{head} {case.write(0, call) if at else f'{call};'}"


def fence(case: Case) -> str:
    """membar and fence. Memory is ordered alike for every scope; a proxy's own fence orders nothing else."""
    case.allow(
        f"{SCOPES} gl sc acq_rel acquire release proxy async async.global async.shared::cta mbarrier_init shared::cta"
    )
    return ";" if case.has("proxy") else "ptx::fence();"


def cp_async(case: Case) -> str:
    """Copies of 4, 8 or 16 bytes that land when they are waited for, and how they are grouped."""
    opcode = case.instruction.opcode
    if opcode == "cp.async.commit_group":
        return "ptx::async_commit();"
    if opcode == "cp.async.wait_group":
        return f"ptx::async_wait({case.read(0, 'u32')});"
    if opcode == "cp.async.wait_all":
        return "ptx::async_wait_all();"
    case.allow("async ca cg shared shared::cta global L2::64B L2::128B L2::256B L2::cache_hint")
    operands = case.operands[:-1] if case.has("L2::cache_hint") else case.operands
    size = case.read(2, "u32")
    valid = case.read(3, "u32") if len(operands) > 3 else size
    to, source = case.address(0, "shared"), case.address(1, "global")
    return f"ptx::async_copy({to}, {source}, {size}, {valid});"


HANDLERS: dict[str, Handler] = {
    "ld": load,
    "ldu": load,
    "st": store,
    "prefetch": prefetch,
    "prefetchu": prefetch,
    "discard": prefetch,
    "applypriority": prefetch,
    "createpolicy": createpolicy,
    "atom": atomic,
    "red": atomic,
    "membar": fence,
    "fence": fence,
    "cp.async": cp_async,
}
