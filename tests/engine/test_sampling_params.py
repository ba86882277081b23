# SPDX-License-Identifier: Apache-2.0
"""Impossible parameters are refused by name, with what is possible."""

import dataclasses

import numpy as np
import pytest

from pagedserve.engine.sampling import SamplingParams
from pagedserve.errors import InvalidInput

NAN, INF = float("nan"), float("inf")
REFUSED = [
    ("max_tokens", [0, -1, True, 1.5, "8", None, NAN]),
    ("temperature", [-0.1, 1000.1, NAN, INF, True, "hot", None, 1j]),
    ("top_k", [-1, 2**31, 1.0, False, None]),
    ("top_p", [0, 0.0, 1e-40, -0.5, 1.01, NAN, True, None]),
    ("min_p", [-0.01, 1.1, NAN, False, "0"]),
    ("repetition_penalty", [0, -1.0, 1e-40, 101, NAN, INF, True]),
    ("presence_penalty", [-2.1, 2.1, NAN, True]),
    ("frequency_penalty", [-2.1, 2.1, -INF, None]),
    ("seed", [-1, 2**64, 0.0, True, "s"]),
    ("stop", [[""], "", b"end", [b"end"], [1], None, {"a": 1}, "\ud800", ["ok", "\udfff"]]),
    ("stop_token_ids", [[-1], [1.0], [True], 5, "12", None]),
    ("ignore_eos", [0, 1, None, "no"]),
    ("min_tokens", [-1, 257, True, 1.0]),
    ("n", [0, -1, 257, True, 2.0]),
    ("logprobs", [-1, 21, True, 1.5]),
    ("skip_special_tokens", [1, None]),
    ("priority", [1.5, True, 1_000_001, None]),
    ("tenant", [None, 1, b"t"]),
    ("cache_salt", [None, 1]),
    ("ttft_deadline_s", [0, -1.0, NAN, INF, True, "1"]),
    ("tpot_target_s", [0.0, NAN]),
    ("deadline_s", [0, -INF, False]),
]


@pytest.mark.parametrize("name, value", [(name, value) for name, values in REFUSED for value in values])
def test_refused_by_name(name, value):
    with pytest.raises(InvalidInput, match=rf"SamplingParams\.{name} is .*; give ") as error:
        SamplingParams(**{name: value})
    assert repr(value) in str(error.value) or name in ("stop", "stop_token_ids")


def test_every_field_is_checked():
    assert {name for name, _ in REFUSED} == {field.name for field in dataclasses.fields(SamplingParams)}


def test_values_are_made_plain():
    params = SamplingParams(
        max_tokens=np.int64(8),
        temperature=np.float32(0.5),
        top_p=1,
        stop="end",
        stop_token_ids={7, np.int32(3)},
        seed=2**64 - 1,
    )
    assert (type(params.max_tokens), type(params.temperature), type(params.top_p)) == (int, float, float)
    assert params.stop == ("end",)
    assert params.stop_token_ids == (3, 7)
    assert SamplingParams(stop=["b", "a", "b"]).stop == ("b", "a")
    hash(params)


def test_penalises():
    assert not SamplingParams().penalises
    assert all(
        SamplingParams(**{name: 1.5}).penalises
        for name in ("repetition_penalty", "presence_penalty", "frequency_penalty")
    )
