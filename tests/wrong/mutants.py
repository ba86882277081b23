# SPDX-License-Identifier: Apache-2.0
"""Wrong kernels: ours with one change each, and the check that must reject it."""

from tests.wrong.decode_mutants import DECODE_ORDER_MUTANTS, DECODE_VALUE_MUTANTS
from tests.wrong.mutant import Mutant

__all__ = ["MUTANTS", "Mutant"]

APPEND, COPY = "kernels/cache/append_kv.cuh", "kernels/cache/copy_pages.cuh"
PLAN, RECORDS = "plan/plan_decode.cuh", "plan/decode_plan.h"

CACHE_MUTANTS = (
    Mutant(
        "a skipped token is written",
        APPEND,
        "if (!takes_part) return;",
        "",
        "append stays in bounds",
    ),
    Mutant(
        "a page's offset in 32 bits",
        APPEND,
        "const int64_t to_offset = page",
        "const int32_t to_offset = (int32_t)page",
        "append beyond 4 GiB",
    ),
    Mutant(
        "a maximum over half of a row's lanes",
        APPEND,
        "for (int mask = shape.lanes / 2; mask > 0; mask /= 2)",
        "for (int mask = shape.lanes / 4; mask > 0; mask /= 2)",
        "append values",
    ),
    Mutant(
        "a NaN that hides behind larger numbers",
        APPEND,
        "if (amax >= 0x7f800000u) return target::bits_float(0x7fc00000u);",
        "if (amax >= 0x7f800000u) return 1.f;",
        "append values",
    ),
    Mutant(
        "the last elements of an odd row are not written",
        APPEND,
        "if (i < count) to[i]",
        "if (i < count - 1) to[i]",
        "append values",
    ),
    Mutant(
        "keys and values swapped",
        APPEND,
        "is_value ? p.v_pages : p.k_pages;",
        "is_value ? p.k_pages : p.v_pages;",
        "append values",
    ),
    Mutant(
        "codes of a word in the wrong order",
        APPEND,
        "& kMask) << (kBits * i);",
        "& kMask) << (kBits * (i ^ 1));",
        "append values",
    ),
    Mutant(
        "a page is read after it was written",
        COPY,
        "if (reads_a_write) {",
        "if (false) {",
        "copy values",
    ),
    Mutant(
        "one copy too many",
        COPY,
        "const int64_t copy = first + (i < count ? i : 0);",
        "const int64_t copy = first + i;",
        "copy stays in bounds",
    ),
)
PLAN_MUTANTS = (
    Mutant(
        "a missing barrier between the warps' sums and their reader",
        PLAN,
        "warp_sums[target::warp_index()] = sum;\n    target::sync_threads();",
        "warp_sums[target::warp_index()] = sum;",
        "plan races",
    ),
    Mutant(
        "a missing barrier before the warps' sums are used again",
        PLAN,
        "carry += all;\n    target::sync_threads();",
        "carry += all;",
        "plan races",
    ),
    Mutant(
        "a stale plan: counters of the step before",
        PLAN,
        "w.counters[i] = 0;",
        ";",
        "plan equals the host's",
    ),
    Mutant(
        "a stale plan: the number of tasks of the step before",
        RECORDS,
        "here.num_tasks = count;",
        "",
        "plan equals the host's",
    ),
    Mutant(
        "a group that one of its pieces does not count in",
        RECORDS,
        "last - owner + 1};",
        "last - owner};",
        "plan equals the host's",
    ),
    Mutant(
        "a group's cut that is the window's before",
        RECORDS,
        "s.first_split + w.cuts[owner + 1].split",
        "s.first_split + w.cuts[owner].split",
        "plan equals the host's",
    ),
    Mutant(
        "cuts that begin one window late",
        PLAN,
        "cut_at(p, w, block * payload);",
        "cut_at(p, w, (block + 1) * payload);",
        "plan equals the host's",
    ),
    Mutant(
        "a scan that forgets the rows before",
        PLAN,
        "carry += all;",
        "carry = all;",
        "plan equals the host's",
    ),
    Mutant(
        "a scan one lane short",
        PLAN,
        "if (target::lane_index() >= delta) sum += below;",
        "if (target::lane_index() > delta) sum += below;",
        "plan equals the host's",
    ),
)
# What stands inside of an asm, which only the PTX route sees.
INSTRUCTION_MUTANTS = (
    Mutant(
        "an instruction without .trans",
        "target/cuda_numbers.cuh",
        'PAGEDSERVE_LOAD_MATRICES(".trans");',
        'PAGEDSERVE_LOAD_MATRICES("");',
        "words as nvcc made them",
    ),
    Mutant(
        "swapped operands of the matrix instruction",
        "target/cuda_numbers.cuh",
        '"r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3])',
        '"r"(a[0]), "r"(a[2]), "r"(a[1]), "r"(a[3])',
        "words as nvcc made them",
    ),
    Mutant(
        "an instruction that waits for one group too few",
        "target/cuda_memory.cuh",
        'cp.async.wait_group %0;" ::"n"(kPending)',
        'cp.async.wait_group %0;" ::"n"(kPending + 1)',
        "words as nvcc made them",
    ),
)
MUTANTS: tuple[Mutant, ...] = (
    *CACHE_MUTANTS,
    *PLAN_MUTANTS,
    *DECODE_ORDER_MUTANTS,
    *DECODE_VALUE_MUTANTS,
    *INSTRUCTION_MUTANTS,
)
