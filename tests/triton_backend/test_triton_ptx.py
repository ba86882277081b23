# SPDX-License-Identifier: Apache-2.0
"""Attention, and what writes in place, as Triton's compiler emitted it, on the CUDA emulator, against the reference."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

from pagedserve.backends.triton import interpreted
from pagedserve.backends.triton.target import Target
from pagedserve.emulate import Run, session
from pagedserve.errors import KernelFault
from pagedserve.ops.agreement import disagreement
from pagedserve.ops.cases import make_inputs
from pagedserve.specs import Case
from tests.triton_backend.calls import all_results
from tests.triton_backend.ptx_calls import emit, emulate

pytestmark = [
    pytest.mark.triton,
    pytest.mark.timeout(900),  # a busy machine compiles slowly
    pytest.mark.skipif(shutil.which("g++") is None, reason="the emulator needs g++"),
]

CACHE = Path(__file__).resolve().parents[2] / "build" / "triton"
SHAPE = {"num_q_heads": 6, "num_kv_heads": 2, "head_dim": 64, "page_size": 16}


def decode(k_pages, **options):
    return Case("decode", SHAPE, {"q": "bfloat16", "k_pages": k_pages}, options, (300, 17, 0, 513), (1,) * 4)


def prefill(k_pages, **options):
    return Case("prefill", SHAPE, {"q": "bfloat16", "k_pages": k_pages}, options, (150, 40, 5), (60, 40, 0))


def rope_append(k_pages, **options):
    sizes = {"num_tokens": 3, "num_pages": 2, "rotary_dim": 64, "max_position": 40}
    return Case("rope_append", SHAPE | sizes, {"q": "bfloat16", "k_pages": k_pages}, options)


CALLS = [
    ("paged_decode", decode("bfloat16", sinks=True, window=130, soft_cap=5.0, alibi_slopes=True), 90),
    ("paged_decode", decode("float8_e4m3fn"), 80),
    ("paged_prefill", prefill("bfloat16"), 80),
    ("paged_prefill", prefill("bfloat16"), 90),
    ("rope_append_kv", rope_append("int8", q_norm=True, k_norm=True), 90),
]


def emulated(op, case, arch, emitted):
    """What a case's call gives and writes, by what was emitted for it."""

    def instead(*operands):
        for launch, each in zip(getattr(interpreted, op).build(Target(arch), *operands), emitted, strict=True):
            emulate(launch, each)

    return all_results(op, make_inputs(op, case), instead)


@pytest.mark.parametrize("schedule", ["in-order", "random"])
@pytest.mark.parametrize("op, case, arch", CALLS, ids=lambda value: getattr(value, "id", value))
def test_what_is_emitted_agrees_with_the_reference(op, case, arch, schedule):
    emitted = emit(op, case, arch, str(CACHE))
    assert ("wgmma.mma_async" in emitted[0].text) == (op == "paged_prefill" and arch == 90)
    with session(Run(schedule=schedule)):
        got = emulated(op, case, arch, emitted)
    assert disagreement(op, make_inputs(op, case), got) is None


def without(emitted, pattern):
    """What was emitted but for the first of what a pattern finds, each line where it was."""
    text, count = re.subn(pattern, ";", emitted.text, count=1)
    assert count, pattern
    return replace(emitted, text=text)


def test_a_product_that_is_not_waited_for_is_not_there():
    """The accumulators of a warp group hold NaN until their wait."""
    case = prefill("bfloat16")
    (emitted,) = emit("paged_prefill", case, 90, str(CACHE))
    broken = without(emitted, r"wgmma\.wait_group\.sync\.aligned\s+0;")
    assert "nan" in disagreement(
        "paged_prefill", make_inputs("paged_prefill", case), emulated("paged_prefill", case, 90, [broken])
    )


def test_rotating_in_place_needs_its_barrier():
    """Queries are read by other threads than write them."""
    case = rope_append("bfloat16")
    (emitted,) = emit("rope_append_kv", case, 80, str(CACHE))
    with session(Run(build="races")):
        emulated("rope_append_kv", case, 80, [emitted])
    broken = without(emitted, r"bar\.sync\s+0;")
    with session(Run(build="races")), pytest.raises(KernelFault) as caught:
        emulated("rope_append_kv", case, 80, [broken])
    assert caught.value.kind == "race"
