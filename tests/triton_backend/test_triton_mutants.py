# SPDX-License-Identifier: Apache-2.0
"""Kernels that are wrong in one way each. A check that is named here must reject each of them."""

import importlib
import sys
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

from pagedserve.backends.triton import kernels
from pagedserve.backends.triton.interpreter import OutOfBounds, Race, Unsupported
from pagedserve.ops.agreement import copied, disagreement
from pagedserve.ops.cases import make_inputs
from pagedserve.specs import SPECS, Case
from tests.triton_backend import test_triton_bits
from tests.triton_backend.calls import all_results, interpreting, run

pytestmark = pytest.mark.triton

PACKAGE = "pagedserve.backends.triton.kernels"

# file, what is changed, into what, the op, the check that rejects it
MUTANTS = {
    "a mask one key too wide": (
        "attention_tiles", "read = key < end", "read = key <= end", "paged_decode", "bounds or agreement"),
    "a causal mask one key too narrow": (
        "attention_tiles", "key[None, :] <= position[:, None]", "key[None, :] < position[:, None]",
        "paged_prefill", "agreement"),
    "a window one key too wide": (
        "attention_tiles", "position[:, None] - window)", "position[:, None] - window - 1)", "paged_prefill",
        "agreement"),
    "a relaxed semaphore": ("paged_decode", 'sem="acq_rel"', 'sem="relaxed"', "paged_decode", "race"),
    "a semaphore that only releases": ("paged_decode", 'sem="acq_rel"', 'sem="release"', "paged_decode", "race"),
    "a merge by whoever comes first": (
        "paged_decode", "before + num_done == num_splits", "before == 0", "paged_decode", "race"),
    "a load without other": (
        "operands", "column[None, :], mask=mask, other=0.0)", "column[None, :], mask=mask)", "paged_decode",
        "agreement"),
    "splits in another order": (
        "paged_decode", "own = strands + split * ROWS", "own = strands + (num_splits - 1 - split) * ROWS",
        "paged_decode", "order"),
    "tiles added without fading": (
        "attention_tiles", "total = total * fade + tl.sum(weight, 1)", "total = total + tl.sum(weight, 1)",
        "paged_decode", "agreement"),
    "arithmetic on bfloat16": (
        "rms_norm", "other=0.0).to(tl.float32)\n    if residual", "other=0.0)\n    if residual", "rms_norm",
        "precision"),
    "a row's end taken for its width": (
        "act_mul", "mask = columns < INTERMEDIATE", "mask = columns < BLOCK", "silu_mul", "bounds or agreement"),
    "skipped tokens written": (
        "append_kv", "if slot >= 0:", "if slot >= -1:", "append_kv", "bounds or agreement"),
    "skipped keys written": (
        "rope_append_kv", "if slot >= 0:", "if slot >= -1:", "rope_append_kv", "bounds or agreement"),
    "partners left unnormed": ("rope_append_kv", "y = y * factor * tl.load", "y = y * tl.load", "rope_append_kv",
        "agreement"),
    "partners of a neighbour": (
        "rope_append_kv", "column ^ 1", "(column + 1) % ROTARY_DIM", "rope_append_kv", "agreement"),
    "a rotation that turns the tail": (
        "rope_append_kv", "turned = column < ROTARY_DIM", "turned = column < HEAD_DIM", "rope_append_kv",
        "bounds or agreement"),
    "ties by higher id": (
        "sample", "tl.min(tl.where(score == largest, place, NOBODY), 0)",
        "tl.max(tl.where(score == largest, place, -1), 0)", "sample", "ties"),
}  # fmt: skip


@pytest.fixture
def mutant(tmp_path, monkeypatch):
    """Makes a copy of all kernels with one change, and gives what replaces a launch's kernel by the copy's."""
    made = []

    def make(file, old, new):
        name = f"mutant_{tmp_path.name}"
        folder = tmp_path / name
        folder.mkdir()
        for path in Path(kernels.__file__).parent.glob("*.py"):
            text = path.read_text(encoding="utf-8").replace(PACKAGE, name)
            if path.stem == file:
                assert text.count(old) >= 1, f"{file} has no {old!r}"
                text = text.replace(old, new, 1)
            (folder / path.name).write_text(text, encoding="utf-8")
        monkeypatch.syspath_prepend(str(tmp_path))
        made.append(name)

        def change(launch):
            module = launch.kernel.fn.__module__.replace(PACKAGE, name)
            return replace(launch, kernel=getattr(importlib.import_module(module), launch.kernel.fn.__name__))

        return change

    yield make
    for module in [module for module in sys.modules if module.split(".")[0] in made]:
        del sys.modules[module]


def agreement(op, change):
    """The agreement of tests/ops/test_backends.py, with launches changed."""
    spec = SPECS[op]
    for case in sorted(spec.cases(), key=lambda case: -len(case.options)):  # what is special first
        case = replace(case, lens=case.lens[-3:], q_lens=case.q_lens[-3:])
        call = make_inputs(op, case)
        assert disagreement(op, call, all_results(op, copied(call), interpreting(op, change=change))) is None


def race(op, change):
    case = Case("race", test_triton_bits.SHAPE, {"q": "float32", "k_pages": "float32"}, {}, (700, 513), (1, 1))
    run(op, make_inputs(op, case), change=change)


def order(op, change, monkeypatch):
    plain = run

    monkeypatch.setattr(test_triton_bits, "run", lambda op, call, **more: plain(op, call, change=change, **more))
    test_triton_bits.test_splits_are_added_in_their_order()


def ties(op, change):
    call = make_inputs(op, next(case for case in SPECS[op].cases() if case.options == {"temperature": 0.0}))
    call["logits"][:] = 1.0
    call["frequency"][:] = call["presence"][:] = 0.0
    assert run(op, call, change=change)[0].eq(0).all()


EXPECTED = {
    "agreement": AssertionError,
    "bounds or agreement": (OutOfBounds, Race, AssertionError),
    "race": Race,
    "order": AssertionError,
    "precision": Unsupported,
    "ties": AssertionError,
}


def reject(check, op, change, monkeypatch):
    """Runs the check of this name on a changed kernel."""
    if check == "race":
        race(op, change)
    elif check == "order":
        order(op, change, monkeypatch)
    elif check == "ties":
        ties(op, change)
    else:
        agreement(op, change)


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_kernel_is_rejected(name, mutant, monkeypatch):
    file, old, new, op, check = MUTANTS[name]
    change = mutant(file, old, new)
    with pytest.raises(EXPECTED[check]):
        reject(check, op, change, monkeypatch)


@pytest.mark.parametrize(
    "op, check",
    [
        ("paged_decode", "race"),
        ("paged_decode", "order"),
        ("sample", "ties"),
        ("append_kv", "agreement"),
        ("rms_norm", "agreement"),
    ],
)
def test_the_right_kernel_passes(op, check, mutant, monkeypatch):
    reject(check, op, mutant("rope", "cos", "cos"), monkeypatch)
