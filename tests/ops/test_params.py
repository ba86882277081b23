# SPDX-License-Identifier: Apache-2.0
"""Params structs as Python fills them: by field name, each value of the field's own type."""

import pytest

from pagedserve import _C

WIDE = {"num_tokens": 2**40, "token_stride": -(2**40), "head_dim": -(2**31), "x": 2**64 - 1, "dtype": _C.DType.i4}


def test_a_struct_holds_what_it_was_given():
    params = _C.RopeParams(**WIDE)
    for name, value in WIDE.items():
        assert getattr(params, name) == value
    assert (params.positions, params.num_heads, params.interleaved) == (0, 0, 0)  # those not given
    params.head_dim = 64
    assert params.head_dim == 64
    assert params.token_stride == WIDE["token_stride"]
    assert _C.PagedAttentionParams(scale=0.5).scale == 0.5


def test_a_struct_may_hold_another():
    pages = _C.KvPages(data=4096, page_stride=7, dtype=_C.DType.bf16)
    params = _C.AppendKvParams(k_pages=pages)
    assert (params.k_pages.data, params.k_pages.page_stride, params.k_pages.dtype) == (4096, 7, _C.DType.bf16)
    assert params.v_pages.data == 0
    params.k_pages.data = 1  # a copy: structs are values
    assert params.k_pages.data == 4096


@pytest.mark.parametrize(
    "name, value, word",
    [
        ("head_dim", "64", "head_dim cannot be '64', a str"),
        ("head_dim", 2**31, "head_dim cannot be 2147483648, a int"),
        ("x", -1, "x cannot be -1"),
        ("x", None, "x cannot be None"),
        ("dtype", 2, "dtype cannot be 2"),
    ],
)
def test_a_value_of_another_type_is_refused(name, value, word):
    with pytest.raises(TypeError, match=word):
        _C.RopeParams(**{name: value})
    params = _C.RopeParams()
    with pytest.raises(TypeError, match=word):
        setattr(params, name, value)


def test_an_unknown_field_is_refused():
    with pytest.raises(AttributeError, match="there is no field nothing"):
        _C.RopeParams(nothing=1)
