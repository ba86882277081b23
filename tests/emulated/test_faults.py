# SPDX-License-Identifier: Apache-2.0
"""Each fault of faults.cu is found by the check named for it, with its kernel and line; its right twin passes."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pagedserve import emulate
from pagedserve.emulate import Library, Run
from pagedserve.emulate.library import _load
from pagedserve.errors import KernelFault

HERE = Path(__file__).parent
SOURCE = HERE / "faults.cu"
LINES = SOURCE.read_text(encoding="utf-8").splitlines()
LIBRARY = Library(SOURCE, (), HERE / "params.h")

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="emulated kernels are compiled with g++")


def launch(fault: str, library: Library = LIBRARY, **options: Any) -> torch.Tensor:
    out = torch.zeros(64)
    fields = {
        "in": torch.arange(64.0),
        "out": out,
        "scratch": torch.zeros(256),
        "flags": torch.zeros(1, dtype=torch.int32),
        "shared_bytes": 768,
    }
    with emulate.session(Run(**options)):
        library.run(f"fault_{fault}", "FaultParams", fields)
    return out


def fault_of(fault: str, **options: Any) -> KernelFault:
    with pytest.raises(KernelFault) as raised:
        launch(fault, **options)
    return raised.value


def names_line(message: str, text: str) -> bool:
    """Whether a message names a line of faults.cu that holds the text."""
    return any(f"{SOURCE.name}:{number}" in message for number, line in enumerate(LINES, start=1) if text in line)


# What any run finds: kind, where, and what the sentence says.
ALWAYS = {
    "deadlock": ("deadlock", "sync_named(1, 64);", "32 threads wait in sync_named"),
    "divergent_barrier": ("divergent-barrier", None, "the thread ends while others wait for it"),
    "barrier_counts_differ": ("divergent-barrier", "thread_index() < 32 ? 64 : 32", "used for 32 threads while 32"),
    "divergent_warp": ("divergent-warp", "shuffle_xor(value, 2)", "wait in shuffle_xor"),
    "lane_not_in_mask": (
        "lane-not-in-mask",
        "shuffle(1.f, 0, kLowHalf)",
        "lane 16, which is not in its mask 0x0000ffff",
    ),
    "lane_ended": ("lane-ended", "  sync_warp();", "names lanes that have ended"),
    "misaligned": ("misaligned", "copy_async<16>(shared + 8", "no multiple of 16"),
    "not_shared": ("not-shared", "load_matrices(r, p.in", "not in the block's shared memory"),
    "copy_past_the_end": ("out-of-bounds", "thread_index() / 63 * 16", "at byte 768 of the block's 768 dynamic ones"),
    "write_past_the_end": ("out-of-bounds", None, "wrote past the end of shared memory"),
    "static_bounds": ("out-of-bounds", None, "wrote past the end of shared memory"),
    "endless_spin": ("endless-spin", "atomic_load<Order::kAcquire>(p.flags) == 0)", "finds the same value again"),
    "too_many_threads": ("launch", None, "blocks of 2048 threads"),
}


@pytest.mark.parametrize("fault", ALWAYS)
@pytest.mark.parametrize("schedule", ["in-order", "random"])
def test_any_run_finds_it(fault, schedule):
    kind, line, sentence = ALWAYS[fault]
    found = fault_of(fault, schedule=schedule, seed=3)
    assert found.kind == kind
    assert f"kernel {fault}" in str(found)
    if schedule == "in-order":
        assert sentence in str(found)
        assert line is None or names_line(str(found), line)


@pytest.mark.parametrize(
    "fault, changed",
    [("wait", {"eager_copies": True}), ("initialise", {"poison": 0}), ("barrier", {"schedule": "reversed"})],
)
def test_it_shows_as_a_difference_between_runs(fault, changed):
    assert not torch.equal(launch(fault), launch(fault, **changed))
    assert torch.equal(launch(f"{fault}_right"), launch(f"{fault}_right", **changed))


def test_what_was_not_waited_for_and_what_was_not_written_is_nan():
    assert launch("wait").isnan().all()
    assert launch("initialise").isnan().nonzero().tolist() == [[4]]


RACES = {
    "barrier": "values[63 - thread_index()];",
    "barrier_before_overwrite": "static_cast<float>(round)",
    "warp_barrier": "values[thread_index() ^ 1];",
    "fence": "part[thread_index()] = p.in[thread_index()];",
    "ordered_atomic": "p.scratch[block_index().x * kThreads + thread_index()] = p.in",
    "blocks": "if (kWrong || block_index().x == 0)",
    "overlap": "p.out[thread_index()] = p.scratch[63 - thread_index()];",
}


@pytest.mark.parametrize("fault", RACES)
def test_the_race_check_finds_it(fault):
    found = fault_of(fault, build="races")
    assert found.kind == "race"
    assert names_line(str(found), RACES[fault])
    assert "block (" in str(found)
    launch(f"{fault}_right", build="races")


BOUNDS = {
    "global_bounds": ("out-of-bounds", "p.in[thread_index() + kWrong]", "past the end of in, which has 256 bytes"),
    "static_bounds": ("out-of-bounds", "begin[thread_index() + kWrong] = 1", "outside the block's shared memory"),
    "dynamic_read_bounds": ("out-of-bounds", "thread_index() == 7 ? end", "thread 7"),
    "write_past_the_end": ("out-of-bounds", "- 60 + thread_index()] = 1", "thread 60"),
    "registers": ("out-of-bounds", "sums[last] = 1", "outside any array"),
    "overflow": ("undefined", "static_cast<float>(large * 4)", "signed integer overflow"),
}


@pytest.mark.parametrize("fault", BOUNDS)
def test_the_bounds_check_finds_it(fault):
    kind, line, sentence = BOUNDS[fault]
    found = fault_of(fault, build="bounds")
    assert found.kind == kind
    assert sentence in str(found)
    assert names_line(str(found), line)
    if fault != "write_past_the_end":
        launch(f"{fault}_right", build="bounds")


@pytest.mark.parametrize("build", ["plain", "races"])
@pytest.mark.parametrize("schedule", ["in-order", "reversed", "random"])
def test_blocks_that_are_resident_may_wait_for_each_other(build, schedule):
    assert torch.equal(launch("wait_for_blocks", build=build, schedule=schedule), torch.arange(64.0))


def test_blocks_that_are_not_resident_are_waited_for_in_vain():
    found = fault_of("wait_for_blocks", resident_blocks=1)
    assert found.kind == "endless-spin"
    assert "resident" in str(found)


def stacks() -> int:
    """Of emulated threads, in this process: each has one guard page below it, which nobody may touch."""
    maps = (line.split() for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines())
    spans = ([int(end, 16) for end in line[0].split("-")] for line in maps if line[1] == "---p")
    return sum(end - begin == 4096 for begin, end in spans)


def test_a_library_gives_its_stacks_back_when_others_are_in_use():
    """A process has 65,530 mappings, and dozens of libraries."""
    unused = Library(SOURCE, ("STACKS_OF_ITS_OWN",), HERE / "params.h")
    _load.cache_clear()
    before = stacks()
    for _ in range(2):
        launch("wait_for_blocks", unused)  # 4 blocks of 64
        assert stacks() == before + 256
    assert _load.cache_info().maxsize <= 4  # of 4 blocks with 1,024 threads each, twice where launches overlap
    _load.cache_clear()
    assert stacks() == before
    assert torch.equal(launch("wait_for_blocks", unused), torch.arange(64.0))


WITHOUT_MEMORY = """
import resource
import test_faults as faults

faults.launch("barrier_right")  # 64 threads
used = resource.getpagesize() * int(open("/proc/self/statm").read().split()[0])
_, hard = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (used + (32 << 20), hard))
try:
    faults.launch("wait_for_blocks")  # 256 threads, 256 KiB each
except faults.KernelFault as fault:
    print(fault.kind, fault)
resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
print(float(faults.launch("wait_for_blocks")[63]))
"""


def test_no_memory_for_stacks_fails_the_launch_alone():
    ran = subprocess.run(
        [sys.executable, "-c", WITHOUT_MEMORY], cwd=HERE, capture_output=True, text=True, timeout=120, check=True
    )
    refused, served = ran.stdout.splitlines()
    assert refused.startswith("launch kernel wait_for_blocks: the system has no stack")
    assert "let fewer blocks be resident" in refused
    assert served == "63.0"
