# SPDX-License-Identifier: Apache-2.0
"""python -m pagedserve.emulate: what it prints and how it ends, for a right kernel and for a wrong one."""

import shutil

import pytest

from pagedserve.emulate.__main__ import main, parser, shape_case
from pagedserve.emulate.checks import NAMES
from pagedserve.errors import InvalidInput
from pagedserve.specs import SPECS

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="emulated kernels are compiled with g++")

CASE = next(iter(SPECS["copy_pages"].cases())).id
KERNEL = "kernels/cache/copy_pages.cuh"


def test_a_right_kernel_passes_every_check(capsys):
    assert main(["copy_pages", "--case", CASE]) == 0
    printed = capsys.readouterr().out
    assert printed.endswith("correct, race-free, in bounds\n")
    assert "FOUND" not in printed
    assert all(f"{name:<8} passed" in printed for name in NAMES)


FAULTS = {
    "result": ("if (i < count) *to[i] = held[i];", "if (i < count - 1) *to[i] = held[i];", "wrong-result: dst"),
    "races": (
        "const int64_t column = static_cast<int64_t>(target::block_index().x) * kCopyThreads + target::thread_index();",
        "const int64_t column = target::thread_index() / 2;",
        "race: write at copy_pages.cuh:",
    ),
    "bounds": (
        "const int64_t copy = first + (i < count ? i : 0);",
        "const int64_t copy = first + i;",
        "past the end of src_pages",
    ),
}


@pytest.mark.parametrize("check", FAULTS)
def test_a_wrong_kernel_is_found(capsys, check):
    old, new, said = FAULTS[check]
    assert main(["copy_pages", "--case", CASE, "--check", check, "--change", KERNEL, old, new]) == 1
    printed = capsys.readouterr().out
    assert f"{check:<8} FOUND" in printed
    assert said in printed


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["no_such_op"], "these have: "),
        (["copy_pages"], "--case list shows them"),
        (["copy_pages", "--case", "none"], "has no case 'none'"),
        (["copy_pages", "--case", "all", "--check", "taste"], "choose from all, result, order"),
        (["copy_pages", "--case", "all", "--source", "absent.cu"], "there is no launch file"),
        (["copy_pages", "--case", "all", "--change", "kernels/absent.cuh", "a", "b"], "there is no kernels/absent.cuh"),
        (["copy_pages", "--case", "all", "--change", KERNEL, "const", "b"], "give a text that stands there once"),
        (["copy_pages", "--case", "all", "--source", "copy_pages=absent.cu"], "absent.cu is not a file"),
    ],
)
def test_a_call_that_cannot_be_is_refused(capsys, arguments, said):
    assert main(arguments) == 2
    assert said in capsys.readouterr().err


def test_cases_are_listed(capsys):
    assert main(["copy_pages", "--case", "list"]) == 0
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize(
    "options, said",
    [
        (["--heads", "7/2"], "the first a multiple"),
        (["--dtype", "bf17"], "there is no dtype 'bf17'"),
        (["--kv-lens", "1;2"], "give whole numbers"),
        (["--page-size", "0"], "at least 1"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(options, said):
    with pytest.raises(InvalidInput, match=said):
        shape_case(parser().parse_args(["paged_decode", *options]))


def test_a_shape_becomes_a_case():
    case = shape_case(parser().parse_args(["paged_decode", "--dtype", "f16", "--kv-dtype", "fp8", "--window", "7"]))
    assert case.dtypes == {"q": "float16", "k_pages": "float8_e4m3fn"}
    assert case.sizes == {"num_q_heads": 32, "num_kv_heads": 8, "head_dim": 128, "page_size": 16}
    assert (case.lens, case.q_lens, case.options) == ((300, 17, 0, 129), (1,) * 4, {"window": 7})
