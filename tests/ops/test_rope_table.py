# SPDX-License-Identifier: Apache-2.0
"""rope_table against transformers' own frequencies, and what it refuses."""

import math

import pytest
import torch

from pagedserve import ops
from pagedserve.errors import InvalidInput

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}
SCALINGS = [
    None,
    {"rope_type": "default"},
    {"rope_type": "linear", "factor": 4.0},
    LLAMA3,
    YARN,
    YARN | {"factor": 40.0, "mscale": 0.707, "mscale_all_dim": 0.9},
    YARN | {"beta_fast": 16.0, "beta_slow": 2.0, "attention_factor": 1.5},
    YARN | {"truncate": False},
]


@pytest.mark.parametrize("scaling", SCALINGS, ids=str)
def test_frequencies_are_those_of_transformers(scaling):
    transformers = pytest.importorskip("transformers")
    rope_utils = pytest.importorskip("transformers.modeling_rope_utils")
    head_dim, theta, positions = 64, 500000.0, 300
    parameters = {"rope_theta": theta, "rope_type": "default"} | (scaling or {})
    config = transformers.LlamaConfig(
        hidden_size=2 * head_dim,
        num_attention_heads=2,
        head_dim=head_dim,
        max_position_embeddings=131072,
        rope_parameters=parameters,
    )
    if parameters["rope_type"] == "default":
        frequencies, factor = 1 / theta ** (torch.arange(0, head_dim, 2).float() / head_dim), 1.0
    else:
        frequencies, factor = rope_utils.ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config, "cpu")
    angles = torch.arange(positions).double()[:, None] * frequencies.double()
    want = torch.cat((angles.cos(), angles.sin()), dim=1) * factor
    got = ops.rope_table(head_dim, positions, theta=theta, scaling=scaling)
    assert got.dtype == torch.float32
    assert got.shape == (positions, head_dim)
    # transformers keeps frequencies in float32: 300 positions turn that into 300 * 2^-24 of an angle.
    torch.testing.assert_close(got.double(), want, rtol=0, atol=1e-4)


def test_a_position_is_exact_far_out():
    """float32 angles would be off by a hundredth of a turn here."""
    table = ops.rope_table(2, 131072)
    assert table[131071].tolist() == pytest.approx([math.cos(131071), math.sin(131071)], abs=1e-7)


def test_divisors_divide_the_frequencies():
    plain, divided = ops.rope_table(4, 9), ops.rope_table(4, 9, divisors=[1.0, 2.0])
    assert torch.equal(divided[:, [0, 2]], plain[:, [0, 2]])
    torch.testing.assert_close(divided[::2, [1, 3]], plain[:5, [1, 3]])


@pytest.mark.parametrize(
    "call, word",
    [
        ({"rotary_dim": 5}, "rotary_dim is 5"),
        ({"rotary_dim": 0}, "rotary_dim is 0"),
        ({"max_position": 0}, "max_position is 0"),
        ({"theta": -1.0}, "theta is -1.0"),
        ({"theta": math.nan}, "theta is nan"),
        ({"scaling": {"rope_type": "dynamic", "factor": 2.0}}, "yarn"),
        ({"scaling": {"rope_type": "longrope"}}, "'longrope'"),
        ({"scaling": {"rope_type": "linear"}}, "factor"),
        ({"scaling": {"rope_type": "linear", "factor": 0}}, "factor"),
        ({"scaling": {"rope_type": "linear", "factor": "8"}}, "'8'"),
        ({"scaling": LLAMA3 | {"high_freq_factor": 1.0}}, "high_freq_factor"),
        ({"scaling": {"rope_type": "yarn", "factor": 4.0}}, "original_max_position_embeddings"),
        ({"scaling": "yarn"}, "scaling is a str; give a mapping"),
        ({"scaling": YARN, "theta": 1.0}, "theta is 1.0 with yarn"),
        ({"rotary_dim": "8"}, "rotary_dim is '8'"),
        ({"max_position": 4.0}, "max_position is 4.0"),
        ({"max_position": 10**12}, "max_position is 1000000000000"),
        ({"theta": "1e4"}, "theta is '1e4'"),
        ({"divisors": [1.0]}, "divisors"),
        ({"divisors": [0.0] * 4}, "divisors"),
    ],
)
def test_what_is_not_supported_is_refused(call, word):
    with pytest.raises(InvalidInput, match=word):
        ops.rope_table(**({"rotary_dim": 8, "max_position": 16} | call))


def test_yarn_of_absurd_lengths_is_a_table_all_the_same():
    for trained in (1e300, 1e-300):
        table = ops.rope_table(8, 4, scaling=YARN | {"original_max_position_embeddings": trained, "beta_fast": 1e-300})
        assert table.isfinite().all()
