# SPDX-License-Identifier: Apache-2.0
"""Pages of all layers in one run of bytes: views, copies, swaps, and the ops on them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pagedserve import ops
from pagedserve.cache import KVPool, PageLayout
from pagedserve.cache.layout import DTYPES
from pagedserve.errors import InvalidInput

all_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
SIZES = {"num_layers": 3, "num_kv_heads": 2, "head_dim": 24, "page_size": 5}


def make_pool(dtype=torch.float32, num_pages=6, num_host_pages=0, **sizes) -> KVPool:
    return KVPool(num_pages=num_pages, num_host_pages=num_host_pages, dtype=dtype, **(SIZES | sizes))


def tensors(pool: KVPool) -> list[torch.Tensor]:
    """Every view of every layer, as bytes would be read."""
    return [view for layer in pool.layers() for view in layer if view is not None]


def fill(pool: KVPool, seed: int = 0) -> None:
    random = torch.Generator().manual_seed(seed)
    pool.storage.copy_(torch.randint(256, pool.storage.shape, generator=random, dtype=torch.uint8))


@all_dtypes
def test_views_cover_a_page_without_overlap(dtype):
    pool = make_pool(dtype)
    pool.storage.zero_()
    used = 0
    for view in tensors(pool):
        assert view.shape[:3] == (6, SIZES["page_size"], SIZES["num_kv_heads"])
        before = int((pool.storage != 0).sum())
        bits = view.transpose(1, 2)[2:3].view(torch.uint8)
        bits.fill_(255)
        assert int((pool.storage != 0).sum()) - before == bits.numel()  # none of it was another view's
        used += bits.numel()
    untouched = pool.storage[[0, 1, 3, 4, 5]]
    assert not untouched.any()
    assert used <= pool.layout.page_bytes == pool.storage.stride(0)


@all_dtypes
def test_rows_of_a_head_follow_one_another(dtype):
    layer = make_pool(dtype).layer(1)
    for view in (layer.k, layer.v):
        assert view.dtype == dtype
        row = SIZES["head_dim"] // (2 if dtype == torch.uint8 else 1)  # uint8 holds int4, two codes a byte
        assert view.stride()[1:] == (row, SIZES["page_size"] * row, 1)
        assert view.data_ptr() % 64 == 0
    assert (layer.k_scales is None) == (layer.v_scales is None) == (dtype.itemsize > 1)


def test_scales_stand_in_the_page():
    pool = make_pool(torch.int8)
    layer = pool.layer(2)
    for scales in (layer.k_scales, layer.v_scales):
        assert scales.dtype == torch.float32
        assert scales.shape == (6, SIZES["page_size"], SIZES["num_kv_heads"])
        assert scales.stride()[1:] == (1, SIZES["page_size"])
        assert 0 <= scales[3].data_ptr() - pool.storage[3].data_ptr() < pool.layout.page_bytes


@pytest.mark.parametrize(
    "dtype, num_bytes",
    [
        (torch.float32, 2 * 960),
        (torch.bfloat16, 2 * 512),
        (torch.int8, 2 * (256 + 64)),
        (torch.float8_e4m3fn, 640),
        (torch.uint8, 2 * (128 + 64)),
    ],
)
def test_page_bytes(dtype, num_bytes):
    layout = PageLayout(**SIZES, dtype=dtype)  # 2 * 5 * 24 = 240 elements, 10 scales, each rounded up to 64 bytes
    assert layout.layer_bytes == num_bytes
    assert layout.page_bytes == 3 * num_bytes
    assert layout.token_bytes == 3 * num_bytes / 5
    assert layout.pages_for_bytes(3 * num_bytes * 7 + 5) == 7
    assert layout.pages_for_bytes(0) == layout.pages_for_bytes(-1) == layout.pages_for_bytes(3 * num_bytes - 1) == 0


pairs_of = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=8)


@settings(max_examples=30, deadline=None)
@given(pairs=pairs_of, dtype=st.sampled_from(DTYPES))
def test_copies_move_whole_pages_in_order(pairs, dtype):
    pool = make_pool(dtype)
    fill(pool)
    expected = pool.storage.clone()
    for source, destination in pairs:
        expected[destination] = expected[source].clone()
    pool.copy(pairs)
    assert torch.equal(pool.storage, expected)


@settings(max_examples=30, deadline=None)
@given(pages=st.permutations(range(6)), host_pages=st.permutations(range(8)), count=st.integers(0, 6))
def test_what_is_swapped_out_comes_back_anywhere(pages, host_pages, count):
    pool = make_pool(torch.bfloat16, num_host_pages=8)
    fill(pool)
    before = pool.storage.clone()
    host_pages = host_pages[:count]
    pool.swap_out(list(zip(pages, host_pages, strict=False)))
    assert torch.equal(pool.storage, before)
    pool.storage.fill_(255)
    pool.swap_in([(host, page) for page, host in zip(reversed(pages), host_pages, strict=False)])
    for page, origin in list(zip(reversed(pages), pages, strict=True))[:count]:
        assert torch.equal(pool.storage[page], before[origin])


@all_dtypes
def test_what_is_appended_is_attended_to(dtype):
    pool, random = make_pool(dtype, page_size=4), torch.Generator().manual_seed(0)
    pool.storage.fill_(255)  # NaN in every float dtype, scales included
    num_tokens, table = 11, torch.tensor([[4, 1, 3, -1]], dtype=torch.int32)
    k, v = torch.randn(2, num_tokens, 2, 24, generator=random)
    q = torch.randn(1, 6, 24, generator=random)
    tokens = torch.arange(num_tokens)
    slots = table[0, tokens // 4].long() * 4 + tokens % 4
    layer = pool.layer(1)
    ops.append_kv(k, v, layer.k, layer.v, slots, k_scales=layer.k_scales, v_scales=layer.v_scales, backend="cpu")
    lens = torch.tensor([num_tokens], dtype=torch.int32)
    scales = {"k_scales": layer.k_scales, "v_scales": layer.v_scales}
    o = ops.paged_decode(q, layer.k, layer.v, table, lens, **scales, backend="cpu")
    weights = torch.softmax(torch.einsum("hgd,thd->hgt", q.view(2, 3, 24), k) * 24**-0.5, dim=-1)
    expected = torch.einsum("hgt,thd->hgd", weights, v).view(1, 6, 24)
    tolerance = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2, torch.int8: 2e-2}.get(dtype, 1e-1)
    tolerance = 3e-1 if dtype == torch.uint8 else tolerance
    assert (o - expected).abs().max() < tolerance


@pytest.mark.parametrize(
    "change, words",
    [
        ({"num_layers": 0}, "num_layers is 0"),
        ({"num_kv_heads": -1}, "num_kv_heads is -1"),
        ({"page_size": 0}, "page_size is 0"),
        ({"page_size": 2.5}, "page_size is 2.5"),
        ({"head_dim": 20}, "head_dim is 20; supported: multiples of 8 up to 256"),
        ({"head_dim": 264}, "head_dim is 264"),
        (
            {"dtype": torch.float64},
            "float64; supported: float32, bfloat16, float16, int8, float8_e4m3fn, uint8 .which holds int4.",
        ),
        ({"num_pages": 0}, "num_pages is 0; give a whole number, 1 or above"),
        ({"num_host_pages": -1}, "num_host_pages is -1"),
        ({"num_pages": 2**55}, "no memory for 36028797018963968 pages of 5760 bytes"),
    ],
)
def test_a_pool_that_cannot_be_is_refused(change, words):
    with pytest.raises(InvalidInput, match=words):
        make_pool(**change)


@pytest.mark.parametrize("move", ["copy", "swap_out", "swap_in"])
@pytest.mark.parametrize("pair", [(-1, 0), (0, -1), (6, 0), (0, 6)])
def test_pages_outside_are_refused_and_nothing_moves(move, pair):
    pool = make_pool(num_host_pages=6)
    fill(pool)
    before = pool.storage.clone()
    with pytest.raises(InvalidInput, match="6"):
        getattr(pool, move)([(1, 2), pair])
    assert torch.equal(pool.storage, before)


@pytest.mark.parametrize("index", [-1, 3])
def test_a_layer_outside_is_refused(index):
    with pytest.raises(InvalidInput, match=f"layer {index} of 3; give 0 to 2"):
        make_pool().layer(index)
