# SPDX-License-Identifier: Apache-2.0
"""Attention of the CPU backend against float64, on every instruction set, with poison where nothing may be read."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pagedserve import ops
from pagedserve.cache import KVPool
from pagedserve.specs import SPECS
from tests import oracles
from tests.ops.agreement import compare
from tests.ops.attention_calls import ISAS, KV_DTYPES, NAN, Call, Sequences, lay_out, run, sequences

FEATURES = ("window", "soft_cap", "sinks", "alibi_slopes")
all_isas = pytest.mark.parametrize("isa", ISAS)


def check(call: Call, isa: str, num_threads: int = 2) -> None:
    """Fails where o or lse is further from float64 than twice plain torch's own distance, and rounding."""
    got, plain = run(call, isa=isa, num_threads=num_threads), run(call, backend="reference")
    options = {"scale": call.q.shape[-1] ** -0.5, **call.options}
    operands = (call.q, call.k_pages, call.v_pages, call.page_table, call.kv_lens, call.q_starts)
    oracle = oracles.attention(*operands, **options)
    for name, mine, torchs, exact in zip(("o", "lse"), got, plain, oracle, strict=True):
        compare(SPECS["paged_decode"], name, mine, torchs, torch.from_numpy(exact))


@all_isas
@pytest.mark.parametrize("kv_dtype", KV_DTYPES, ids=str)
@pytest.mark.parametrize(
    "q_lens, kv_lens, features",
    [
        ([1] * 7, [1, 255, 0, 256, 257, -1, 600], ()),
        ([4] * 3, [600, 4, 258], ("tree_mask", "window", "sinks")),
        ([1, 20, 0, 9], [300, 257, 40, 9], FEATURES),
    ],
    ids=["decode", "tree", "ragged"],
)
def test_within_the_budget(isa, kv_dtype, q_lens, kv_lens, features):
    check(lay_out(sequences(q_lens, kv_lens, features=features), kv_dtype=kv_dtype), isa)


@all_isas
@pytest.mark.parametrize("head_dim", [8, 16, 24, 72, 80, 96, 120, 256])
def test_every_head_dim(isa, head_dim):
    what = sequences([7, 1], [30, 300], head_dim=head_dim, num_kv_heads=1)
    for kv_dtype in (torch.bfloat16, torch.int8, torch.uint8):
        check(lay_out(what, kv_dtype=kv_dtype, gap=8), isa)


@st.composite
def calls(draw) -> Call:
    q_dtype, kv_dtype = draw(st.sampled_from(KV_DTYPES[:3])), draw(st.sampled_from(KV_DTYPES))
    features = tuple(draw(st.sets(st.sampled_from(FEATURES))))
    num_seqs = draw(st.integers(1, 4))
    kv_lens = draw(st.lists(st.integers(-1, 530), min_size=num_seqs, max_size=num_seqs))
    if draw(st.booleans()):
        features += ("tree_mask",)
        q_lens = [draw(st.integers(1, 8))] * num_seqs
    else:
        q_lens = [draw(st.integers(0, max(min(n + 2, 40), 1))) for n in kv_lens]
    what = sequences(
        q_lens,
        kv_lens,
        num_kv_heads=draw(st.integers(1, 3)),
        group_size=draw(st.integers(1, 9)),
        head_dim=8 * draw(st.integers(1, 16)),
        q_dtype=q_dtype,
        features=features,
        seed=draw(st.integers(0, 2**16)),
    )
    page_size, head_major, gap = draw(st.integers(1, 40)), draw(st.booleans()), 8 * draw(st.integers(0, 1))
    return lay_out(what, kv_dtype=kv_dtype, page_size=page_size, head_major=head_major, gap=gap)


@settings(max_examples=60, deadline=None)
@given(call=calls(), isa=st.sampled_from(ISAS), num_threads=st.integers(1, 3))
def test_any_call(call, isa, num_threads):
    check(call, isa, num_threads)


def poison_token(call: Call, seq: int, token: int, name: str) -> None:
    page_size = call.k_pages.shape[1]
    page, row = int(call.page_table[seq, token // page_size]), token % page_size
    pages = {"k": call.k_pages, "v": call.v_pages}[name]
    if pages.dtype in (torch.int8, torch.uint8):
        call.options[f"{name}_scales"][page, row] = NAN
    else:
        pages[page, row, :, :1] = torch.tensor(NAN).to(pages.dtype)


@all_isas
@pytest.mark.parametrize("name", ["k", "v"])
@pytest.mark.parametrize("kv_dtype", [torch.bfloat16, torch.int8, torch.uint8], ids=str)
@pytest.mark.parametrize("q_len, token", [(6, 300), (40, 280), (40, 40)])
@pytest.mark.parametrize("features", [(), ("window",), ("tree_mask",)], ids=str)
def test_nan_reaches_those_who_see_it_and_nobody_else(isa, name, kv_dtype, q_len, token, features):
    what = sequences([q_len], [304], features=features, head_dim=32, num_kv_heads=1)
    call = lay_out(what, kv_dtype=kv_dtype)
    clean = run(call, isa=isa)
    poison_token(call, 0, token, name)
    o, lse = run(call, isa=isa)
    mask = what.options.get("tree_mask", [None])[0]
    for query in range(q_len):
        sees = oracles.visible(304, q_len, query, what.options.get("window", 0), mask)[token]
        assert bool(o[query].isnan().any(dim=-1).all()) == sees, query
        assert bool(lse[query].isnan().all()) == (sees and name == "k")
        if not sees:
            assert torch.equal(o[query], clean[0][query])
            assert torch.equal(lse[query], clean[1][query])


@all_isas
def test_a_single_nan_key_is_not_taken_for_no_key(isa):
    call = lay_out(sequences([1], [1]))
    poison_token(call, 0, 0, "k")
    o, lse = run(call, isa=isa)
    assert o.isnan().all()
    assert lse.isnan().all()


@all_isas
@pytest.mark.parametrize("factor", [0.0, 30.0, 1e4, 1e30])
def test_logits_of_any_size(isa, factor):
    what = sequences([2, 33], [400, 290])
    what.q = [q * factor for q in what.q]
    call = lay_out(what)
    if factor < 1e5:
        check(call, isa)
    o, lse = run(call, isa=isa)
    assert o.isfinite().all()
    assert lse.isfinite().all()


@all_isas
def test_a_sink_takes_its_share(isa):
    what = sequences([1, 20, 1], [300, 20, 0])
    plain, plain_lse = run(lay_out(what), isa=isa)
    num_q_heads = plain.shape[1]
    for sink in (-torch.inf, -1e4, 0.0, 3.0, 1e4):
        what.options = {"sinks": torch.full((num_q_heads,), sink)}
        o, lse = run(lay_out(what), isa=isa)
        total = torch.logaddexp(plain_lse, torch.where(plain_lse == -torch.inf, -torch.inf, torch.tensor(sink)))
        torch.testing.assert_close(lse, total, rtol=1e-6, atol=1e-6)
        share = torch.exp(plain_lse - total).nan_to_num(0.0)[..., None]
        torch.testing.assert_close(o, plain * share, rtol=1e-5, atol=1e-6)


@all_isas
@pytest.mark.parametrize("q_len", [1, 3, 40])
def test_parts_of_a_sequence_merge_to_the_whole(isa, q_len):
    what = sequences([q_len], [700])
    (q,), (k,), (v,), cut = what.q, what.k, what.v, 300
    whole, whole_lse = run(lay_out(what), isa=isa)
    # Every query sees all of the prefix: as the only query of a sequence.
    prefix = Sequences(list(q[:, None]), [k[:cut]] * q_len, [v[:cut]] * q_len)
    suffix = Sequences([q], [k[cut:]], [v[cut:]])
    parts = [run(lay_out(part), isa=isa) for part in (prefix, suffix)]
    states, lse = (torch.stack(each) for each in zip(*parts, strict=True))
    o, lse = ops.merge_states(states, lse, backend="cpu")
    torch.testing.assert_close(o, whole, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(lse, whole_lse, rtol=1e-6, atol=1e-6)


def test_strided_queries_and_outputs():
    call = lay_out(sequences([3, 1], [40, 300]))
    expected, expected_lse = run(call)

    def spread(x: Tensor) -> Tensor:
        wide = torch.full((2 * x.shape[0], x.shape[1] + 1, x.shape[2] + 5), NAN)
        return wide[::2, 1:, : x.shape[2]]

    q, out = spread(call.q), spread(call.q)
    q.copy_(call.q)
    starts = torch.tensor(call.q_starts, dtype=torch.int32)
    operands = (q, call.k_pages, call.v_pages, call.page_table, call.kv_lens, starts)
    _, lse = ops.paged_prefill(*operands, out=out, return_lse=True, backend="cpu")
    assert torch.equal(out, expected)
    assert torch.equal(lse, expected_lse)
    whole = out._base
    assert int(whole.isnan().sum()) == whole.numel() - out.numel()


def test_a_pool_beyond_4_gib():
    pool = KVPool(1, 1, 64, num_pages=700_000, page_size=16, dtype=torch.float32)
    assert pool.storage.numel() > 2**32
    layer, last = pool.layer(0), pool.num_pages - 1
    table = torch.tensor([[last, 0, last - 1]], dtype=torch.int32)
    k, v = torch.randn(2, 40, 1, 64)
    tokens = torch.arange(40)
    ops.append_kv(k, v, layer.k, layer.v, table[0, tokens // 16].long() * 16 + tokens % 16, backend="cpu")
    q, lens = torch.randn(1, 3, 64), torch.tensor([40], dtype=torch.int32)
    o = ops.paged_decode(q, layer.k, layer.v, table, lens, backend="cpu")
    weights = torch.softmax(q[0] @ k[:, 0].T / 8, dim=-1)
    torch.testing.assert_close(o[0], weights @ v[:, 0], rtol=1e-5, atol=1e-6)
