# SPDX-License-Identifier: Apache-2.0
"""Attention as Triton's compiler emitted it, on the CUDA emulator, against the reference."""

import shutil
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

from pagedserve.backends.triton import interpreted
from pagedserve.backends.triton.target import Target
from pagedserve.emulate import Run, session
from pagedserve.ops.cases import make_inputs
from pagedserve.specs import SPECS, Case
from tests.ops.agreement import compare, copied, in_float64, results
from tests.triton_backend.calls import through
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


CALLS = [
    ("paged_decode", decode("bfloat16", sinks=True, window=130, soft_cap=5.0, alibi_slopes=True), 90),
    ("paged_decode", decode("float8_e4m3fn"), 80),
    ("paged_prefill", prefill("bfloat16"), 80),
]


@pytest.mark.parametrize("schedule", ["in-order", "random"])
@pytest.mark.parametrize("op, case, arch", CALLS, ids=lambda value: getattr(value, "id", value))
def test_what_is_emitted_agrees_with_the_reference(op, case, arch, schedule):
    spec, call = SPECS[op], make_inputs(op, case)
    plain, oracle = results(op, copied(call), "reference"), results(op, in_float64(spec, copied(call)), "reference")
    emitted = emit(op, case, arch, str(CACHE))

    def instead(*operands):
        for launch, each in zip(getattr(interpreted, op).build(Target(arch), *operands), emitted, strict=True):
            emulate(launch, each)

    with session(Run(schedule=schedule)):
        got = through(op, call | {"return_lse": True}, instead)
    for place, tensor in enumerate(got):
        compare(spec, case.id, tensor, plain[f"result {place}"], oracle[f"result {place}"])
