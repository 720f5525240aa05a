#pragma once
// e^x without a table, a branch or a call, so that a loop over it becomes vector code on the CPU.
#include "common/exact.h"

namespace diva {

// Relative error below 2e-7. Only for x in [-87, 88]; NaN gives NaN.
HOST_DEVICE float bounded_exponential(float x) {
#if defined(__CUDA_ARCH__)
  return expf(x);
#else
  // Adding 1.5 * 2^23 rounds to a whole number and leaves it in the low bits.
  const float shifted = x * 1.44269504f + 12582912.0f;
  const float whole = shifted - 12582912.0f;
  const float rest = (x - whole * 0.693359375f) - whole * -2.12194440e-4f;  // ln 2 in two parts, the first exact
  float series = 1.9875691500e-4f;                                          // Cephes expf
  series = series * rest + 1.3981999507e-3f;
  series = series * rest + 8.3334519073e-3f;
  series = series * rest + 4.1665795894e-2f;
  series = series * rest + 1.6666665459e-1f;
  series = series * rest + 5.0000001201e-1f;
  const float fraction = series * (rest * rest) + rest + 1.0f;
  return fraction * bits_float((float_bits(shifted) + 127u) << 23);
#endif
}

HOST_DEVICE double bounded_exponential(double x) { return exp(x); }

// The same for any x: outside [-87, 88] it is taken as the nearer bound.
HOST_DEVICE float exponential(float x) {
#if defined(__CUDA_ARCH__)
  return expf(x);
#else
  x = x < -87.0f ? -87.0f : x;
  return bounded_exponential(x > 88.0f ? 88.0f : x);
#endif
}

HOST_DEVICE double exponential(double x) { return exp(x); }

// 2^x for x <= 0, to about 1e-7 of itself; exactly 0 at -127 and below, so that -infinity needs no case. NaN gives NaN.
HOST_DEVICE float power_of_two(float x) {
#if defined(__CUDA_ARCH__)
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
#else
  x = x < -127.0f ? -127.0f : x;
  const float shifted = x + 12582912.0f;  // as above
  const float rest = x - (shifted - 12582912.0f);
  float series = 1.535336196e-4f;  // fitted on [-0.5, 0.5] for the least relative error, 2e-9
  series = series * rest + 1.339887502e-3f;
  series = series * rest + 9.618436918e-3f;
  series = series * rest + 5.550332367e-2f;
  series = series * rest + 2.402264774e-1f;
  series = series * rest + 6.931471825e-1f;
  series = series * rest + 1.0f;
  return series * bits_float((float_bits(shifted) + 127u) << 23);
#endif
}

HOST_DEVICE double power_of_two(double x) { return exp2(x); }

}  // namespace diva
