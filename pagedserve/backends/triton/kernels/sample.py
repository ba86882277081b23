# SPDX-License-Identifier: Apache-2.0
# token = argmax over the kept of (logit - largest) / temperature + noise(seed, offset, token), the lowest id of equals
#
#   logits                           [num_rows, vocab_size]   f32   those that are not finite are never chosen
#   temperature .. offsets           [num_rows]                     as ops.sample takes them
#   history                          [num_history]            i32   row r: history_starts[r] to history_starts[r + 1],
#                                                                   the prompt's tokens up to output_starts[r]
#   seen                             [num_rows, vocab_size]   i32   zero before; bit 30: in the prompt; below: outputs
#   scores                           [num_rows, vocab_size]   f32   workspace
#   tokens, logprobs                 [num_rows]
#   top_tokens, top_logprobs         [num_rows, num_top]
#
# Work     count_history: program = BLOCK tokens of one row's history. sample: program = one row.
#          Filters keep a prefix of the tokens in order of falling score, ties by lower id. The prefix's end is found
#          without sorting: 4 bits of the last score at a time, from how many tokens (top-k) or how much probability
#          (top-p) stand before each of 16 candidates; then, among tokens of that score, by their running number
# Sums     probabilities in float64, as the definition has them
# Traffic  logits about 4 times; scores 8 times more for each of top-k and top-p that is on
# Bound    latency of one processor per row
# Source   Salmon et al. 2011 (Philox); Gumbel 1954; Holtzman et al. 2020 (top-p); radix selection, Knuth vol. 3, 5.2.5
# Oracle   pagedserve/backends/reference/sampling.py::sample

import triton
import triton.language as tl

PROMPT = tl.constexpr(1 << 30)
NOBODY = tl.constexpr(2147483647)


@triton.jit
def count_history_kernel(history, history_starts, output_starts, seen, vocab_size, BLOCK: tl.constexpr):
    row = tl.program_id(1)
    begin, end = tl.load(history_starts + row), tl.load(history_starts + row + 1)
    place = begin + tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    token = tl.load(history + place, mask=place < end, other=0)
    at = seen + row.to(tl.int64) * vocab_size + token
    is_output = place >= tl.load(output_starts + row)
    tl.atomic_add(at, 1, mask=(place < end) & is_output, sem="relaxed")
    tl.atomic_or(at, PROMPT, mask=(place < end) & (is_output == 0), sem="relaxed")


@triton.jit
def philox(counter, offset_low, offset_high, key_low, key_high):
    """Four words of Philox4x32-10 for each counter, u32."""
    c0, c1 = counter, tl.zeros_like(counter)
    c2, c3 = tl.zeros_like(counter) + offset_low, tl.zeros_like(counter) + offset_high
    for _ in tl.static_range(10):
        high0, low0 = tl.umulhi(c0, tl.full(c0.shape, 0xD2511F53, tl.uint32)), c0 * 0xD2511F53
        high1, low1 = tl.umulhi(c2, tl.full(c2.shape, 0xCD9E8D57, tl.uint32)), c2 * 0xCD9E8D57
        c0, c1, c2, c3 = high1 ^ c1 ^ key_low, low1, high0 ^ c3 ^ key_high, low0
        key_low += tl.full([], 0x9E3779B9, tl.uint32)
        key_high += tl.full([], 0xBB67AE85, tl.uint32)
    return c0, c1, c2, c3


@triton.jit
def gumbel(word):
    u = ((word >> 9).to(tl.float32) + 0.5) * 1.1920928955078125e-07  # 2^-23
    return -tl.log(-tl.log(u))


@triton.jit
def ranks(scores, place, mask, cut_rank, cut_id):
    """Scores, the order they stand in (0: the largest, which is 0), and which are within a prefix."""
    score = tl.load(scores + place, mask=mask, other=float("-inf"))
    rank = score.to(tl.int32, bitcast=True) & 0x7FFFFFFF  # magnitudes of numbers up to 0
    kept = mask & (score > float("-inf")) & ((rank < cut_rank) | ((rank == cut_rank) & (place <= cut_id)))
    return score, rank, kept


@triton.jit
def share(score, kept, MASS: tl.constexpr):
    """What a token counts for: its probability, unnormalised, or one."""
    if MASS:
        return tl.where(kept, tl.exp(score.to(tl.float64)), 0.0)
    return kept.to(tl.float64)


@triton.jit
def prefix_end(scores, vocab_size, target, cut_rank, cut_id, MASS: tl.constexpr, BLOCK: tl.constexpr):
    """The last token of the longest prefix, of what a prefix left, before whose last stands less than target.

    Returns its rank, and its id among equals.
    """
    column, digit = tl.arange(0, BLOCK), tl.arange(0, 16)
    end_rank = 0
    for level in tl.static_range(8):
        candidate = end_rank + ((digit & (7 if level == 0 else 15)) << (28 - 4 * level))
        before = tl.full([16], 0.0, tl.float64)
        for start in range(0, vocab_size, BLOCK):
            place = start + column
            score, rank, kept = ranks(scores, place, place < vocab_size, cut_rank, cut_id)
            counted = share(score, kept, MASS)
            before += tl.sum(tl.where(rank[:, None] < candidate[None, :], counted[:, None], 0.0), 0)
        fits = (before < target) & ((level > 0) | (digit < 8))
        end_rank = tl.max(tl.where(fits, candidate, 0), 0)
    before = tl.full([], 0.0, tl.float64)
    for start in range(0, vocab_size, BLOCK):
        place = start + column
        score, rank, kept = ranks(scores, place, place < vocab_size, cut_rank, cut_id)
        before += tl.sum(share(score, kept & (rank < end_rank), MASS), 0)
    end_id = -1
    for start in range(0, vocab_size, BLOCK):
        place = start + column
        score, rank, kept = ranks(scores, place, place < vocab_size, cut_rank, cut_id)
        tied = share(score, kept & (rank == end_rank), MASS)
        ahead = before + tl.cumsum(tied, 0) - tied
        within = kept & (rank == end_rank) & (ahead < target)
        end_id = tl.maximum(end_id, tl.max(tl.where(within, place, -1), 0))
        before += tl.sum(tied, 0)
    return end_rank, end_id


@triton.jit
def best(score, place):
    """The largest score, and the lowest id that has it."""
    largest = tl.max(score, 0)
    return largest, tl.min(tl.where(score == largest, place, NOBODY), 0)


@triton.jit
def top_list(logits, vocab_size, shift, num_top, top_tokens, top_logprobs, BLOCK: tl.constexpr):
    """The num_top largest logits one after another, ties by lower id."""
    column = tl.arange(0, BLOCK)
    last, last_id = tl.full([], float("inf"), tl.float32), -1
    for place_in_list in range(num_top):
        found, found_id = tl.full([], float("-inf"), tl.float32), NOBODY + 0
        for start in range(0, vocab_size, BLOCK):
            place = start + column
            raw = tl.load(logits + place, mask=place < vocab_size, other=float("-inf"))
            raw = tl.where(tl.abs(raw) < float("inf"), raw, float("-inf"))
            after = (raw < last) | ((raw == last) & (place > last_id))
            score, token = best(tl.where(after, raw, float("-inf")), place)
            found_id = tl.where(score > found, token, found_id)
            found = tl.maximum(found, score)
        there = found > float("-inf")
        tl.store(top_tokens + place_in_list, tl.where(there, found_id, -1))
        tl.store(top_logprobs + place_in_list, tl.where(there, found - shift, float("-inf")))
        last, last_id = found, found_id


@triton.jit
def penalised(raw, counts, repetition, presence, frequency):
    """A tile's logits after penalties; counts: of `seen`."""
    repeated = tl.where(raw > 0, tl.math.div_rn(raw, repetition), raw * repetition)
    made = tl.where(counts != 0, repeated, raw)
    outputs = (counts & (PROMPT - 1)).to(tl.float32)
    return (made - frequency * outputs) - presence * (outputs > 0).to(tl.float32)


@triton.jit(do_not_specialize=["num_top"])
def sample_kernel(
    logits,
    temperature,
    top_k,
    top_p,
    min_p,
    repetition,
    presence,
    frequency,
    seeds,
    offsets,
    seen,
    scores,
    tokens,
    logprobs,
    top_tokens,
    top_logprobs,
    logits_stride,
    vocab_size,
    num_top,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    logits += row * logits_stride
    scores += row * vocab_size
    if seen is not None:
        seen += row * vocab_size
    top_tokens += row * num_top
    top_logprobs += row * num_top
    column = tl.arange(0, BLOCK)

    # Penalised logits into scores; the largest of them, and of the raw ones.
    largest, raw_largest = tl.full([], float("-inf"), tl.float32), tl.full([], float("-inf"), tl.float32)
    for start in range(0, vocab_size, BLOCK):
        place = start + column
        raw = tl.load(logits + place, mask=place < vocab_size, other=float("-inf"))
        raw = tl.where(tl.abs(raw) < float("inf"), raw, float("-inf"))  # not NaN either
        score = raw
        if seen is not None:
            counts = tl.load(seen + place, mask=place < vocab_size, other=0)
            score = penalised(raw, counts, tl.load(repetition + row), tl.load(presence + row), tl.load(frequency + row))
            score = tl.where(tl.abs(score) < float("inf"), score, float("-inf"))
        tl.store(scores + place, score, mask=place < vocab_size)
        largest = tl.maximum(largest, tl.max(score, 0))
        raw_largest = tl.maximum(raw_largest, tl.max(raw, 0))

    if largest == float("-inf"):
        tl.store(tokens + row, -1)
        tl.store(logprobs + row, float("-inf"))
        for place_in_list in range(num_top):
            tl.store(top_tokens + place_in_list, -1)
            tl.store(top_logprobs + place_in_list, float("-inf"))
    else:
        heat = tl.load(temperature + row)
        total = tl.full([], 0.0, tl.float32)
        for start in range(0, vocab_size, BLOCK):
            place = start + column
            raw = tl.load(logits + place, mask=place < vocab_size, other=float("-inf"))
            raw = tl.where(tl.abs(raw) < float("inf"), raw, float("-inf"))
            total += tl.sum(tl.exp(raw - raw_largest), 0)
            if heat > 0:
                score = tl.load(scores + place, mask=place < vocab_size, other=float("-inf"))
                tl.store(scores + place, tl.math.div_rn(score - largest, heat), mask=place < vocab_size)
        tl.debug_barrier()  # other threads read these scores
        shift = raw_largest + tl.log(total)

        cut_rank, cut_id = NOBODY + 0, NOBODY + 0  # keeps everything
        floor = tl.full([], 0.0, tl.float32)
        key, offset = tl.load(seeds + row), tl.load(offsets + row)
        if heat > 0:
            floor = tl.load(min_p + row)
            count, mass = tl.load(top_k + row), tl.load(top_p + row)
            if (count > 0) & (count < vocab_size):
                cut_rank, cut_id = prefix_end(scores, vocab_size, count.to(tl.float64), cut_rank, cut_id, False, BLOCK)
            if mass < 1:
                whole = tl.full([], 0.0, tl.float64)
                for start in range(0, vocab_size, BLOCK):
                    place = start + column
                    score, _, kept = ranks(scores, place, place < vocab_size, cut_rank, cut_id)
                    whole += tl.sum(share(score, kept, True), 0)
                cut_rank, cut_id = prefix_end(
                    scores, vocab_size, mass.to(tl.float64) * whole, cut_rank, cut_id, True, BLOCK
                )

        won, token = tl.full([], float("-inf"), tl.float32), NOBODY + 0
        quad = tl.arange(0, BLOCK // 4)
        for start in range(0, vocab_size, BLOCK):
            words = philox(
                (start // 4 + quad).to(tl.uint32),
                offset.to(tl.uint32),
                (offset >> 32).to(tl.uint32),
                key.to(tl.uint32),
                (key >> 32).to(tl.uint32),
            )
            for lane in tl.static_range(4):
                place = start + 4 * quad + lane
                if heat > 0:
                    score, _, kept = ranks(scores, place, place < vocab_size, cut_rank, cut_id)
                    kept = kept & ((floor <= 0) | (tl.exp(score) >= floor))
                    score = tl.where(kept, score + gumbel(words[lane]), float("-inf"))
                else:
                    score = tl.load(scores + place, mask=place < vocab_size, other=float("-inf"))
                high, at = best(score, place)
                better = (high > won) | ((high == won) & (at < token))
                token = tl.where(better, at, token)
                won = tl.maximum(won, high)
        tl.store(tokens + row, token)
        chosen = tl.load(logits + token)
        tl.store(logprobs + row, chosen - shift)
        top_list(logits, vocab_size, shift, num_top, top_tokens, top_logprobs, BLOCK)
