#pragma once
// For CPU loops that the compiler turns into vector code: one binary, the widest registers of the machine it runs on.
#include "common/macros.h"

// Compiles a function once for each level of x86-64 and picks at load time. Not on templates: GCC cannot clone those,
// but it can clone their explicit specialisations.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(DIVA_NO_CLONES)
#define CPU_CLONES __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define CPU_CLONES
#endif

// For a lambda that such a loop calls: where GCC finds a function large enough it stops inlining, and vectorising.
#define ALWAYS_INLINE __attribute__((always_inline))

namespace diva {

constexpr int kVectorLanes = 16;  // floats in the widest register; sums are kept in as many lanes on every machine

// Sum of values [count] in a fixed order: 16 strided lanes, then pairwise.
template <typename T>
HOST_DEVICE T strided_sum(const T* values, int count) {
  T lanes[kVectorLanes] = {};
  int i = 0;
  for (; i + kVectorLanes <= count; i += kVectorLanes) {
    for (int lane = 0; lane < kVectorLanes; ++lane) lanes[lane] += values[i + lane];
  }
  for (int lane = 0; i + lane < count; ++lane) lanes[lane] += values[i + lane];
  for (int half = kVectorLanes / 2; half > 0; half /= 2) {
    for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  }
  return lanes[0];
}

}  // namespace diva
