// SPDX-License-Identifier: Apache-2.0
// convert.h: number formats in plain arithmetic, for the emulator and for what an architecture has no instruction for.
// Rounding is to nearest even; a NaN becomes the format's canonical one, as cvt makes it.
#pragma once

#include "types.h"

namespace pagedserve::target::plain {

template <class To, class From>
PAGEDSERVE_HOST_DEVICE To bit_cast(From value) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast keeps the size");
  To result;
  memcpy(&result, &value, sizeof(To));
  return result;
}

PAGEDSERVE_HOST_DEVICE float float_of_bf16(uint16_t bits) { return bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

PAGEDSERVE_HOST_DEVICE uint16_t bf16_of_float(float value) {
  const uint32_t u = bit_cast<uint32_t>(value);
  if ((u & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
  return static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1)) >> 16);
}

PAGEDSERVE_HOST_DEVICE float float_of_f16(uint16_t bits) {
  const uint32_t magnitude = static_cast<uint32_t>(bits & 0x7fff) << 13;
  // 2^112 moves the exponent's bias from 15 to 127, and makes subnormals normal on the way.
  uint32_t u = bit_cast<uint32_t>(bit_cast<float>(magnitude) * 0x1p112f);
  if ((bits & 0x7c00) == 0x7c00) u = magnitude | 0x7f800000u;
  return bit_cast<float>(u | static_cast<uint32_t>(bits & 0x8000) << 16);
}

PAGEDSERVE_HOST_DEVICE uint16_t f16_of_float(float value) {
  const uint32_t u = bit_cast<uint32_t>(value), sign = u >> 16 & 0x8000, magnitude = u & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return 0x7fff;
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00);  // 65520 and above
  uint32_t code;
  if (magnitude < 0x38800000u) {  // below 2^-14: adding 0.5 rounds at 2^-24, the subnormals' step
    code = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    code = (magnitude - (112u << 23) + 0xfffu + (magnitude >> 13 & 1)) >> 13;
  }
  return static_cast<uint16_t>(sign | code);
}

PAGEDSERVE_HOST_DEVICE float float_of_f8e4m3(uint8_t bits) {
  const uint32_t code = bits & 0x7f;
  const float magnitude = bit_cast<float>(code << 20) * 0x1p120f;
  const uint32_t u = code == 0x7f ? 0x7fc00000u : bit_cast<uint32_t>(magnitude);
  return bit_cast<float>(u | static_cast<uint32_t>(bits & 0x80) << 24);
}

// Values beyond 448 become 448.
PAGEDSERVE_HOST_DEVICE uint8_t f8e4m3_of_float(float value) {
  const uint32_t u = bit_cast<uint32_t>(value), sign = u >> 24 & 0x80, magnitude = u & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return 0x7f;
  uint32_t code;
  if (magnitude < 0x3c800000u) {  // below 2^-6: adding 2^14 rounds at 2^-9, the subnormals' step
    code = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0x1p14f) - bit_cast<uint32_t>(0x1p14f);
  } else {
    code = magnitude >= 0x43e00000u ? 0x7e : (magnitude - (120u << 23) + 0x7ffffu + (magnitude >> 20 & 1)) >> 20;
  }
  return static_cast<uint8_t>(sign | code);
}

}  // namespace pagedserve::target::plain
