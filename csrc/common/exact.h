#pragma once
// Single, correctly rounded operations that no compiler may contract into others: the same bits from g++ and nvcc.
// Host code is built with -ffp-contract=off, so there a plain operator is one IEEE operation.
#include "common/macros.h"

namespace diva {

#if defined(__CUDA_ARCH__)
HOST_DEVICE float add_rn(float a, float b) { return __fadd_rn(a, b); }
HOST_DEVICE float sub_rn(float a, float b) { return __fsub_rn(a, b); }
HOST_DEVICE float mul_rn(float a, float b) { return __fmul_rn(a, b); }
HOST_DEVICE float div_rn(float a, float b) { return __fdiv_rn(a, b); }
HOST_DEVICE float fma_rn(float a, float b, float c) { return __fmaf_rn(a, b, c); }
HOST_DEVICE float sqrt_rn(float a) { return __fsqrt_rn(a); }
HOST_DEVICE uint32_t float_bits(float value) { return __float_as_uint(value); }
HOST_DEVICE float bits_float(uint32_t bits) { return __uint_as_float(bits); }
#else
HOST_DEVICE float add_rn(float a, float b) { return a + b; }
HOST_DEVICE float sub_rn(float a, float b) { return a - b; }
HOST_DEVICE float mul_rn(float a, float b) { return a * b; }
HOST_DEVICE float div_rn(float a, float b) { return a / b; }
HOST_DEVICE float fma_rn(float a, float b, float c) { return std::fmaf(a, b, c); }
HOST_DEVICE float sqrt_rn(float a) { return std::sqrt(a); }
HOST_DEVICE uint32_t float_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
HOST_DEVICE float bits_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
// float64 is for checks on the CPU.
HOST_DEVICE double add_rn(double a, double b) { return a + b; }
HOST_DEVICE double sub_rn(double a, double b) { return a - b; }
HOST_DEVICE double mul_rn(double a, double b) { return a * b; }
HOST_DEVICE double div_rn(double a, double b) { return a / b; }
HOST_DEVICE double sqrt_rn(double a) { return std::sqrt(a); }
#endif

}  // namespace diva
