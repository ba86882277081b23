# SPDX-License-Identifier: Apache-2.0
"""Wrong kernels: ours with one change each, and the check that must reject it."""

from __future__ import annotations

from dataclasses import dataclass

from pagedserve.emulate.change import Change


@dataclass(frozen=True)
class Mutant:
    """One change to one file of csrc.

    Attributes:
        file, old, new: see `Change`.
        check: a name of checks.CHECKS.
    """

    name: str
    file: str
    old: str
    new: str
    check: str

    @property
    def change(self) -> Change:
        return Change(self.file, self.old, self.new)


APPEND, COPY = "kernels/cache/append_kv.cuh", "kernels/cache/copy_pages.cuh"
PLAN = "plan/plan_decode.cuh"

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
        PLAN,
        "w.task_starts[p.num_blocks] = static_cast<int32_t>(num_tasks);",
        "",
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
DECODE, MERGE = "kernels/attention/paged_decode.cuh", "kernels/attention/decode_merge.cuh"
STREAM, FORMAT, MASK = "kernels/attention/decode_stream.cuh", "parts/kv_format.cuh", "parts/mask.cuh"
DECODE_ORDER_MUTANTS = (
    Mutant(
        "a missing wait for a tile's copies",
        DECODE,
        "target::copy_async_wait<C::kStages - 1>();\n",
        "\n",
        "decode values",
    ),
    Mutant(
        "a wait for one tile too few",
        DECODE,
        "target::copy_async_wait<C::kStages - 1>();\n",
        "target::copy_async_wait<C::kStages>();\n",
        "decode values",
    ),
    Mutant(
        "a missing barrier between the lanes that copied and those that read",
        DECODE,
        "target::copy_async_wait<C::kStages - 1>();\n      target::sync_warp();",
        "target::copy_async_wait<C::kStages - 1>();",
        "decode races",
    ),
    Mutant(
        "a missing barrier between the warps' sums and their fold",
        DECODE,
        "put_values(first, softmax);\n      target::sync_threads();",
        "put_values(first, softmax);",
        "decode races",
    ),
    Mutant(
        "a missing barrier between a fold and the next tile in its place",
        DECODE,
        "fold_column(first + c, c);\n      }\n      target::sync_threads();",
        "fold_column(first + c, c);\n      }",
        "decode races",
    ),
    Mutant(
        "an arrival before the block's partials are written",
        MERGE,
        "const DecodeTask& task) {\n  target::sync_threads();",
        "const DecodeTask& task) {",
        "decode races",
    ),
    Mutant(
        "an arrival without a fence",
        MERGE,
        "target::Order::kAcqRel",
        "target::Order::kRelaxed",
        "decode races",
    ),
    Mutant(
        "a counter of arrivals that does not return to 0",
        MERGE,
        "(counter, last) == last;",
        "(counter, last + 1) == last;",
        "decode bits",
    ),
    Mutant(
        "partials merged in the wrong order",
        MERGE,
        "const int64_t index = at_most(first + begin + i, last);",
        "const int64_t index = last - at_most(first + begin + i, last);",
        "decode bits",
    ),
    Mutant(
        "a maximum over the partials that misses one",
        MERGE,
        "if (target::lane_index() >= delta) maximum",
        "if (target::lane_index() > delta) maximum",
        "decode values",
    ),
)
DECODE_VALUE_MUTANTS = (
    Mutant(
        "a query's registers swapped",
        DECODE,
        "b[0] = pair.x, b[1] = pair.y;",
        "b[0] = pair.y, b[1] = pair.x;",
        "decode values",
    ),
    Mutant(
        "values that are not transposed",
        FORMAT,
        "target::load_matrices_transposed<4>(a[tile][0],",
        "target::load_matrices<4>(a[tile][0],",
        "decode values",
    ),
    Mutant(
        "a causal mask off by one",
        MASK,
        "return {begin, position + 1, 0xffffffffu, position};",
        "return {begin, position + 2, 0xffffffffu, position};",
        "decode values",
    ),
    Mutant(
        "a window off by one",
        MASK,
        "position - window + 1 : 0;",
        "position - window + 2 : 0;",
        "decode values",
    ),
    Mutant(
        "a row read behind a sequence's end",
        STREAM,
        "t < about.end_token &&",
        "t <= about.end_token &&",
        "decode values",
    ),
    Mutant(
        "a NaN that leaks because nothing is multiplied rather than left out",
        "parts/online_softmax.cuh",
        "fold(parts.older == 0.f ? 0.f : total.v[i],",
        "fold(total.v[i],",
        "decode values",
    ),
    Mutant(
        "a NaN that leaks because a mask is added rather than chosen",
        DECODE,
        "if (!parts::sees(view, shared_.open.new_begin, key)) logits[tile][i / 4][i % 4] = -parts::infinity();",
        "logits[tile][i / 4][i % 4] += parts::sees(view, shared_.open.new_begin, key) ? 0.f : -parts::infinity();",
        "decode hides what is not seen",
    ),
    Mutant(
        "sums that do not follow a maximum that grows",
        DECODE,
        "softmax.sum[c] * shrink[c] + sum;",
        "softmax.sum[c] + sum;",
        "decode values",
    ),
    Mutant(
        "a stale plan that is run as if it were new",
        "kernels/attention/decode_config.cuh",
        "return (p.kv_lens[task.seq] > 0 ? p.kv_lens[task.seq] : 0) != task.kv_len;",
        "return false;",
        "decode refuses a stale plan",
    ),
    Mutant(
        "a row's offset in 32 bits",
        STREAM,
        "static_cast<uint64_t>(stride_bytes(page",
        "static_cast<uint32_t>(stride_bytes(page",
        "decode beyond 4 GiB",
    ),
    Mutant(
        "shared memory that is too short",
        "launch/paged_decode.cuh",
        "shape.shared_bytes = sizeof(kernels::DecodeShared<C>);",
        "shape.shared_bytes = sizeof(kernels::DecodeShared<C>) - 1024;",
        "decode stays in bounds",
    ),
    Mutant(
        "scales of the wrong head",
        STREAM,
        "row * kv.scale_token_stride + head * kv.scale_head_stride;",
        "row * kv.scale_token_stride;",
        "decode of codes",
    ),
    Mutant(
        "a value's scale that is its key's",
        DECODE,
        "const float given = scale(1, token, i / 2, i % 2);",
        "const float given = scale(0, token, i / 2, i % 2);",
        "decode of codes",
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
