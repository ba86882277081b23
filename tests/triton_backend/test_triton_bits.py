# SPDX-License-Identifier: Apache-2.0
"""What a result's bits depend on: a query and its keys, and nothing else."""

from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from pagedserve.backends.triton.target import INTERPRETED, Target
from pagedserve.ops.cases import make_inputs
from pagedserve.specs import SPECS, Case
from tests.triton_backend.calls import run, same_bits

pytestmark = pytest.mark.triton

SHAPE = {"num_q_heads": 6, "num_kv_heads": 2, "head_dim": 24, "page_size": 16}
LENS = (700, 0, 257, 1, 512)
KV = ("bfloat16", "int8", "int4")


def decode(k_pages="bfloat16", lens=LENS, **options):
    q_len = options.get("q_len", 1)
    dtypes = {"q": "bfloat16", "k_pages": k_pages}
    return make_inputs("paged_decode", Case("bits", SHAPE, dtypes, options, lens, (q_len,) * len(lens))) | {
        "return_lse": True
    }


def only(call, seq, q_len=1):
    """One sequence of a decode, alone."""
    rows = slice(seq * q_len, (seq + 1) * q_len)
    named = {"q": rows, "page_table": slice(seq, seq + 1), "kv_lens": slice(seq, seq + 1)}
    return {name: value[named[name]] if name in named else value for name, value in call.items()}


@pytest.mark.parametrize("k_pages", KV)
def test_a_sequence_decodes_to_the_same_bits_alone(k_pages):
    call = decode(k_pages)
    together = run("paged_decode", call)
    for seq in range(len(LENS)):
        alone = run("paged_decode", only(call, seq))
        assert same_bits(alone, tuple(result[seq : seq + 1] for result in together)), seq


@pytest.mark.parametrize("order", [None, 1, 2, 3])
def test_decode_does_not_depend_on_the_order_of_programs(order):
    assert same_bits(run("paged_decode", decode(), order=order), run("paged_decode", decode()))


@pytest.mark.parametrize("num_processors", [0, 1])
def test_decode_does_not_depend_on_how_many_workers_share_a_sequence(num_processors):
    assert same_bits(run("paged_decode", decode(), target=Target(90, num_processors)), run("paged_decode", decode()))


def test_decode_does_not_depend_on_where_pages_lie():
    call = decode()
    moved = dict(call)
    order = torch.randperm(len(call["k_pages"]), generator=torch.Generator().manual_seed(1))
    place = torch.argsort(order).int()
    for name in ("k_pages", "v_pages"):
        moved[name] = call[name][order]
    table = call["page_table"]
    moved["page_table"] = torch.where((table >= 0) & (table < len(order)), place[table.clamp(0, len(order) - 1)], table)
    assert same_bits(run("paged_decode", moved), run("paged_decode", call))


def test_decode_reads_views_with_other_strides_alike():
    call = decode()
    strided = dict(call)
    for name in ("k_pages", "v_pages"):  # head-major, with NaN behind each row
        wide = torch.full((*call[name].permute(0, 2, 1, 3).shape[:3], SHAPE["head_dim"] + 8), torch.nan).bfloat16()
        strided[name] = wide.transpose(1, 2)[..., : SHAPE["head_dim"]]
        strided[name].copy_(call[name])
    assert same_bits(run("paged_decode", strided), run("paged_decode", call))


@pytest.mark.parametrize("options", [{}, {"window": 40}, {"sinks": True, "alibi_slopes": True, "soft_cap": 5.0}])
def test_a_prompt_in_chunks_gives_the_bits_of_the_whole(options):
    length = 150
    dtypes = {"q": "bfloat16", "k_pages": "bfloat16"}
    whole = make_inputs("paged_prefill", Case("whole", SHAPE, dtypes, options, (length,), (length,)))
    expected = run("paged_prefill", whole | {"return_lse": True})
    for chunk in (1, 33, 64):
        for begin in range(0, length, chunk) if chunk > 1 else (0, 77, length - 1):
            end = min(begin + chunk, length)
            part = whole | {
                "q": whole["q"][begin:end],
                "kv_lens": torch.tensor([end], dtype=torch.int32),
                "q_starts": torch.tensor([0, end - begin], dtype=torch.int32),
            }
            got = run("paged_prefill", part | {"return_lse": True})
            assert same_bits(got, tuple(result[begin:end] for result in expected)), (chunk, begin)


def test_a_prefill_leaves_tokens_that_belong_to_nobody():
    case = replace(next(iter(SPECS["paged_prefill"].cases())), lens=(5, 9), q_lens=(2, 3))
    call = make_inputs("paged_prefill", case)
    out = torch.full((8, *call["q"].shape[1:]), 7.0)
    call["q"] = torch.cat([call["q"][:1], call["q"], call["q"][:2]])
    call["q_starts"] = call["q_starts"] + 1
    run("paged_prefill", call | {"out": out})
    assert (out[0] == 7).all()
    assert (out[6:] == 7).all()
    assert not (out[1:6] == 7).any()


@pytest.mark.parametrize("op", ["paged_decode", "paged_prefill"])
def test_fp8_is_read_alike_with_and_without_hardware_for_it(op):
    for case in SPECS[op].cases():
        if case.dtypes == {"q": "bfloat16", "k_pages": "float8_e4m3fn"}:
            call = make_inputs(op, replace(case, lens=case.lens[-3:], q_lens=case.q_lens[-3:]))
            assert same_bits(run(op, call, target=Target(80)), run(op, call, target=INTERPRETED))


def test_splits_are_added_in_their_order():
    """In float32 (2^24 + 1) - 2^24 is 0, and (-2^24 + 1) + 2^24 is 1."""
    case = Case("order", {**SHAPE, "num_q_heads": 2}, {"q": "float32", "k_pages": "float32"}, {}, (768,), (1,))
    call = make_inputs("paged_decode", case)
    call["q"] = torch.zeros(1, 2, SHAPE["head_dim"])  # every key weighs the same
    for split, value in enumerate((2.0**24, 1.0, -(2.0**24))):
        call["v_pages"][call["page_table"][0, split * 16 : (split + 1) * 16].long()] = value
    assert (run("paged_decode", call)[0] == 0).all()
