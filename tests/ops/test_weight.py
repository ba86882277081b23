# SPDX-License-Identifier: Apache-2.0
"""ops.Weight: its formats, how it rounds, and what it refuses."""

import copy
import gc
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pagedserve import ops
from pagedserve.errors import InvalidInput
from pagedserve.ops import Weight

FORMATS = ("f32", "bf16", "q8", "q4")


@st.composite
def matrices(draw) -> torch.Tensor:
    rows, groups = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    matrix = torch.randn(rows, 32 * groups, generator=torch.Generator().manual_seed(draw(st.integers(0, 2**31))))
    matrix *= 10.0 ** draw(st.integers(-20, 20))
    if draw(st.booleans()):
        matrix[0, :32] = draw(st.sampled_from([0.0, 1.0, -3.5]))
    return matrix


@settings(max_examples=60, deadline=None)
@given(matrices())
def test_rounding_is_within_half_a_step(dense):
    assert torch.equal(Weight.from_dense(dense, "f32").dense(), dense)
    assert torch.equal(Weight.from_dense(dense, "bf16").dense(), dense.bfloat16().float())
    groups = dense.view(len(dense), -1, 32)
    for format, step in (("q8", groups.abs().amax(2) / 127), ("q4", (groups.amax(2) - groups.amin(2)) / 15)):
        weight = Weight.from_dense(dense, format)
        slack = groups.abs().amax(2) * 1e-6
        error = (weight.dense().view_as(groups) - groups).abs().amax(2)
        assert (error <= step / 2 * 1.0001 + slack).all(), format


def test_q4_keeps_the_even_element_in_the_low_bits():
    codes = torch.arange(32) % 16
    packed = (codes[0::2] | codes[1::2] << 4).to(torch.uint8)[None]
    weight = Weight("q4", packed, torch.tensor([[0.5]]), torch.tensor([[-4.0]]))
    assert weight.dense()[0].tolist() == [0.5 * int(code) - 4 for code in codes]
    assert (weight.out_features, weight.in_features, weight.nbytes) == (1, 32, 16 + 4 + 4)


@pytest.mark.parametrize("format", FORMATS)
def test_rows_and_cat(format):
    parts = [Weight.from_dense(torch.randn(rows, 64), format) for rows in (3, 1, 5)]
    whole = Weight.cat(parts)
    assert (whole.out_features, whole.in_features, whole.format) == (9, 64, format)
    assert torch.equal(whole.dense(), torch.cat([part.dense() for part in parts]))
    ids = torch.tensor([8, 0, 3], dtype=torch.int32)
    assert torch.equal(whole.rows(ids), whole.dense()[ids.long()])
    assert whole.rows(ids[:0]).shape == (0, 64)


def test_a_backend_packs_a_matrix_once():
    made = []
    weight = Weight.from_dense(torch.randn(2, 32), "q8")
    again = Weight("q8", weight.values, weight.scales)
    other = Weight("q8", weight.values, weight.scales * 2)
    for each in (weight, again, weight):
        assert each.packed("somebody", lambda w: made.append(w) or len(made)) == 1
    assert other.packed("somebody", lambda w: made.append(w) or len(made)) == 2
    assert copy.deepcopy(weight).packed("somebody", lambda w: made.append(w) or len(made)) == 3
    assert made[:2] == [weight, other]


def test_a_pack_dies_with_its_matrix():
    class Pack:
        pass

    weight = Weight.from_dense(torch.randn(2, 32), "q8")
    pack = weakref.ref(weight.packed("somebody", lambda w: Pack()))
    assert pack() is not None
    del weight
    gc.collect()
    assert pack() is None


def test_the_compiled_call_packs_once(monkeypatch):
    from pagedserve.backends import cpu

    made = []
    pack = cpu.PackedWeight
    monkeypatch.setattr(cpu, "PackedWeight", lambda *arguments: made.append(1) or pack(*arguments))
    weight, x = Weight.from_dense(torch.randn(8, 32), "q8"), torch.randn(2, 32)
    torch.compiler.reset()
    compiled = torch.compile(lambda x: ops.linear(x, weight, backend="cpu"), fullgraph=True, backend="aot_eager")
    for _ in range(3):
        compiled(x)
    assert torch.equal(compiled(x), ops.linear(x, weight, backend="cpu"))
    assert len(made) == 1


@pytest.mark.parametrize(
    "make, word",
    [
        (lambda: Weight("q5", torch.zeros(2, 32)), "q5"),
        (lambda: Weight.from_dense(torch.zeros(2, 32), "int4"), "int4"),
        (lambda: Weight("f32", torch.zeros(2, 32).double()), "float32"),
        (lambda: Weight("f32", torch.zeros(32)), "two-dimensional"),
        (lambda: Weight("f32", torch.zeros(32, 2).T), "contiguous"),
        (lambda: Weight("f32", torch.zeros(2, 32), torch.zeros(2, 1)), "scales"),
        (lambda: Weight("q8", torch.zeros(2, 32, dtype=torch.int8)), "scales"),
        (lambda: Weight("q8", torch.zeros(2, 48, dtype=torch.int8), torch.zeros(2, 2)), "in_features"),
        (lambda: Weight("q8", torch.zeros(2, 32, dtype=torch.int8), torch.zeros(2, 2)), r"\[2, 1\]"),
        (lambda: Weight("q4", torch.zeros(2, 16, dtype=torch.uint8), torch.zeros(2, 1)), "minimums"),
        (lambda: Weight.from_dense(torch.zeros(2, 33), "q8"), "33"),
        (lambda: Weight.from_dense(torch.zeros(2, 32, dtype=torch.int32)), "int32"),
        (lambda: Weight.from_dense(torch.zeros(2, 2, 32)), "2, 2, 32"),
        (lambda: Weight.cat([]), "no weights"),
        (lambda: Weight.cat([Weight.from_dense(torch.zeros(2, n)) for n in (32, 64)]), "in_features"),
    ],
)
def test_bad_weights_are_refused(make, word):
    with pytest.raises(InvalidInput, match=word):
        make()


def test_linear_takes_a_weight_and_says_so():
    with pytest.raises(InvalidInput, match=r"ops\.Weight"):
        ops.linear(torch.zeros(2, 32), torch.zeros(4, 32))
