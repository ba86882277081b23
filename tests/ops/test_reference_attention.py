# SPDX-License-Identifier: Apache-2.0
"""The reference attention against formulas written again, key by key, in float64, and against torch's own attention."""

import math

import pytest
import torch

from pagedserve import ops
from pagedserve.ops.cases import make_inputs
from pagedserve.specs import SPECS, Case

SIZES = {"num_q_heads": 6, "num_kv_heads": 2, "head_dim": 16, "page_size": 4}
LENS = (1, 0, 9, 16, -3, 7)
FEATURES = [
    {},
    {"window": 3},
    {"soft_cap": 1.5},
    {"sinks": True},
    {"alibi_slopes": True},
    {"window": 5, "soft_cap": 2.0, "sinks": True, "alibi_slopes": True},
]


ONES = (1,) * len(LENS)


def case(q_lens=ONES, lens=LENS, k_pages="float32", **options):
    return Case("case", SIZES, {"q": "float32", "k_pages": k_pages}, options, lens, q_lens)


def value(call, name, seq, position, head):
    """Key or value at a position of a sequence, as a list of floats."""
    page = int(call["page_table"][seq, position // SIZES["page_size"]])
    row = position % SIZES["page_size"]
    numbers = call[f"{name}_pages"][page, row, head]
    if numbers.dtype == torch.uint8:  # int4
        numbers = torch.tensor([nibble - 8 for byte in numbers.tolist() for nibble in (byte & 15, byte >> 4)])
    numbers = numbers.double()
    scales = call.get(f"{name}_scales")
    return (numbers if scales is None else numbers * scales[page, row, head].double()).tolist()


def by_hand(call, seq, q_len, i, head, q):
    """o and lse of query i of a sequence, one head, from the definition in words."""
    kv_len = max(int(call["kv_lens"][seq]), 0)
    position = kv_len - q_len + i
    kv_head = head // (SIZES["num_q_heads"] // SIZES["num_kv_heads"])
    tree = call.get("tree_mask")
    terms = []
    for key in range(kv_len if position >= 0 else 0):
        new = key - (kv_len - q_len)
        seen = key <= position if tree is None or new < 0 else bool(tree[seq, i, new])
        if not seen or (call.get("window", 0) > 0 and key <= position - call["window"]):
            continue
        k = value(call, "k", seq, key, kv_head)
        logit = sum(a * b for a, b in zip(q, k, strict=True)) / math.sqrt(len(q))
        if call.get("soft_cap", 0) > 0:
            logit = call["soft_cap"] * math.tanh(logit / call["soft_cap"])
        if "alibi_slopes" in call:
            logit += float(call["alibi_slopes"][head]) * (key - position)
        terms.append((logit, value(call, "v", seq, key, kv_head)))
    if not terms:
        return [0.0] * len(q), -math.inf
    total = sum(math.exp(logit) for logit, _ in terms)
    if "sinks" in call:
        total += math.exp(float(call["sinks"][head]))
    o = [sum(math.exp(logit) * v[d] for logit, v in terms) / total for d in range(len(q))]
    return o, math.log(total)


def check_by_hand(call, o, lse, q_lens):
    token = 0
    for seq, q_len in enumerate(q_lens):
        for i in range(q_len):
            for head in (0, SIZES["num_q_heads"] - 1):
                want_o, want_lse = by_hand(call, seq, q_len, i, head, call["q"][token, head].tolist())
                torch.testing.assert_close(o[token, head].tolist(), want_o, rtol=1e-5, atol=1e-5)
                assert float(lse[token, head]) == pytest.approx(want_lse, abs=1e-5)
            token += 1


@pytest.mark.parametrize("features", FEATURES, ids=lambda features: "-".join(features) or "plain")
def test_decode_is_the_formula(features):
    call = make_inputs("paged_decode", case(**features))
    o, lse = ops.paged_decode(**call, return_lse=True, backend="reference")
    check_by_hand(call, o, lse, ONES)


@pytest.mark.parametrize(
    "features", [*FEATURES, {"tree_mask": True}], ids=lambda features: "-".join(features) or "plain"
)
def test_verification_is_the_formula(features):
    call = make_inputs("paged_decode", case(q_lens=(3,) * len(LENS), q_len=3, **features))
    o, lse = ops.paged_decode(**call, return_lse=True, backend="reference")
    check_by_hand(call, o, lse, (3,) * len(LENS))


@pytest.mark.parametrize("features", FEATURES, ids=lambda features: "-".join(features) or "plain")
def test_prefill_is_the_formula(features):
    q_lens = (1, 2, 4, 0, 2, 7)
    call = make_inputs("paged_prefill", case(q_lens=q_lens, **features))
    o, lse = ops.paged_prefill(**call, return_lse=True, backend="reference")
    check_by_hand(call, o, lse, q_lens)


@pytest.mark.parametrize("k_pages", ["int8", "float8_e4m3fn", "int4", "bfloat16", "float16"])
def test_low_precision_pages_are_multiplied_out(k_pages):
    call = make_inputs("paged_decode", case(k_pages=k_pages))
    o, lse = ops.paged_decode(**call, return_lse=True, backend="reference")
    check_by_hand(call, o, lse, ONES)


def test_prefill_agrees_with_torch():
    kv_len, heads, head_dim = 37, 4, 64
    k, v, q = (torch.randn(kv_len, heads, head_dim) for _ in range(3))
    pages = torch.zeros(2, 5, 8, heads, head_dim)
    pages[0].view(-1, heads, head_dim)[:kv_len], pages[1].view(-1, heads, head_dim)[:kv_len] = k, v
    o = ops.paged_prefill(
        q,
        *pages,
        torch.arange(5, dtype=torch.int32)[None],
        torch.tensor([kv_len], dtype=torch.int32),
        torch.tensor([0, kv_len], dtype=torch.int32),
        backend="reference",
    )
    want = torch.nn.functional.scaled_dot_product_attention(
        q.transpose(0, 1)[None], k.transpose(0, 1)[None], v.transpose(0, 1)[None], is_causal=True
    )
    torch.testing.assert_close(o, want[0].transpose(0, 1), rtol=1e-5, atol=1e-5)


def test_tokens_outside_q_starts_are_left_alone():
    call = make_inputs("paged_prefill", case(q_lens=(1, 2, 4, 0, 2, 7)))
    pad = torch.full((3, *call["q"].shape[1:]), torch.nan)
    padded = call | {"q": torch.cat((pad, call["q"], pad)), "q_starts": call["q_starts"] + 3}
    out = torch.full_like(padded["q"], 7.0)
    ops.paged_prefill(**padded, out=out, backend="reference")
    want = ops.paged_prefill(**call, backend="reference")
    assert torch.equal(out[3:-3], want)
    assert (out[:3] == 7).all()
    assert (out[-3:] == 7).all()


def test_a_sequence_without_queries_is_not_looked_at():
    call = make_inputs("paged_prefill", case(q_lens=(1, 0, 4, 0, 0, 7)))
    want = ops.paged_prefill(**call, backend="reference")
    lens = call["kv_lens"].clone()
    lens[3], call["page_table"][3] = 10**6, -1
    assert torch.equal(ops.paged_prefill(**(call | {"kv_lens": lens}), backend="reference"), want)


def test_merging_parts_gives_the_whole():
    """A sequence cut in two, each part attended to by itself, merged: attention over all of it."""
    lens, cut = (9, 13, 4), 8
    call = make_inputs("paged_decode", case(lens=lens, q_lens=(1, 1, 1)))
    whole, whole_lse = ops.paged_decode(**call, return_lse=True, backend="reference")
    first_lens = call["kv_lens"].clamp(max=cut)
    # A query stands behind its keys, so a part seen alone by decode is seen in full.
    parts = [
        (call["page_table"][:, :2].contiguous(), first_lens),
        (call["page_table"][:, 2:].contiguous(), call["kv_lens"] - cut),
    ]
    states = [
        ops.paged_decode(**(call | {"page_table": table, "kv_lens": part}), return_lse=True, backend="reference")
        for table, part in parts
    ]
    o, lse = ops.merge_states(
        torch.stack([o for o, _ in states]), torch.stack([lse for _, lse in states]), backend="reference"
    )
    torch.testing.assert_close(o, whole, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(lse, whole_lse, rtol=1e-5, atol=1e-5)


def test_merge_is_the_formula():
    o, lse = torch.randn(5, 3, 2, 8), torch.randn(5, 3, 2) * 3
    weights = torch.softmax(lse.double(), 0)
    got, got_lse = ops.merge_states(o, lse, backend="reference")
    torch.testing.assert_close(got.double(), (weights[..., None] * o.double()).sum(0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got_lse.double(), lse.double().logsumexp(0), rtol=1e-5, atol=1e-5)


def test_merge_of_empty_states_is_empty():
    o, lse = torch.full((2, 1, 1, 8), torch.nan), torch.full((2, 1, 1), -torch.inf)
    got, got_lse = ops.merge_states(o, lse, backend="reference")
    assert (got == 0).all()
    assert (got_lse == -torch.inf).all()


def test_lse_of_base_2_is_converted():
    logits = torch.randn(10, dtype=torch.float64)
    base2 = torch.log2(torch.exp2(logits / math.log(2)).sum())
    torch.testing.assert_close(ops.lse_from_base2(base2), logits.logsumexp(0))


@pytest.mark.parametrize("name", ["paged_decode", "paged_prefill"])
def test_every_case_is_answered_without_reading_poison(name):
    for each in SPECS[name].cases():
        o, lse = getattr(ops, name)(**make_inputs(name, each), return_lse=True, backend="reference")
        assert not o.isnan().any(), each.id
        assert not lse.isnan().any(), each.id


@pytest.mark.parametrize("what", ["pages", "batch", "stride"])
def test_layout_changes_nothing(what):
    """Pages in another order, sequences in another order, pages of another stride: the same numbers."""
    call = make_inputs("paged_decode", case())
    want = ops.paged_decode(**call, backend="reference")
    if what == "pages":
        order = torch.randperm(len(call["k_pages"]))
        place = torch.argsort(order).to(torch.int32)
        table = call["page_table"].clone()
        inside = (table >= 0) & (table < len(order))
        table[inside] = place[table[inside].long()]
        moved = {name: call[name][order] for name in ("k_pages", "v_pages")}
        call |= moved | {"page_table": table}
    elif what == "batch":
        order = torch.randperm(len(LENS))
        moved = {name: call[name][order].contiguous() for name in ("q", "page_table", "kv_lens")}
        call, want = call | moved, want[order]
    else:
        moved = {name: call[name].transpose(1, 2).contiguous().transpose(1, 2) for name in ("k_pages", "v_pages")}
        call |= moved
    torch.testing.assert_close(ops.paged_decode(**call, backend="reference"), want)
