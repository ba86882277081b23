# SPDX-License-Identifier: Apache-2.0
"""rope_append_kv against the ops that it stands for, and what it must leave alone; on every backend that is here."""

import importlib.util
from dataclasses import replace

import pytest
import torch

from pagedserve import ops
from pagedserve.errors import InvalidInput
from pagedserve.ops.cases import make_inputs
from pagedserve.specs import SPECS, Case
from tests.ops.agreement import copied

NO_TRITON = importlib.util.find_spec("triton") is None
BACKENDS = [
    "reference",
    "cpu",
    pytest.param(
        "triton-interpreted",
        marks=(pytest.mark.triton, pytest.mark.skipif(NO_TRITON, reason="Triton is not installed")),
    ),
]
every_backend = pytest.mark.parametrize("backend", BACKENDS)
SIZES = {"num_tokens": 9, "num_pages": 4, "page_size": 5, "max_position": 40}
SIZES |= {"num_q_heads": 6, "num_kv_heads": 2, "head_dim": 40, "rotary_dim": 24}
PAGES = ("k_pages", "v_pages", "k_scales", "v_scales")


def call(q="float32", k_pages="float32", **options):
    return make_inputs("rope_append_kv", Case("here", SIZES, {"q": q, "k_pages": k_pages}, options))


def chained(given, backend):
    """The same by three ops. Returns the rotated queries; pages are written."""
    turned = {name: given[name].clone() for name in "qk"}
    for name, x in turned.items():
        if f"{name}_norm" in given:
            ops.rms_norm(x, given[f"{name}_norm"], eps=given.get("eps", 1e-6), out=x, backend=backend)
        ops.rope(x, given["positions"], given["cos_sin"], interleaved=given.get("interleaved", False), backend=backend)
    scales = {name: given[name] for name in PAGES[2:] if name in given}
    pages = (given["k_pages"], given["v_pages"], given["slot_mapping"])
    ops.append_kv(turned["k"], given["v"], *pages, **scales, backend=backend)
    return turned["q"]


@every_backend
@pytest.mark.parametrize("options", [{}, {"q_norm": True}, {"q_norm": True, "k_norm": True, "interleaved": True}])
def test_it_does_what_norm_rope_and_append_do_one_after_the_other(backend, options):
    given = call(**options)
    other = copied(given)
    q = ops.rope_append_kv(**given, backend=backend)
    assert q is given["q"]
    torch.testing.assert_close(q, chained(other, backend), rtol=2e-6, atol=2e-6)
    for name in PAGES[:2]:
        torch.testing.assert_close(given[name], other[name], rtol=2e-6, atol=2e-6)


@every_backend
@pytest.mark.parametrize("k_pages", ["bfloat16", "int8", "float8_e4m3fn", "int4"])
def test_only_the_queries_and_the_slots_are_written(backend, k_pages):
    given = call("bfloat16", k_pages, k_norm=True)
    before = copied(given)
    ops.rope_append_kv(**given, backend=backend)
    taken = given["slot_mapping"]
    taken = taken[taken >= 0]
    for name in PAGES:
        if name in given:
            new, old = (x[name].flatten(0, 1).contiguous().view(torch.uint8) for x in (given, before))
            kept = torch.ones(len(new), dtype=torch.bool).index_fill(0, taken, False)
            assert torch.equal(new[kept], old[kept])
            assert not torch.equal(new[~kept], old[~kept])
    for name in ("k", "v", "cos_sin", "k_norm", "positions", "slot_mapping"):
        assert torch.equal(given[name], before[name])


@every_backend
def test_a_skipped_token_is_rotated_and_not_written(backend):
    given = call(q_norm=True, k_norm=True)
    before = copied(given)
    given["slot_mapping"][:] = -1
    given["k"][:], given["v"][:] = torch.nan, torch.nan
    q = ops.rope_append_kv(**given, backend=backend).clone()
    for name in PAGES[:2]:
        assert torch.equal(given[name], before[name])
    assert torch.equal(q, ops.rope_append_kv(**before, backend=backend))


@every_backend
def test_a_token_does_not_depend_on_its_neighbours(backend):
    whole = call("bfloat16", "int8", q_norm=True, k_norm=True)
    alone = copied(whole)
    ops.rope_append_kv(**whole, backend=backend)
    for token in range(SIZES["num_tokens"]):
        rows = slice(token, token + 1)
        part = {name: alone[name][rows] for name in ("q", "k", "v", "positions", "slot_mapping")}
        ops.rope_append_kv(**(alone | part), backend=backend)
    for name in ("q", *PAGES):
        assert torch.equal(whole[name].contiguous().view(torch.uint8), alone[name].contiguous().view(torch.uint8))


@every_backend
def test_a_broken_head_shows_and_breaks_no_other(backend):
    given = call(q_norm=True, k_norm=True)
    clean = copied(given)
    token = int((given["slot_mapping"] >= 0).nonzero()[0])
    given["q"][token, 3, 7] = given["k"][token, 1, 30] = torch.nan
    ops.rope_append_kv(**given, backend=backend)
    ops.rope_append_kv(**clean, backend=backend)
    page, row = divmod(int(given["slot_mapping"][token]), SIZES["page_size"])
    assert given["q"][token, 3].isnan().all()
    assert given["k_pages"][page, row, 1].isnan().all()
    given["q"][token, 3], given["k_pages"][page, row, 1] = clean["q"][token, 3], clean["k_pages"][page, row, 1]
    for name in ("q", *PAGES[:2]):
        assert torch.equal(given[name], clean[name])


@every_backend
def test_columns_of_one_buffer_are_taken_as_they_are(backend):
    given = call(q_norm=True)
    heads = [given[name].shape[1] for name in "qkv"]
    buffer = torch.cat([given[name] for name in "qkv"], 1)
    parts = dict(zip("qkv", buffer.split(heads, 1), strict=True))
    other = copied(given) | parts
    ops.rope_append_kv(**given, backend=backend)
    ops.rope_append_kv(**other, backend=backend)
    for name in ("q", *PAGES[:2]):
        assert torch.equal(given[name], other[name])


def test_low_precision_is_rounded_once():
    """In float32 from end to end: a chain of low-precision ops rounds queries three times."""
    given = call("bfloat16", "bfloat16", q_norm=True, k_norm=True)
    wide = {name: x.float() if name in ("q", "k", "v") else x.clone() for name, x in given.items()}
    wide |= {name: given[name].float() for name in PAGES[:2]}
    ops.rope_append_kv(**given, backend="reference")
    ops.rope_append_kv(**wide, backend="reference")
    assert torch.equal(given["q"], wide["q"].bfloat16())
    assert torch.equal(given["k_pages"], wide["k_pages"].bfloat16())


@pytest.mark.parametrize(
    "change, message",
    [
        ({"eps": -1e-6}, "eps is -1e-06"),
        ({"cos_sin": torch.zeros(40, 42)}, "rotary_dim .* is 42"),
        ({"k_scales": torch.zeros(4, 5, 2)}, "k_scales is given"),
        ({"q_norm": torch.ones(41)}, "q_norm"),
        ({"k": torch.zeros(9, 2, 40, dtype=torch.bfloat16)}, "k is torch.bfloat16"),
        ({"k_pages": torch.zeros(4, 0, 2, 40), "v_pages": torch.zeros(4, 0, 2, 40)}, "page_size"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    with pytest.raises(InvalidInput, match=message):
        ops.rope_append_kv(**(call() | change))


def test_explain_tells_its_cost():
    given = call("bfloat16", "int8", q_norm=True)
    told = ops.explain("rope_append_kv", given)
    assert told.backend == "cpu"
    heads, head_dim = 2 * 6 * 2 + 2 * 2 * 2, 40  # bytes of q in and out, of k and v in
    assert told.bytes == 9 * (heads * head_dim + 2 * 2 * (head_dim + 4))
    assert replace(SPECS["rope_append_kv"].budget, code_steps=0) == SPECS["append_kv"].budget
