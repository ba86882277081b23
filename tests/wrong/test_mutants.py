# SPDX-License-Identifier: Apache-2.0
"""Every wrong kernel is rejected by the check that is named for it, and the right one passes the same check."""

import os
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest

from pagedserve.emulate import build
from pagedserve.errors import KernelFault
from tests.wrong.checks import CHECKS
from tests.wrong.mutants import MUTANTS
from tests.wrong.trees import DEFINES, library_of, session_of

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="emulated kernels are compiled with g++")


@pytest.fixture(scope="module", autouse=True)
def libraries(request):
    """What the chosen tests run, being compiled on all cores; each test waits for its own. One that does not compile is
    said by the test that asks for it."""
    wanted = {}
    for item in request.session.items:
        if item.path == request.path and (chosen := getattr(item, "callspec", None)):
            mutant = chosen.params.get("mutant")
            wanted[library_of(mutant.check if mutant else chosen.params["check"], mutant)] = None
    wanted.pop(None, None)
    pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)))
    yield {library: pool.submit(build.compile_library, *library, DEFINES) for library in wanted}
    pool.shutdown(cancel_futures=True)


def judge(libraries, check, mutant):
    if "nvcc" in check and shutil.which("nvcc") is None:
        pytest.skip("needs nvcc")
    if library := library_of(check, mutant):
        libraries[library].exception()
    with session_of(check, mutant):
        CHECKS[check].body()


@pytest.mark.parametrize("check", CHECKS)
def test_the_right_kernel_passes(libraries, check):
    judge(libraries, check, None)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_wrong_kernel_is_rejected(libraries, mutant):
    with pytest.raises((AssertionError, KernelFault)) as caught:
        judge(libraries, mutant.check, mutant)
    print(f"{mutant.name}: {caught.value}")


def test_there_are_enough_of_them():
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 15
    assert set(CHECKS) == {mutant.check for mutant in MUTANTS}
