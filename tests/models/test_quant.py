# SPDX-License-Identifier: Apache-2.0
"""GGUF tensor formats against the gguf package's own dequantisers."""

import numpy as np
import pytest
import torch

from pagedserve.models.gguf_file import TENSOR_TYPES, GgufFile
from pagedserve.models.quant import in_format, read_vector, read_weight
from pagedserve.models.weights_gguf import GgufWeights
from pagedserve.ops import Weight

gguf = pytest.importorskip("gguf")

KINDS = [tensor_type.name for tensor_type in TENSOR_TYPES.values()]
EXACT = {
    "F32": "f32",
    "F16": "f32",
    "BF16": "bf16",
    "Q8_0": "q8",
    "Q5_0": "q8",
    "Q4_0": "q4",
    "Q4_1": "q4",
    "Q4_K": "q4",
}
SHAPE = (5, 512)


def random_bytes(kind: str, seed: int) -> np.ndarray:
    """[rows, row_bytes] of a format: any bits at all in codes and sub-scales, finite factors."""
    rng = np.random.default_rng(seed)
    quant_type = gguf.GGMLQuantizationType[kind]
    if kind in ("F32", "F16", "BF16"):
        return gguf.quants.quantize(rng.standard_normal(SHAPE).astype(np.float32), quant_type).view(np.uint8)
    block, block_bytes = gguf.GGML_QUANT_SIZES[quant_type]
    blocks = rng.integers(0, 256, (SHAPE[0], SHAPE[1] // block, block_bytes), dtype=np.uint8)
    factors = {"Q4_1": (0, 2), "Q5_1": (0, 2), "Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,)}
    factors.update(dict.fromkeys(("Q4_K", "Q5_K"), (0, 2)))
    for at in factors.get(kind, (0,)):
        values = rng.uniform(-1, 1, blocks.shape[:2]).astype(np.float16)
        blocks[..., at : at + 2] = values.view(np.uint8).reshape(*blocks.shape[:2], 2)
    if kind == "Q8_0":
        codes = blocks[..., 2:].view(np.int8)
        codes[codes == -128] = 127
    return blocks.reshape(SHAPE[0], -1)


@pytest.fixture
def read(make_gguf):
    def read(data: np.ndarray, kind: str, format: str | None = None) -> Weight:
        tensor = (data, gguf.GGMLQuantizationType[kind])
        return read_weight(GgufFile(make_gguf(tensors={"x": tensor})), "x", format)

    return read


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [0, 1])
def test_it_agrees_with_the_gguf_package(kind, seed, read):
    data = random_bytes(kind, seed)
    expected = torch.from_numpy(gguf.quants.dequantize(data, gguf.GGMLQuantizationType[kind]).reshape(SHAPE).copy())
    weight = read(data, kind)
    assert weight.format == EXACT.get(kind, "q8")
    error = (weight.dense() - expected).abs()
    if kind in EXACT:
        # One f32 rounding of scale * code + minimum, of terms up to 15 * 63 * scale each for Q4_K.
        assert bool((error <= 2e-7 * expected.abs().max()).all())
    else:
        assert torch.equal(read(data, kind, "f32").dense(), expected)
        groups = expected.view(SHAPE[0], -1, 32).abs().amax(dim=2, keepdim=True)
        assert bool((error.view(SHAPE[0], -1, 32) <= groups / 254 * 1.0001).all())


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q5_0", "F16", "BF16", "F32"])
def test_formats_without_a_minimum_are_exact_to_the_bit(kind, read):
    data = random_bytes(kind, 2)
    expected = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[kind]).reshape(SHAPE)
    if kind == "Q4_0":  # scale * code - 8 * scale: each term exact, the sum rounded at most once
        assert np.allclose(read(data, kind).dense().numpy(), expected, rtol=0, atol=1e-6)
    else:
        assert np.array_equal(read(data, kind).dense().numpy(), expected)


def test_a_q8_code_of_minus_128_is_rounded_into_range(read):
    data = random_bytes("Q8_0", 3)
    data[0, 2] = 0x80
    expected = torch.from_numpy(gguf.quants.dequantize(data, gguf.GGMLQuantizationType.Q8_0).reshape(SHAPE).copy())
    weight = read(data, "Q8_0")
    assert int(weight.values.min()) >= -127
    assert float((weight.dense() - expected).abs().max()) <= float(expected.abs().max()) / 254 * 1.0001


def test_rows_can_be_read_in_another_order(make_gguf):
    data = random_bytes("Q4_1", 4)
    file = GgufFile(make_gguf(tensors={"x": (data, gguf.GGMLQuantizationType.Q4_1)}))
    order = np.array([3, 1, 4, 0, 2])
    assert torch.equal(read_weight(file, "x", rows=order).dense(), read_weight(file, "x").dense()[order])


def test_a_vector_is_dense(make_gguf):
    values = np.arange(7, dtype=np.float16)
    file = GgufFile(make_gguf(tensors={"v": (values, None)}))
    assert torch.equal(read_vector(file, "v"), torch.arange(7.0))


def test_llama_rows_are_put_back(make_gguf):
    """GGUF's llama keeps rotary pairs side by side: rows of two heads of 8, head by head."""
    from pagedserve.models.config_gguf import from_gguf

    rows = np.repeat(np.arange(16, dtype=np.float32)[:, None], 32, axis=1)
    file = GgufFile(make_gguf(tensors={"blk.0.attn_k.weight": (rows, None)}))
    weight = GgufWeights(file, from_gguf(file)).matrix("layers.0.k", 16, 32, None)
    first_head = [0, 2, 4, 6, 1, 3, 5, 7]
    assert weight.dense()[:, 0].tolist() == [*first_head, *(8 + row for row in first_head)]


@pytest.mark.parametrize("format", ["f32", "bf16", "q8", "q4"])
def test_rounding_in_chunks_is_rounding(format):
    dense = torch.randn(4097 + 5, 32, generator=torch.Generator().manual_seed(0))
    whole = Weight.from_dense(dense, format)
    for mine, theirs in zip(in_format(Weight("f32", dense), format).tensors(), whole.tensors(), strict=True):
        assert torch.equal(mine, theirs)
