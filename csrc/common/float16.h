#pragma once
// The 16-bit floats as they lie in memory, and their conversions, alike on host and device. Host code is written so
// that loops over it become vector code.
#include "common/exact.h"

namespace diva {

struct BFloat16 {
  uint16_t bits;
};

struct Float16 {
  uint16_t bits;
};

HOST_DEVICE float to_float(float value) { return value; }
HOST_DEVICE double to_float(double value) { return value; }
HOST_DEVICE float to_float(BFloat16 value) { return bits_float(static_cast<uint32_t>(value.bits) << 16); }

HOST_DEVICE float to_float(Float16 value) {
#if defined(__CUDA_ARCH__)
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(value.bits));
  return result;
#else
  const uint32_t magnitude = static_cast<uint32_t>(value.bits & 0x7fffu) << 13;
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
  const float finite = bits_float(magnitude) * 5.192296858534828e33f;  // 2^112: from float16's exponent bias to float's
  const uint32_t special = magnitude | 0x7f800000u;                    // infinity, NaN
  return bits_float((magnitude >= 0x0f800000u ? special : float_bits(finite)) | sign);
#endif
}

// Rounds to nearest, ties to even, as torch does.
template <typename Stored, typename Real>
HOST_DEVICE Stored from_float(Real value);

template <>
HOST_DEVICE float from_float<float, float>(float value) {
  return value;
}

template <>
HOST_DEVICE double from_float<double, double>(double value) {
  return value;
}

template <>
HOST_DEVICE BFloat16 from_float<BFloat16, float>(float value) {
#if defined(__CUDA_ARCH__)
  BFloat16 result;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
  return result;
#else
  const uint32_t bits = float_bits(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const uint32_t nan = 0x7fc0u;
  return {static_cast<uint16_t>(value != value ? nan : rounded)};
#endif
}

template <>
HOST_DEVICE Float16 from_float<Float16, float>(float value) {
#if defined(__CUDA_ARCH__)
  Float16 result;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
  return result;
#else
  const uint32_t sign = (float_bits(value) >> 16) & 0x8000u;
  const uint32_t bits = float_bits(value) & 0x7fffffffu;
  const uint32_t normal = (bits - 0x38000000u + 0x0fffu + ((bits >> 13) & 1u)) >> 13;
  // Below 2^-14: adding 0.5 leaves the rounded multiple of 2^-24 in the low bits.
  const uint32_t subnormal = float_bits(bits_float(bits) + 0.5f) - 0x3f000000u;
  const uint32_t finite = bits < 0x38800000u ? subnormal : normal;
  const uint32_t large = bits > 0x7f800000u ? 0x7e00u : 0x7c00u;  // NaN, infinity
  return {static_cast<uint16_t>(sign | (bits >= 0x47800000u ? large : finite))};
#endif
}

}  // namespace diva
