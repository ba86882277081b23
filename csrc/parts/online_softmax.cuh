// SPDX-License-Identifier: Apache-2.0
// online_softmax.cuh: softmaxes that are not yet divided by their sum, and how two of them become one.
//
// Logits are in units of log2. A state with maximum -inf has seen no key, and what it summed is not looked at.
// Source   Milakov & Gimelshein 2018
#pragma once

#include <cmath>

#include "../target/target.cuh"

namespace pagedserve::parts {

constexpr float kLog2E = 1.44269504088896340736f;
constexpr float kLn2 = 0.69314718055994530942f;

PAGEDSERVE_DEVICE float infinity() { return target::bits_float(0x7f800000u); }
PAGEDSERVE_DEVICE float not_a_number() { return target::bits_float(0x7fc00000u); }
PAGEDSERVE_DEVICE float larger(float a, float b) { return ::fmaxf(a, b); }  // a NaN is passed over

// cap * tanh(logit / cap), of a logit in units of e.
PAGEDSERVE_DEVICE float soft_capped(float logit, float cap) {
  return cap - 2.f * cap / (1.f + target::exp2_approx(2.f * kLog2E * (logit / cap)));
}

struct alignas(8) State {
  float maximum, sum;
};

PAGEDSERVE_DEVICE State empty_state() { return {-infinity(), 0.f}; }
PAGEDSERVE_DEVICE bool is_empty(const State& state) { return state.maximum == -infinity(); }

// -inf - -inf is NaN: without a key the shift is 0, and every weight is 2^-inf = 0.
PAGEDSERVE_DEVICE float shift_of(float maximum) { return maximum == -infinity() ? 0.f : maximum; }

// By what the sums of an older and of a newer state are multiplied when the newer one is folded into the older.
struct Parts {
  float older, newer;
};

// Of their maxima. The newer state is taken as it is where the older is empty, and left out where it is empty itself:
// so splits that a row does not see change no bit of it.
PAGEDSERVE_DEVICE Parts parts_of(float older, float newer) {
  const float maximum = larger(older, newer);
  const Parts parts = {target::exp2_approx(older - maximum), target::exp2_approx(newer - maximum)};
  if (newer == -infinity()) return {1.f, 0.f};
  return older == -infinity() ? Parts{0.f, 1.f} : parts;
}

// Rounded once, wherever it is compiled: a split has the same bits in whichever block it is folded.
PAGEDSERVE_DEVICE float fold(float total, float newer, const Parts& parts) {
  return ::fmaf(total, parts.older, newer * parts.newer);
}

// Folds `newer` into `total`.
PAGEDSERVE_DEVICE Parts fold(State& total, const State& newer) {
  const Parts parts = parts_of(total.maximum, newer.maximum);
  total = {larger(total.maximum, newer.maximum), fold(total.sum, newer.sum, parts)};
  return parts;
}

// Four neighbours of a row of sums.
struct alignas(16) Sums {
  float v[4];
};

// The sums that go with the states. A part of 0 leaves its side out, whatever that holds; so what is folded into an
// empty state keeps its bits.
PAGEDSERVE_DEVICE Sums fold(const Sums& total, const Sums& newer, const Parts& parts) {
  Sums sums;
  PAGEDSERVE_UNROLL
  for (int i = 0; i < 4; ++i) {
    const float scaled = newer.v[i] * parts.newer;
    const float folded = parts.older == 0.f ? scaled : ::fmaf(total.v[i], parts.older, scaled);
    sums.v[i] = parts.newer == 0.f ? total.v[i] : folded;
  }
  return sums;
}

// What the summed values are divided by, and the log of the sum; a sink is one more key, without a value.
struct Finish {
  float factor, lse;  // lse: natural log
};

PAGEDSERVE_DEVICE Finish finish(State state, const float* sink) {
  if (is_empty(state)) return {0.f, -infinity()};
  float part = 1.f;
  if (sink != nullptr) {
    const float logit = *sink * kLog2E, maximum = larger(state.maximum, logit);
    part = target::exp2_approx(state.maximum - maximum);
    state = {maximum, state.sum * part + target::exp2_approx(logit - maximum)};
  }
  return {part / state.sum, (state.maximum + target::log2_approx(state.sum)) * kLn2};
}

}  // namespace pagedserve::parts
