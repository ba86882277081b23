# SPDX-License-Identifier: Apache-2.0
"""PTX of sm_90: mbarriers in shared memory, and bulk copies that complete on them."""

from __future__ import annotations

from pagedserve.emulate.ptx_case import Case, Handler

SHARED = "shared shared::cta b64"


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


HANDLERS: dict[str, Handler] = {
    "mbarrier.init": init,
    "mbarrier.arrive": arrive,
    "mbarrier.try_wait": wait,
    "mbarrier.test_wait": wait,
    "cp.async.bulk.shared::cluster": bulk,
}
