// SPDX-License-Identifier: Apache-2.0
// attention_softmax.h: from dot products to weights, one row of one split at a time, and from split to split.
#pragma once

#include "attention_rows.h"

namespace pagedserve::cpu {
namespace {

// What turns a dot product into a logit. Tokens count from the split's first.
struct LogitRule {
  const float* factors;   // [kSplit] by position: scale times the key's own scale; null: `scale` for all
  float scale, soft_cap;  // soft_cap <= 0: off
  float slope;            // 0: off
  int query;              // the query's position, for the slope
  int begin, end;         // tokens the row may see
  bool streamed;          // it sees the whole split, read in kStreams; else positions are tokens
  const uint8_t* tree;    // of token tree_begin and on, 1: seen; null: all of them
  int tree_begin;
};

// The tokens at positions t to t + kLanes.
inline Vec tokens_at(const LogitRule& rule, int t) {
  if (!rule.streamed) return splat(static_cast<float>(t)) + lane_numbers();
  float first[kLanes];
  for (int i = 0; i < kLanes; ++i) first[i] = static_cast<float>(i % kStreams * kStreamTokens + i / kStreams);
  return splat(static_cast<float>(t % kStreams * kStreamTokens + t / kStreams)) + load(first);
}

// As many bytes as are read in the time that kLanes weights take: 6 ns of 43 GB/s.
constexpr int kWeightsBytes = 256;

// A softmax that is not yet divided by its sum. maximum is -inf where there was no key, and then nothing else is set.
struct State {
  float maximum, sum;
};

// Returns the maximum of each lane.
inline Vec make_logits(const LogitRule& rule, float* row) {
  Vec maxima = splat(-kInfinity);
  const int first = rule.begin / kLanes * kLanes;
  for (int t = first; t < rule.end; t += kLanes) {
    Vec x = load(row + t) * (rule.factors == nullptr ? splat(rule.scale) : load(rule.factors + t));
    if (rule.soft_cap > 0) x = splat(rule.soft_cap) * tanh(x / splat(rule.soft_cap));
    const Vec token = tokens_at(rule, t);
    if (rule.slope != 0) x = fma(splat(rule.slope), token - splat(static_cast<float>(rule.query)), x);
    if (t < rule.begin) x = select(less(token, splat(static_cast<float>(rule.begin))), splat(-kInfinity), x);
    if (t + kLanes > rule.end) x = select(less(token, splat(static_cast<float>(rule.end))), x, splat(-kInfinity));
    store(row + t, x);
    maxima = max(maxima, x);
  }
  if (rule.tree == nullptr) return maxima;
  for (int t = larger(rule.begin, rule.tree_begin); t < rule.end; ++t) {
    if (!rule.tree[t - rule.tree_begin]) row[t] = -kInfinity;
  }
  maxima = splat(-kInfinity);
  for (int t = first; t < rule.end; t += kLanes) maxima = max(maxima, load(row + t));
  return maxima;
}

// Turns a row of dot products into weights: e^(logit - maximum), times the value's own scale.
//
// Keys and values come no sooner for what is computed meanwhile, so that something is fetched here as well.
template <class Store>
inline State make_weights(const LogitRule& rule, const float* value_scales, Ahead& ahead, const Store& store_weights,
                          float* row) {
  if (rule.begin >= rule.end) return {-kInfinity, 0};
  const Vec maxima = make_logits(rule, row);
  const int first = rule.begin / kLanes * kLanes;
  // Without a maximum there is either no key, and every weight is 0, or a NaN, which must show.
  const float largest = max_lane(maxima), maximum = largest == -kInfinity ? 0 : largest;
  Vec sums = zero();
  for (int t = first; t < rule.end; t += kLanes) {
    ahead.read(kWeightsBytes);
    const Vec weight = exp(load(row + t) - splat(maximum));
    sums = sums + weight;
    store_weights(row, t, value_scales == nullptr ? weight : weight * load(value_scales + t));
  }
  const float total = sum(sums);
  return {total == 0 ? -kInfinity : maximum, total};
}

// Adds a split's state to that of the splits before it.
inline void fold(State split, const float* split_o, int width, State& total, float* total_o) {
  if (split.maximum == -kInfinity) return;
  if (total.maximum == -kInfinity) {
    total = split;
    memcpy(total_o, split_o, width * sizeof(float));
    return;
  }
  const float maximum = larger(total.maximum, split.maximum);
  const float old_part = exp(total.maximum - maximum), new_part = exp(split.maximum - maximum);
  total.maximum = maximum;
  total.sum = total.sum * old_part + split.sum * new_part;
  for (int d = 0; d < width; d += kLanes) {
    store(total_o + d, fma(load(split_o + d), splat(new_part), load(total_o + d) * splat(old_part)));
  }
}

// Divides by the sum; a sink is one more term of it. Returns the natural log of that sum, -inf where no key was seen.
inline float finish(State state, const float* sink, int width, float* o) {
  if (state.maximum == -kInfinity) {
    memset(o, 0, width * sizeof(float));
    return -kInfinity;
  }
  float sum = state.sum, maximum = state.maximum, part = 1;
  if (sink != nullptr) {
    maximum = larger(maximum, *sink);
    part = exp(state.maximum - maximum);
    sum = sum * part + exp(*sink - maximum);
  }
  for (int d = 0; d < width; d += kLanes) store(o + d, load(o + d) * splat(part) / splat(sum));
  return maximum + __builtin_logf(sum);
}

}  // namespace
}  // namespace pagedserve::cpu
