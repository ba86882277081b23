# SPDX-License-Identifier: Apache-2.0
"""The PTX route: what nvcc makes of small kernels gives numpy's answers, and faults in PTX are found and named."""

import math
import re
import shutil
import struct
from pathlib import Path

import pytest
import torch

from pagedserve.emulate import Run, session
from pagedserve.emulate.ptx import Program, compile_ptx, load
from pagedserve.errors import InvalidInput, KernelFault

SOURCE = Path(__file__).with_name("ptx_unit.cu")
pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")


@pytest.fixture(scope="module", params=["sm_80", "sm_90a"])
def unit(request) -> Program:
    return load(compile_ptx(SOURCE, request.param), name=f"unit-{request.param}")


@pytest.fixture(scope="module")
def text() -> str:
    return compile_ptx(SOURCE, "sm_90a")


def signed(value: int) -> int:
    return (value + 2**31) % 2**32 - 2**31


def byte_of(value: int, place: int) -> int:
    return ((value >> 8 * place & 255) + 128) % 256 - 128


def quotient(x: int, y: int) -> int:
    """Rounded to zero."""
    return abs(x) // abs(y) * (1 if (x < 0) == (y < 0) else -1)


def whole_number_results(x: int, y: int) -> list[int]:
    u, v, odd = x % 2**32, y % 2**32, y | 1
    pair = v << 32 | u
    permuted = sum((pair >> 8 * (0x6240 >> 4 * i & 7) & 255) << 8 * i for i in range(4))
    chosen = -x if x < y else (x ^ y if u > v else ~x)
    half = (x + 2**15) % 2**16 - 2**15
    results = [quotient(x, odd), x - quotient(x, odd) * odd, u // (v | 1), u % (v | 1), x * y >> 32, u * v >> 32]
    results += [u.bit_count(), 32 - u.bit_length(), int(f"{u:032b}"[::-1], 2), (u & -u).bit_length()]
    results += [x >> (y & 31), u >> (v & 31), u << (v & 31), pair << 9 >> 32, permuted]
    results += [7 + sum(byte_of(x, i) * byte_of(y, i) for i in range(4)), 3 + abs(x - y), x * y >> 13, chosen]
    return [signed(value) for value in [*results, half * byte_of(y, 0)]]


def test_whole_numbers(unit):
    generator = torch.Generator().manual_seed(1)
    a = torch.randint(-(2**31), 2**31, (300,), generator=generator).to(torch.int32)
    b = torch.randint(-(2**31), 2**31, (300,), generator=generator).to(torch.int32)
    a[:60] = torch.randint(-3, 4, (60,), generator=generator)
    b[30:90] = torch.randint(-3, 4, (60,), generator=generator)
    out = torch.zeros(300, 20, dtype=torch.int32)
    unit.launch("whole_numbers", grid=(3, 1, 1), threads=128, arguments=[a, b, out, 300])
    expected = [whole_number_results(x, y) for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    assert torch.equal(out, torch.tensor(expected, dtype=torch.int32))


def test_numbers_round_as_torch_rounds(unit):
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(500, generator=generator) * torch.exp(4 * torch.randn(500, generator=generator))
    x[:8] = torch.tensor([0.0, -0.0, math.nan, math.inf, -math.inf, 1e-40, 65519.0, -448.5])
    out = torch.full((500, 16), math.nan)
    unit.launch("numbers", grid=(4, 1, 1), threads=128, arguments=[x, out, 500])
    wide, number = x.double(), x.nan_to_num(0.0, math.inf, -math.inf)
    exact = {
        0: x.bfloat16(),
        1: x.half(),
        2: x.clamp(-448, 448).to(torch.float8_e4m3fn),
        3: x.clamp(-57344, 57344).to(torch.float8_e5m2),
        8: number.clamp(min=0.5) - number.clamp(max=-0.5),
        9: wide * wide + 1,
        10: wide / 3,
        11: number.clamp(0, 1),
        13: (x.half().double() * 0.5 + 1).half(),
        15: wide * 1.25,
    }
    for column, value in exact.items():
        torch.testing.assert_close(out[:, column], value.float(), rtol=0, atol=0, equal_nan=True, msg=str(column))
    whole = x.abs() < 2**31
    for column, value in {4: x.trunc(), 5: x.round(), 6: x.floor()}.items():
        assert torch.equal(out[whole, column], value[whole])
        assert out[2, column] == 0  # NaN
        assert out[3:5, column].tolist() == [2**31, -(2**31)]
    for column, value in {7: wide.abs().sqrt(), 12: 1 / (wide.abs() + 1).sqrt(), 14: torch.exp2(-wide.abs())}.items():
        torch.testing.assert_close(out[:, column], value.float(), rtol=3e-7, atol=1e-38, equal_nan=True)


@pytest.mark.parametrize("schedule", ["in-order", "reversed", "random"])
def test_a_sum_through_shuffles_shared_memory_and_an_atomic(unit, schedule):
    a = torch.randn(3000, generator=torch.Generator().manual_seed(3))
    out, total = torch.full((4,), math.nan), torch.zeros(1)
    with session(Run(schedule=schedule)) as here:
        unit.launch("sum", grid=(4, 1, 1), threads=256, arguments=[a, out, total, 3000])
    assert out.sum().item() == pytest.approx(a.sum().item(), abs=1e-4)
    assert total.item() == pytest.approx(a.sum().item(), abs=1e-4)
    assert here.counters["blocks"] == 4
    assert here.counters["atomics"] == 4


def test_local_memory_and_a_switch(unit):
    a = torch.randint(0, 100, (300,), dtype=torch.int32)
    out = torch.arange(300, dtype=torch.int32)
    unit.launch("choose", grid=(3, 1, 1), threads=128, arguments=[a, out, 300])
    for i, value in enumerate(a.tolist()):
        table = [j * j + 300 for j in range(8)]
        table[value & 7] += 100
        extra = {0: i, 1: 3 * value, 2: value // 7, 3: -1, 4: i, 5: 300}.get(value & 7, 5)
        assert out[i] == table[(value + 1) & 7] + table[value & 7] + extra


def transposed(program: Program, shared_bytes: int = 33 * 32 * 4) -> None:
    a, out = torch.randn(50, 70), torch.full((60, 50), math.nan)
    sizes = struct.pack("<qiif", 70, 50, 60, 2.0).ljust(32, b"\0")
    program.launch("transpose", grid=(2, 2, 1), threads=128, shared_bytes=shared_bytes, arguments=[a, out, sizes])
    assert torch.equal(out, 2 * a[:, :60].T)


def test_a_struct_by_value_and_dynamic_shared_memory(unit):
    transposed(unit)


def test_shared_memory_that_is_too_short_is_named(unit):
    with pytest.raises(KernelFault, match=r"transpose.*block.*thread.*\.ptx:\d+.*shared memory") as caught:
        transposed(unit, shared_bytes=33 * 32 * 4 - 16)
    assert caught.value.kind == "out-of-bounds"


def without(text: str, pattern: str) -> str:
    """The text without what a pattern finds, which must be there, each line where it was."""
    changed, count = re.subn(pattern, ";", text)
    assert count, pattern
    return changed


def test_a_missing_barrier_in_ptx_is_a_race(text):
    """The line that the compiler emitted is taken out, not one of the source."""
    broken = load(without(text, r"bar\.sync\s+0;"), name="no-barrier")
    with session(Run(build="races")), pytest.raises(KernelFault, match=r"\.ptx:\d+") as caught:
        transposed(broken)
    assert caught.value.kind == "race"
    with session(Run(build="races")):
        transposed(load(text, name="unit-sm_90a"))


def test_a_read_beyond_a_tensor_is_out_of_bounds(text):
    program = load(text, name="unit-sm_90a")
    a, out = torch.randn(100), torch.zeros(128, 16)
    with session(Run(build="bounds")), pytest.raises(KernelFault, match="reads 4 bytes") as caught:
        program.launch("numbers", grid=(1, 1, 1), threads=128, arguments=[a, out, 101])
    assert caught.value.kind == "out-of-bounds"
    with session(Run(build="bounds")):
        program.launch("numbers", grid=(1, 1, 1), threads=128, arguments=[a, out, 100])
    assert torch.equal(out[:100, 0], a.bfloat16().float())


def test_arguments_are_checked(unit):
    with pytest.raises(InvalidInput, match="4 parameters; 1 arguments"):
        unit.launch("sum", grid=(1, 1, 1), threads=32, arguments=[1])
    with pytest.raises(InvalidInput, match="takes 32 bytes"):
        unit.launch("transpose", grid=(1, 1, 1), threads=32, arguments=[torch.zeros(1), torch.zeros(1), b"short"])
    with pytest.raises(InvalidInput, match="0 kernels have 'nothing'"):
        unit.launch("nothing", grid=(1, 1, 1), threads=32, arguments=[])
