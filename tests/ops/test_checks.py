# SPDX-License-Identifier: Apache-2.0
"""Bad calls of every op are refused with the tensor, axis or value named, before any backend sees them."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pagedserve import ops
from pagedserve.errors import InvalidInput
from pagedserve.ops.cases import make_inputs
from pagedserve.specs import SPECS, TensorSpec
from pagedserve.specs.spec import QUANTISED

# The case of each op that uses most of its tensors.
CASES = {name: max(spec.cases(), key=lambda case: len(make_inputs(spec.name, case))) for name, spec in SPECS.items()}
GIVEN = [
    (name, entry)
    for name, spec in SPECS.items()
    for entry in spec.tensors
    if isinstance(entry, TensorSpec) and isinstance(make_inputs(name, CASES[name]).get(entry.name), torch.Tensor)
]
every_tensor = pytest.mark.parametrize("op, entry", GIVEN, ids=[f"{name}-{entry.name}" for name, entry in GIVEN])


def refused(op, call, *words):
    with pytest.raises(InvalidInput) as caught:
        getattr(ops, op)(**call)
    message = str(caught.value)
    assert message.startswith(f"{op}: "), message
    assert any(word in message for word in words), (message, words)
    return message


@every_tensor
def test_a_wrong_dtype_is_named(op, entry):
    call = make_inputs(op, CASES[op])
    message = refused(op, call | {entry.name: call[entry.name].to(torch.complex64)}, entry.name)
    assert "complex64" in message


@every_tensor
def test_a_wrong_type_is_named(op, entry):
    call = make_inputs(op, CASES[op])
    assert "list" in refused(op, call | {entry.name: [1, 2]}, entry.name)


@every_tensor
def test_a_missing_tensor_is_named(op, entry):
    if entry.optional or entry.made or entry.name == "history":
        return
    call = make_inputs(op, CASES[op])
    refused(op, call | {entry.name: None}, entry.name)


@every_tensor
def test_another_device_is_named(op, entry):
    call = make_inputs(op, CASES[op])
    if sum(isinstance(value, torch.Tensor | ops.Weight) for value in call.values()) == 1:
        return
    assert "meta" in refused(op, call | {entry.name: call[entry.name].to("meta")}, entry.name)


@every_tensor
def test_a_wrong_number_of_axes_is_named(op, entry):
    if entry.any_further:
        return
    call = make_inputs(op, CASES[op])
    tensor = call[entry.name]
    wrong = tensor.flatten() if tensor.dim() > 2 else tensor[None, None]
    assert "axes" in refused(op, call | {entry.name: wrong}, entry.name)


@every_tensor
def test_a_size_that_disagrees_is_named(op, entry):
    """Every axis, one longer, where another tensor knows its size too."""
    call = make_inputs(op, CASES[op])
    others = " ".join(
        other.shape for other in SPECS[op].tensors if other.name != entry.name and call.get(other.name) is not None
    )
    tensor = call[entry.name]
    axes = [axis for axis in entry.axes if not axis.optional]
    if tensor.dim() != len(axes):
        return
    for place, axis in enumerate(axes):
        if not any(name in others.replace("*", " ").replace("+", " ").split() for name in axis.names):
            continue
        shape = list(tensor.shape)
        shape[place] += 1
        longer = torch.zeros(shape, dtype=torch.float32).to(tensor.dtype)
        refused(op, call | {entry.name: longer}, *axis.names)


@every_tensor
def test_strides_that_are_not_supported_are_named(op, entry):
    call = make_inputs(op, CASES[op])
    tensor = call[entry.name]
    if entry.layout == "any" or tensor.shape[-1] < 2:
        return
    spread = tensor.new_zeros(*tensor.shape, 2)[..., 0]
    assert "contiguous" in refused(op, call | {entry.name: spread}, entry.name)


@pytest.mark.parametrize("op", ["paged_decode", "paged_prefill"])
@pytest.mark.parametrize(
    "sizes, word",
    [
        ({"head_dim": 12}, "head_dim is 12"),
        ({"head_dim": 264}, "head_dim is 264"),
        ({"num_q_heads": 5}, "num_q_heads is 5"),
        ({"num_kv_heads": 0}, "num_kv_heads 0"),
        ({"page_size": 0}, "page_size"),
        ({"page_size": 1 << 31}, "page_size (axis 1 of k_pages) is 2147483648; supported: up to 2147483647"),
    ],
)
def test_attention_sizes_that_are_not_supported(op, sizes, word):
    size = {"num_q_heads": 4, "num_kv_heads": 2, "head_dim": 16, "page_size": 4} | sizes
    pages = torch.zeros(3, 1, size["num_kv_heads"], size["head_dim"]).expand(-1, size["page_size"], -1, -1)
    call = {
        "q": torch.zeros(1, size["num_q_heads"], size["head_dim"]),
        "k_pages": pages,
        "v_pages": pages,
        "page_table": torch.zeros(1, 1, dtype=torch.int32),
        "kv_lens": torch.ones(1, dtype=torch.int32),
    }
    if op == "paged_prefill":
        call["q_starts"] = torch.tensor([0, 1], dtype=torch.int32)
    refused(op, call, word)


@pytest.mark.parametrize(
    "op, changes, word",
    [
        ("paged_decode", {"soft_cap": -1.0}, "soft_cap is -1.0"),
        ("paged_decode", {"soft_cap": math.nan}, "soft_cap is nan"),
        ("paged_decode", {"scale": math.inf}, "scale is inf"),
        ("paged_decode", {"scale": "auto"}, "scale is 'auto', a str"),
        ("paged_decode", {"scale": 1e39}, "scale is 1e+39"),
        ("paged_decode", {"window": 2.0}, "window is 2.0, a float"),
        ("paged_decode", {"window": 2**40}, "window is 1099511627776"),
        ("rope", {"interleaved": None}, "interleaved is None"),
        ("soft_cap", {"cap": math.nan}, "cap is nan"),
        ("paged_decode", {"q_len": 0}, "q_len is 0"),
        ("paged_decode", {"q_len": 2.5}, "q_len is 2.5"),
        ("paged_decode", {"backend": "cudnn"}, "'cudnn'"),
        ("paged_decode", {"k_scales": torch.ones(30, 16, 3)}, "k_scales"),
        ("merge_states", {"lse_base": "2"}, "lse_from_base2"),
        ("rms_norm", {"eps": -1.0}, "eps is -1.0"),
        ("rms_norm", {"accumulate": True, "out": None}, "out is None"),
        ("linear", {"accumulate": True, "out": None}, "out is None"),
        ("soft_cap", {"cap": 0.0}, "cap is 0.0"),
        ("embed", {"scale": math.nan}, "scale is nan"),
        ("sample", {"num_top": -1}, "num_top is -1"),
        ("sample", {"num_top": 2**31}, "give a whole number from 0 to 1048576"),
        ("rms_norm", {"backend": ["cpu"]}, 'give "auto" or the name'),
    ],
)
def test_options_out_of_range(op, changes, word):
    case = next(iter(SPECS[op].cases()))
    with pytest.raises(InvalidInput) as caught:
        getattr(ops, op)(**(make_inputs(op, case) | changes))
    assert word in str(caught.value)


def test_quantised_pages_need_their_scales():
    for k_pages in QUANTISED:
        case = next(case for case in SPECS["paged_decode"].cases() if case.dtypes["k_pages"] == k_pages)
        refused("paged_decode", make_inputs("paged_decode", case) | {"v_scales": None}, "v_scales is None")


def int4_call():
    case = next(case for case in SPECS["paged_decode"].cases() if case.dtypes["k_pages"] == "int4")
    return make_inputs("paged_decode", case)


def test_int4_pages_hold_two_elements_a_byte():
    """Half of head_dim, no more and no less; and a whole row of bytes is not taken for int8."""
    call = int4_call()
    whole = {name: call[name].repeat(1, 1, 1, 2) for name in ("k_pages", "v_pages")}
    refused("paged_decode", call | whole, "k_pages (uint8, 2 elements a byte) (head_dim) is 128")
    odd = {name: call[name][..., :-1] for name in ("k_pages", "v_pages")}
    refused("paged_decode", call | odd, "is 62, but q gives head_dim 64")
    refused("paged_decode", call | {"v_pages": call["v_pages"].view(torch.int8)}, "k_pages is torch.uint8")


def test_only_pages_are_int4():
    refused("paged_decode", int4_call() | {"q": torch.zeros(7, 9, 32, dtype=torch.uint8)}, "q is torch.uint8")
    call = int4_call()
    cost = ops.explain("paged_decode", call)
    wide = {name: call[name].view(torch.int8).repeat(1, 1, 1, 2) for name in ("k_pages", "v_pages")}
    saved = ops.explain("paged_decode", call | wide).bytes - cost.bytes
    assert saved == sum(max(n, 0) for n in call["kv_lens"].tolist()) * 3 * 64  # half a byte of keys, half of values
    assert cost.backend == "cpu"


def test_a_residual_goes_with_whole_rows():
    x = torch.zeros(2, 3, 8)
    refused("rms_norm", {"x": x, "weight": torch.ones(8), "residual": x.clone()}, "num_heads 3")


def test_pages_must_be_alike():
    ids = torch.zeros(1, dtype=torch.int64)
    pages = {"src": torch.zeros(2, 4, 2), "dst": torch.zeros(2, 4, 3), "src_pages": ids, "dst_pages": ids}
    refused("copy_pages", pages, "[4, 2]")


@pytest.mark.parametrize("rotary_dim", [6, 7, 18])
def test_rotary_dim_fits_the_head(rotary_dim):
    call = {"x": torch.zeros(1, 1, 16), "positions": torch.zeros(1, dtype=torch.int32)}
    if rotary_dim == 6:
        ops.rope(**call, cos_sin=torch.zeros(4, rotary_dim))
    else:
        refused("rope", call | {"cos_sin": torch.zeros(4, rotary_dim)}, f"is {rotary_dim}")


OUTSIDE = st.one_of(st.integers(-(2**31), -1), st.integers(10**6, 2**31 - 1))
INDEXED = [
    ("append_kv", "slot_mapping", False),
    ("rope_append_kv", "slot_mapping", False),
    ("rope_append_kv", "positions", True),
    ("copy_pages", "src_pages", True),
    ("copy_pages", "dst_pages", True),
    ("rope", "positions", True),
    ("embed", "token_ids", True),
    ("take_rows", "rows", True),
    ("sample", "history", True),
]


@pytest.mark.parametrize("op, name, negative", INDEXED, ids=[f"{op}-{name}" for op, name, _ in INDEXED])
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_ids_outside_their_range_are_refused(op, name, negative, data):
    call = make_inputs(op, next(iter(SPECS[op].cases())))
    bad = data.draw(OUTSIDE if negative else OUTSIDE.map(abs).filter(lambda i: i >= 10**6))
    call[name][data.draw(st.integers(0, len(call[name]) - 1))] = bad
    message = refused(op, call, name)
    assert str(bad) in message


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_pages_below_the_length_must_be_in_the_pool(data):
    op = data.draw(st.sampled_from(["paged_decode", "paged_prefill"]))
    call = make_inputs(op, next(iter(SPECS[op].cases())))
    lens, page_size = call["kv_lens"], call["k_pages"].shape[1]
    takes_part = [True] * len(lens) if op == "paged_decode" else call["q_starts"].diff().gt(0).tolist()
    seq = data.draw(st.sampled_from([i for i, length in enumerate(lens.tolist()) if length > 0 and takes_part[i]]))
    page = data.draw(st.integers(0, -(-int(lens[seq]) // page_size) - 1))
    call["page_table"][seq, page] = bad = data.draw(OUTSIDE)
    message = refused(op, call, f"page_table[{seq}, {page}] is {bad}")
    assert "num_pages" in message


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_lengths_beyond_the_table_are_refused(data):
    call = make_inputs("paged_decode", next(iter(SPECS["paged_decode"].cases())))
    seq = data.draw(st.integers(0, len(call["kv_lens"]) - 1))
    most = call["page_table"].shape[1] * call["k_pages"].shape[1]
    call["kv_lens"][seq] = data.draw(st.integers(most + 1, 2**31 - 1))
    assert "max_pages" in refused("paged_decode", call, f"kv_lens[{seq}]")


@pytest.mark.parametrize("starts", [[-1, 1, 2], [0, 2, 1], [0, 1, 5]])
def test_q_starts_must_rise(starts):
    pages = torch.zeros(2, 4, 1, 8)
    call = {
        "q": torch.zeros(4, 1, 8),
        "k_pages": pages,
        "v_pages": pages,
        "page_table": torch.zeros(2, 1, dtype=torch.int32),
        "kv_lens": torch.ones(2, dtype=torch.int32),
        "q_starts": torch.tensor(starts, dtype=torch.int32),
    }
    refused("paged_prefill", call, "q_starts")


@pytest.mark.parametrize(
    "name, bad",
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("top_p", math.nan),
        ("min_p", -0.1),
        ("min_p", 1.5),
        ("repetition", 0.0),
        ("repetition", -1.0),
        ("presence", math.inf),
        ("frequency", math.nan),
    ],
)
def test_sampling_parameters_out_of_range(name, bad):
    call = make_inputs("sample", next(iter(SPECS["sample"].cases())))
    call[name][2] = bad
    refused("sample", call, f"{name}[2]")


@pytest.mark.parametrize(
    "name, row, bad", [("history_starts", 1, 3), ("history_starts", 4, 99), ("output_starts", 2, 0)]
)
def test_history_must_be_in_order(name, row, bad):
    call = make_inputs("sample", next(iter(SPECS["sample"].cases())))
    call[name][row] = bad
    refused("sample", call, "history_starts")


def test_rows_without_history_need_none():
    call = make_inputs("sample", next(iter(SPECS["sample"].cases())))
    none = call | {"history": None, "history_starts": None, "output_starts": None}
    empty = call | {
        "history": call["history"][:0],
        "history_starts": call["history_starts"] * 0,
        "output_starts": call["output_starts"] * 0,
    }
    for ours, theirs in zip(ops.sample(**none), ops.sample(**empty), strict=True):
        assert torch.equal(ours, theirs)


def test_sparse_tensors_and_outputs_that_overlap_themselves_are_refused():
    x, weight = torch.zeros(2, 8), torch.ones(8)
    refused("rms_norm", {"x": x.to_sparse(), "weight": weight}, "x is torch.sparse_coo")
    out = torch.zeros(1, 8).expand(2, 8)
    refused("rms_norm", {"x": x, "weight": weight, "out": out}, "out is written")
    ops.rms_norm(torch.zeros(1, 8).expand(2, 8), weight)  # reading is fine
    ops.rms_norm(torch.zeros(1, 8), weight, out=torch.zeros(8).expand(1, 8))


def test_gradients_are_refused_not_lost():
    x, weight = torch.zeros(2, 8, requires_grad=True), torch.ones(8)
    refused("rms_norm", {"x": x, "weight": weight}, "x requires a gradient")
    with torch.no_grad():
        ops.rms_norm(x, weight)
    dense = torch.zeros(4, 8, requires_grad=True)
    ops.linear(x.detach(), ops.Weight.from_dense(dense))


EMPTY = [
    ("paged_decode", {"num_seqs": 0}),
    ("paged_prefill", {"num_seqs": 0, "num_tokens": 0}),
    ("merge_states", {"num_tokens": 0}),
    ("append_kv", {"num_tokens": 0}),
    ("rope_append_kv", {"num_tokens": 0}),
    ("copy_pages", {"num_copies": 0}),
    ("rms_norm", {"num_tokens": 0}),
    ("rope", {"num_tokens": 0}),
    ("silu_mul", {"num_tokens": 0}),
    ("gelu_mul", {"num_tokens": 0}),
    ("soft_cap", {"num_tokens": 0}),
    ("linear", {"num_tokens": 0}),
    ("embed", {"num_tokens": 0}),
    ("take_rows", {"num_rows": 0}),
    ("sample", {"num_rows": 0}),
]


@pytest.mark.parametrize("op, empty", EMPTY, ids=[op for op, _ in EMPTY])
def test_nothing_to_do_is_done(op, empty):
    """A batch of no sequences, tokens or rows, on every backend that can run here."""
    call = make_inputs(op, next(iter(SPECS[op].cases())))
    for entry in SPECS[op].tensors:
        tensor = call.get(entry.name)
        if not isinstance(entry, TensorSpec) or not isinstance(tensor, torch.Tensor):
            continue
        for place, axis in enumerate(entry.axes[: tensor.dim()]):
            if set(axis.names) & empty.keys():
                tensor = tensor.narrow(place, 0, axis.plus)
        call[entry.name] = tensor
    if op == "sample":
        call["history"] = call["history"][:0]
    able = ops.explain(op, call).able
    assert {"cpu", "reference"} <= set(able)
    for backend in able:
        result = getattr(ops, op)(**call, backend=backend)
        for tensor in result if isinstance(result, tuple) else (result,):
            assert tensor is None or tensor.numel() == 0
