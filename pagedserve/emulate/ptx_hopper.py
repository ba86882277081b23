# SPDX-License-Identifier: Apache-2.0
"""PTX of sm_90: mbarriers in shared memory, bulk copies that complete on them, products of warp groups."""

from __future__ import annotations

from pagedserve.emulate.ptx_case import Case, Handler

SHARED = "shared shared::cta b64"
ELEMENT = {"bf16": "ptx::BF16", "f16": "ptx::F16"}


def init(case: Case) -> str:
    case.allow(f"init {SHARED}")
    return f"ptx::mbarrier_init({case.address(0, 'shared')}, {case.read(1, 'u32')});"


def arrive(case: Case) -> str:
    """One arrival; .expect_tx makes the phase wait for bytes too. The state that it gives is not looked at."""
    case.allow(f"arrive expect_tx release cta {SHARED}")
    if len(case.operands) != (3 if case.has("expect_tx") else 2):
        raise case.fail("an mbarrier's arrival of several is not known to the translator")
    num_bytes = case.read(2, "u32") if case.has("expect_tx") else "0u"
    return f"ptx::mbarrier_arrive({case.address(1, 'shared')}, {num_bytes}); {case.write(0, '(uint64_t)0')}"


def wait(case: Case) -> str:
    """try_wait and test_wait of a parity: here both wait, which they may."""
    case.allow(f"try_wait test_wait parity acquire cta {SHARED}")
    if not case.has("parity"):
        raise case.fail("waiting for an mbarrier's state is not known to the translator")
    return f"ptx::mbarrier_wait({case.address(1, 'shared')}, {case.read(2, 'u32')}); {case.write(0, 'true')}"


def bulk(case: Case) -> str:
    """A run of bytes from global to shared memory."""
    case.allow("async bulk shared::cluster shared::cta global mbarrier::complete_tx::bytes")
    operands = f"{case.address(0, 'shared')}, {case.address(1, 'global')}, {case.read(2, 'u32')}"
    return f"ptx::copy_bulk({operands}, {case.address(3, 'shared')});"


def group_product(case: Case) -> str:
    """wgmma.mma_async of 16-bit elements: B, and A where it is not in registers, by a descriptor of shared memory."""
    shape = next((word for word in case.words if word.startswith("m64n") and word.endswith("k16")), "")
    case.allow(f"mma_async sync aligned {shape}")
    registers, a_registers = case.vector(0), case.operands[1].startswith("{")
    total, a, b = case.types if len(case.types) == 3 else ("", "", "")
    if not shape or total != "f32" or a != b or a not in ELEMENT:
        raise case.fail("a warp group's product of this shape or these types is not known to the translator")
    if 2 * len(registers) != int(shape[4:-3]) or len(case.operands) != (7 if a_registers else 8):
        raise case.fail(f"{shape} takes n / 2 registers of results, a and b, and what follows them")
    if case.operands[4:6] != ("1", "1"):
        raise case.fail("a warp group's product of negated matrices is not known to the translator")
    places = ", ".join(f"&{case.symbol(name).cpp}" for name in registers)
    given = f"const uint32_t a[] = {case.array(1, 'b32')};" if a_registers else "const uint32_t* const a = nullptr;"
    descriptors = f"{'0' if a_registers else case.read(1, 'b64')}, {case.read(2, 'b64')}"
    layout = ", ".join(["false"] * a_registers + [case.read(place, "pred") for place in range(6, len(case.operands))])
    call = f"ptx::group_product<{ELEMENT[a]}>(d, a, {descriptors}, {{{layout}}}, {case.read(3, 'pred')});"
    return f"void* const d[] = {{{places}}}; {given} {call}"


def group_fence(case: Case) -> str:
    """Orders registers and shared memory before products: here both are read as the program has them."""
    case.allow("fence sync aligned")
    return ";"


def group_commit(case: Case) -> str:
    case.allow("commit_group sync aligned")
    return "ptx::commit_products();"


def group_wait(case: Case) -> str:
    case.allow("wait_group sync aligned")
    return f"ptx::wait_for_products({case.read(0, 'u32')});"


HANDLERS: dict[str, Handler] = {
    "mbarrier.init": init,
    "mbarrier.arrive": arrive,
    "mbarrier.try_wait": wait,
    "mbarrier.test_wait": wait,
    "cp.async.bulk.shared::cluster": bulk,
    "wgmma.mma_async": group_product,
    "wgmma.fence": group_fence,
    "wgmma.commit_group": group_commit,
    "wgmma.wait_group": group_wait,
}
