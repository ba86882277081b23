# SPDX-License-Identifier: Apache-2.0
"""Each word of csrc/target, as the emulator has it, against numpy and torch: random bits, and where formats end."""

import shutil
import subprocess
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from bench.gpu.intrinsics import SOURCE, WORDS, Call, differences, emulated
from pagedserve.emulate import build

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="emulated kernels are compiled with g++")

LANES = np.arange(32)
Model = Callable[[np.ndarray, np.ndarray], np.ndarray]  # in, memory [blocks, 32, 8] u32 -> [blocks, 32, words] u32


def floats(bits: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(bits).view(np.float32)


def halves(bits: np.ndarray, dtype: torch.dtype) -> Tensor:
    """[..., 2 n] float64 of [..., n] u32."""
    return torch.from_numpy(np.ascontiguousarray(bits).view(np.int32)).view(dtype).double()


def packed(values: Tensor, dtype: torch.dtype) -> np.ndarray:
    """[..., n] u32 of [..., 2 n], each rounded once: sums and products of halves are exact in float64, or nearly."""
    return values.to(dtype).contiguous().view(torch.int32).numpy().view(np.uint32)


def stored(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)


def from_lane(source: Callable[[np.ndarray], np.ndarray]) -> Model:
    """A shuffle: source gives, of in[..., 1], the lane [blocks, 32] that each reads."""
    return lambda given, memory: np.take_along_axis(given[..., 0], source(given[..., 1]), axis=1)[..., None]


def up_or_down(sign: int) -> Callable[[np.ndarray], np.ndarray]:
    def source(argument: np.ndarray) -> np.ndarray:
        lane = LANES + sign * (argument[:, :1] & 31).astype(np.int64)
        return np.where((lane >= 0) & (lane < 32), lane, LANES)

    return source


def ballot(given: np.ndarray, memory: np.ndarray) -> np.ndarray:
    votes = ((given[..., 0] & 1) << LANES.astype(np.uint32)).sum(axis=1, dtype=np.uint32)
    return np.repeat(votes[:, None, None], 32, axis=1)


def votes(given: np.ndarray, memory: np.ndarray) -> np.ndarray:
    zero = (given[..., 0] & 31) == 0
    result = zero.any(axis=1).astype(np.uint32) | (~zero).all(axis=1).astype(np.uint32) << 1
    return np.repeat(result[:, None, None], 32, axis=1)


def pack(dtype: torch.dtype, words: int = 2) -> Model:
    def model(given: np.ndarray, memory: np.ndarray) -> np.ndarray:
        pair = torch.from_numpy(floats(given[..., :2]).copy())
        if words == 1:
            pair[..., 1] = 0
        return packed(pair, dtype)

    return model


def elementwise(dtype: torch.dtype, function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Model:
    return lambda given, memory: packed(function(*(halves(given[..., i : i + 1], dtype) for i in range(3))), dtype)


def permute(given: np.ndarray, memory: np.ndarray) -> np.ndarray:
    source = np.ascontiguousarray(given[..., :2]).view(np.uint8)
    result = np.zeros((*given.shape[:2], 4), np.uint8)
    for i in range(4):
        select = (given[..., 2] >> 4 * i) & 15
        byte = np.take_along_axis(source, (select & 7)[..., None].astype(np.int64), axis=2)[..., 0]
        result[..., i] = np.where(select & 8, np.where(byte & 128, 255, 0), byte)
    return result.view(np.uint32)


def approximate(function: Callable[[np.ndarray], np.ndarray]) -> Model:
    """What numpy has in float64; numbers below 2^-126 are zero before and after."""

    def flushed(x: np.ndarray) -> np.ndarray:
        return np.where(np.abs(x) < 2.0**-126, np.copysign(0.0, x), x)

    def model(given: np.ndarray, memory: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):
            return stored(flushed(function(flushed(floats(given[..., :1]).astype(np.float64)))))

    return model


def matrices(count: int, is_transposed: bool) -> Model:
    """Matrix i has rows 8 i to 8 i + 7 of the block's memory, 16 bytes each."""

    def model(given: np.ndarray, memory: np.ndarray) -> np.ndarray:
        rows = np.ascontiguousarray(given.reshape(len(given), -1)[:, :128]).view(np.uint16).reshape(-1, 4, 8, 8)
        if is_transposed:
            rows = rows.transpose(0, 1, 3, 2)
        pairs = np.ascontiguousarray(rows).view(np.uint32).reshape(-1, 4, 32)  # [matrix, row * 4 + pair]
        return pairs[:, :count].transpose(0, 2, 1)

    return model


def transposed(given: np.ndarray, memory: np.ndarray) -> np.ndarray:
    """The first words of the lanes are a matrix, as load_matrices spreads it."""
    matrix = np.ascontiguousarray(given[:, :, 0]).view(np.uint16).reshape(-1, 8, 8)
    return np.ascontiguousarray(matrix.transpose(0, 2, 1)).view(np.uint32).reshape(-1, 32, 1)


def product(dtype: torch.dtype, depth: int) -> Model:
    """Fragments are taken apart and put together by the tables of the PTX ISA."""

    def model(given: np.ndarray, memory: np.ndarray) -> np.ndarray:
        values = halves(given, dtype).numpy()  # [blocks, 32, 16]
        a, b = np.zeros((len(given), 16, depth)), np.zeros((len(given), depth, 8))
        c = np.zeros((len(given), 16, 8))
        g, q = LANES // 4, LANES % 4 * 2
        start = (1.0, -1.0, 0.5, 0.0)
        for j in range(2):
            for i in range(depth // 4):
                a[:, g + i % 2 * 8, q + i // 2 * 8 + j] = values[:, LANES, 2 * i + j]
            for i in range(depth // 8):
                b[:, q + i * 8 + j, g] = values[:, LANES, 8 + 2 * i + j]
            c[:, g, q + j], c[:, g + 8, q + j] = start[j], start[2 + j]
        d = a @ b + c
        return stored(np.stack([d[:, g + i // 2 * 8, q + i % 2] for i in range(4)], axis=-1))

    return model


def copy(limit: int, has_bytes: bool = True) -> Model:
    def model(given: np.ndarray, memory: np.ndarray) -> np.ndarray:
        valid = np.minimum((given[..., 0] & 15) + 1, limit) if has_bytes else np.zeros(given.shape[:2], np.uint32)
        source = np.ascontiguousarray(memory[..., :4]).view(np.uint8)
        result = np.full(source.shape, 0, np.uint8)
        place = np.arange(16)
        result[:] = np.where(place < valid[..., None], source, 0)
        untouched = np.broadcast_to(np.array([0xDEADBEEF] * 4, np.uint32).view(np.uint8), source.shape)
        return np.where(place < limit, result, untouched).astype(np.uint8).view(np.uint32)

    return model


def total(reduce: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Model:
    """All lanes see what an atomic of theirs has made of the block's first word."""

    def model(given: np.ndarray, memory: np.ndarray) -> np.ndarray:
        return np.repeat(reduce(memory[:, 0, 0], given[..., 0]).astype(np.uint32)[:, None, None], 32, axis=1)

    return model


BF16, F16, I32 = torch.bfloat16, torch.float16, np.int32
MODELS: dict[str, Model] = {
    "shuffle": from_lane(lambda argument: (argument & 31).astype(np.int64)),
    "shuffle_xor": from_lane(lambda argument: LANES ^ (argument[:, :1] & 31).astype(np.int64)),
    "shuffle_up": from_lane(up_or_down(-1)),
    "shuffle_down": from_lane(up_or_down(1)),
    "shuffle of 8": from_lane(lambda argument: (LANES & ~7) + (argument & 7).astype(np.int64)),
    "shuffle_down of 8": from_lane(lambda argument: np.tile(np.where(LANES % 8 + 3 < 8, LANES + 3, LANES), (32, 1))),
    "ballot": ballot,
    "any_lane, all_lanes": votes,
    "pack<BF16>": pack(BF16),
    "pack<F16>": pack(F16),
    "from_float<BF16>": pack(BF16, 1),
    "from_float<F16>": pack(F16, 1),
    "unpack<BF16>": lambda given, memory: stored(halves(given[..., :1], BF16).numpy()),
    "unpack<F16>": lambda given, memory: stored(halves(given[..., :1], F16).numpy()),
    "f16x2_of_f8x2": lambda given, memory: packed(f8(given)[..., :2], F16),
    "to_float(F8E4M3)": lambda given, memory: stored(f8(given)[..., :1].numpy()),
    "f8x2_of_floats": lambda given, memory: f8_codes(floats(given[..., :2])),
    "i8_of_float": lambda given, memory: (
        np.nan_to_num(np.clip(np.rint(floats(given[..., :1])), -128, 127))
        .astype(np.int8)
        .view(np.uint8)
        .astype(np.uint32)
    ),
    "fma_f16x2": elementwise(F16, lambda a, b, c: a * b + c),
    "add_f16x2": elementwise(F16, lambda a, b, c: a + b),
    "sub_f16x2": elementwise(F16, lambda a, b, c: a - b),
    "mul_f16x2": elementwise(F16, lambda a, b, c: a * b),
    "fma_bf16x2": elementwise(BF16, lambda a, b, c: a * b + c),
    "permute_bytes": permute,
    "logic3<0xea>": lambda given, memory: ((given[..., 0] & given[..., 1]) | given[..., 2])[..., None],
    "exp2_approx": approximate(np.exp2),
    "log2_approx": approximate(np.log2),
    "reciprocal_approx": approximate(lambda x: 1 / x),
    "rsqrt_approx": approximate(lambda x: 1 / np.sqrt(x)),
    "tanh_approx": approximate(np.tanh),
    **{f"load_matrices<{n}>": matrices(n, False) for n in (1, 2, 4)},
    **{f"load_matrices_transposed<{n}>": matrices(n, True) for n in (1, 2, 4)},
    "transpose_matrix": transposed,
    **{f"mma_m16n8k{k}<{name}>": product(t, k) for k in (8, 16) for name, t in (("BF16", BF16), ("F16", F16))},
    **{f"copy_async<{n}>": copy(n) for n in (16, 8, 4)},
    "copy_async<16> of nothing": copy(16, False),
    "atomic_add": total(lambda word, given: word + given.sum(axis=1, dtype=np.uint32)),
    "atomic_max": total(lambda word, given: np.maximum(word.view(I32), given.view(I32).max(axis=1)).view(np.uint32)),
    "atomic_min": total(lambda word, given: np.minimum(word.view(I32), given.view(I32).min(axis=1)).view(np.uint32)),
    "atomic_increment_wrap": total(lambda word, given: (word + 32) % 5),
}


def f8(given: np.ndarray) -> Tensor:
    """[..., 4] float64 of the codes in the first word."""
    codes = np.ascontiguousarray(given[..., :1]).view(np.uint8)
    return torch.from_numpy(codes).view(torch.float8_e4m3fn).double()


def f8_codes(pair: np.ndarray) -> np.ndarray:
    """Two e4m3 codes in a word, beyond 448 the largest, NaN as cvt makes it."""
    clamped = torch.from_numpy(pair.copy()).clamp(-448, 448)
    codes = clamped.to(torch.float8_e4m3fn).view(torch.uint8).numpy().astype(np.uint32)
    codes = np.where(np.isnan(pair), 0x7F, codes)
    return (codes[..., :1] | codes[..., 1:] << 8).astype(np.uint32)


ALONE = ("atomic_cas", "atomic_exchange", "load_streaming, store_streaming")


def test_no_word_is_forgotten():
    assert {word.name for word in WORDS} == {*MODELS, *ALONE}


@pytest.mark.parametrize("which", [i for i, word in enumerate(WORDS) if word.name not in ALONE])
def test_a_word_means_what_its_model_says(which):
    word = WORDS[which]
    call = Call.make(which)
    given, memory = (tensor.numpy().view(np.uint32).copy() for tensor in (call.given, call.memory))
    emulated()(call)
    wanted = np.ascontiguousarray(MODELS[word.name](given, memory)).view(np.int32)
    got = call.out[..., : wanted.shape[-1]].contiguous()
    wrong, largest = differences(word, got, torch.from_numpy(wanted))
    assert wrong == 0, f"{wrong} of {wanted.size} differ, by up to {largest:.3g}"


def run(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """in, memory before, out and memory after, as u32."""
    call = Call.make([word.name for word in WORDS].index(name))
    before = call.memory.clone()
    emulated()(call)
    given, first, out, after = (t.numpy().view(np.uint32) for t in (call.given, before, call.out, call.memory))
    return given, first, out, after


def test_cas_stores_where_the_expected_word_stands():
    given, before, out, after = run("atomic_cas")
    matches = (given[..., 0] & 1 == 1) | (before[..., 1] == given[..., 1])
    assert (out[..., 1] == before[..., 1]).all()
    assert (after[..., 1] == np.where(matches, given[..., 2], before[..., 1])).all()


def test_exchange_gives_what_stood_there():
    given, before, out, after = run("atomic_exchange")
    assert (out[..., 1] == before[..., 1]).all()
    assert (after[..., 1] == given[..., 2]).all()


def test_streaming_loads_and_stores_move_the_bits():
    given, before, _, after = run("load_streaming, store_streaming")
    assert (after[..., 4] == before[..., 0]).all()
    assert (after[..., 6] == before[..., 1]).all()
    assert (after[..., 7] == given[..., 0]).all()


HOPPER = build.ROOT / "tests/emulated/hopper.cu"


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="there is no nvcc")
@pytest.mark.parametrize("source, arch", [(SOURCE, "80"), (SOURCE, "90a"), (HOPPER, "90a")])
def test_nvcc_compiles_every_word_without_a_warning(source, arch, tmp_path):
    command = ["nvcc", "-std=c++17", "-Werror=all-warnings", f"-gencode=arch=compute_{arch},code=sm_{arch}"]
    command += ["-cubin", "-o", str(tmp_path / "words.cubin"), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
