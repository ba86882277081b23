# SPDX-License-Identifier: Apache-2.0
"""The bits of a query depend on that query and its keys alone: relations that hold to the last bit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.ops.attention_calls import ISAS, KV_DTYPES, Sequences, lay_out, run, sequences

FEATURES = ("window", "soft_cap", "sinks", "alibi_slopes")
Both = tuple[Tensor, Tensor]


def only(what: Sequences, seq: int, queries: slice, kv_len: int) -> Sequences:
    """One sequence, cut to some queries and the first keys."""
    return Sequences([what.q[seq][queries]], [what.k[seq][:kv_len]], [what.v[seq][:kv_len]], what.options)


def same(got: Both, expected: Both) -> None:
    for mine, other in zip(got, expected, strict=True):
        assert torch.equal(mine.nan_to_num(nan=7e7), other.nan_to_num(nan=7e7))


def joined(parts: list[Both]) -> Both:
    return torch.cat([o for o, _ in parts]), torch.cat([lse for _, lse in parts])


@st.composite
def prompts(draw, max_seqs: int = 1) -> Sequences:
    """Sequences of queries over a prefix, with any features that do not tie the queries together."""
    num_seqs = draw(st.integers(1, max_seqs))
    q_lens = draw(st.lists(st.integers(1, 60), min_size=num_seqs, max_size=num_seqs))
    return sequences(
        q_lens,
        [n + draw(st.integers(0, 560)) for n in q_lens],
        num_kv_heads=draw(st.integers(1, 2)),
        group_size=draw(st.integers(1, 9)),
        head_dim=8 * draw(st.integers(1, 10)),
        q_dtype=draw(st.sampled_from(KV_DTYPES[:3])),
        features=tuple(draw(st.sets(st.sampled_from(FEATURES)))),
        seed=draw(st.integers(0, 2**16)),
    )


isas, kv_dtypes, threads = st.sampled_from(ISAS), st.sampled_from(KV_DTYPES), st.integers(1, 3)
page_sizes = st.integers(1, 40)
many = settings(max_examples=30, deadline=None)


@many
@given(what=prompts(), isa=isas, kv_dtype=kv_dtypes, data=st.data())
def test_a_prompt_in_chunks_is_the_prompt_at_once(what, isa, kv_dtype, data):
    q_len, kv_len = len(what.q[0]), len(what.k[0])
    whole = run(lay_out(what, kv_dtype=kv_dtype), isa=isa)
    cuts = sorted(data.draw(st.sets(st.integers(1, q_len), max_size=5)) | {q_len})
    parts, begin = [], 0
    for end in cuts:
        chunk = only(what, 0, slice(begin, end), kv_len - q_len + end)
        page_size, ragged = data.draw(page_sizes), data.draw(st.booleans())
        parts.append(run(lay_out(chunk, kv_dtype=kv_dtype, page_size=page_size), isa=isa, ragged=ragged))
        begin = end
    same(joined(parts), whole)


@many
@given(what=prompts(max_seqs=4), isa=isas, kv_dtype=kv_dtypes, num_threads=threads, page_size=page_sizes)
def test_a_sequence_does_not_see_its_neighbours(what, isa, kv_dtype, num_threads, page_size):
    together = run(lay_out(what, kv_dtype=kv_dtype), isa=isa)
    parts = []
    for seq in range(len(what.q)):
        alone = lay_out(only(what, seq, slice(None), len(what.k[seq])), kv_dtype=kv_dtype, page_size=page_size, seed=1)
        parts.append(run(alone, isa=isa, num_threads=num_threads))
    same(joined(parts), together)


@many
@given(what=prompts(max_seqs=3), isa=isas, kv_dtype=kv_dtypes, page_size=page_sizes, seed=st.integers(0, 99))
def test_where_pages_lie_does_not_matter(what, isa, kv_dtype, page_size, seed):
    plain = run(lay_out(what, kv_dtype=kv_dtype), isa=isa)
    moved = lay_out(what, kv_dtype=kv_dtype, page_size=page_size, head_major=True, gap=8, seed=seed)
    same(run(moved, isa=isa), plain)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kv_dtype", KV_DTYPES, ids=str)
@pytest.mark.parametrize("features", [(), FEATURES], ids=["plain", "features"])
def test_verification_is_as_many_decodes(isa, kv_dtype, features):
    q_len, kv_lens = 7, [7, 260, 515, 90]
    what = sequences([q_len] * 4, kv_lens, features=features, head_dim=72)
    verified = run(lay_out(what, kv_dtype=kv_dtype), isa=isa)
    decoded = []
    for query in range(q_len):
        cut = [n - q_len + query + 1 for n in kv_lens]
        step = Sequences(
            [q[query : query + 1] for q in what.q],
            [k[:n] for k, n in zip(what.k, cut, strict=True)],
            [v[:n] for v, n in zip(what.v, cut, strict=True)],
            what.options,
        )
        decoded.append(run(lay_out(step, kv_dtype=kv_dtype, page_size=3 + query), isa=isa))
    same(tuple(torch.stack(each, dim=1).flatten(0, 1) for each in zip(*decoded, strict=True)), verified)


@pytest.mark.parametrize("isa", ISAS)
def test_a_causal_tree_is_no_tree(isa):
    what = sequences([9] * 2, [300, 9])
    plain = run(lay_out(what), isa=isa)
    what.options = {"tree_mask": torch.ones(9, 9).tril().bool().expand(2, 9, 9).contiguous()}
    same(run(lay_out(what), isa=isa), plain)


@pytest.mark.parametrize("isa", ISAS)
def test_a_branch_of_a_tree_is_its_chain(isa):
    what = sequences([4], [270], features=("sinks",))
    what.options["tree_mask"] = torch.tensor([[[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 1, 1]]]).bool()
    o, _ = run(lay_out(what), isa=isa)
    # Query 1 is seen by nobody else: the last three without their first are a chain, but for a key's place.
    chain = [0, *range(1, 266), 266, 268, 269]
    straight = Sequences(
        [what.q[0][[0, 2, 3]]], [what.k[0][chain]], [what.v[0][chain]], {"sinks": what.options["sinks"]}
    )
    expected, _ = run(lay_out(straight), isa=isa)
    torch.testing.assert_close(o[[0, 2, 3]], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("isa", ISAS)
def test_a_window_wider_than_the_sequence_is_no_window(isa):
    what = sequences([1, 30], [520, 300])
    plain = run(lay_out(what), isa=isa)
    for window in (520, 521, 2**31 - 1):
        what.options = {"window": window}
        same(run(lay_out(what), isa=isa), plain)


@pytest.mark.parametrize("isa", ISAS)
def test_pages_before_the_window_are_not_read(isa):
    what = sequences([1, 3], [700, 300])
    what.options = {"window": 100}
    call = lay_out(what, page_size=1)
    expected = run(call, isa=isa)
    for seq, (q_len, kv_len) in enumerate([(1, 700), (3, 300)]):
        for page in range(kv_len - q_len + 1 - 100):
            call.k_pages[call.page_table[seq, page]] = torch.nan
            call.v_pages[call.page_table[seq, page]] = torch.nan
    same(run(call, isa=isa), expected)


@pytest.mark.parametrize("isa", ISAS)
def test_rows_without_queries_take_no_part(isa):
    what = sequences([1, 30, 2], [700, 300, 40], num_kv_heads=1, head_dim=32)
    plain = run(lay_out(what), isa=isa)
    nothing = torch.zeros(0, *what.q[0].shape[1:]), torch.zeros(0, *what.k[0].shape[1:])
    for name, x in (("q", nothing[0]), ("k", nothing[1]), ("v", nothing[1])):
        some = getattr(what, name)
        setattr(what, name, [x, some[0], x, *some[1:], x])
    what.lens = [2**31 - 1, 700, 9000, 300, 40, -5]
    same(run(lay_out(what), isa=isa), plain)


@pytest.mark.parametrize("isa", ISAS)
def test_one_long_sequence_among_short_ones(isa):
    """Cut over the threads, or not: partials are folded in the order of splits."""
    what = sequences([1, 2, 1], [5000, 300, 20], num_kv_heads=1, head_dim=32)
    plain = run(lay_out(what), isa=isa, num_threads=1)
    for num_threads in (2, 3, 8):
        same(run(lay_out(what), isa=isa, num_threads=num_threads), plain)
