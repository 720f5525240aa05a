#pragma once
// One order of summation for a group, on every device: 32 lanes stride over the group, then a butterfly joins the
// lanes. A warp does exactly this, and so does the CPU loop, so both get the same bits.
#include "common/exact.h"

namespace diva {

constexpr int kLanes = 32;
constexpr unsigned kWholeWarp = 0xffffffffu;

// Unlike fminf and fmaxf these hand on a NaN, as torch does.
template <typename T>
HOST_DEVICE T smaller(T a, T b) {
  return (a != a || a < b) ? a : b;
}

template <typename T>
HOST_DEVICE T larger(T a, T b) {
  return (a != a || a > b) ? a : b;
}

struct Segment {
  int64_t begin;
  int64_t count;
};

// Segment g of CSR offsets. A kernel cannot refuse bad offsets without waiting for the host, so it clamps them instead:
// the result is void then, but no byte outside the values is read.
HOST_DEVICE Segment segment_at(const int64_t* offsets, int64_t g, int64_t num_values) {
  int64_t begin = offsets[g], end = offsets[g + 1];
  begin = begin < 0 ? 0 : (begin > num_values ? num_values : begin);
  end = end < begin ? begin : (end > num_values ? num_values : end);
  return {begin, end - begin};
}

// The butterfly on the CPU. Lanes from `used` on are zero and need not be stored: adding zero changes no lane, since a
// lane that began as 0 + x is never -0.
template <typename T>
HOST_DEVICE T sum_lanes(T* lanes, int used) {
  int half = kLanes / 2;
  while (half >= used && half > 0) half /= 2;
  for (; half > 0; half /= 2) {
    for (int lane = 0; lane + half < used; ++lane) {
      lanes[lane] = add_rn(lanes[lane], lanes[lane + half]);
    }
    used = half;
  }
  return lanes[0];
}

#if defined(__CUDACC__) || defined(DIVA_EMULATE_CUDA)
__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (int half = kLanes / 2; half > 0; half /= 2) {
    value = add_rn(value, __shfl_xor_sync(kWholeWarp, value, half));
  }
  return value;
}

__device__ __forceinline__ float warp_min(float value) {
#pragma unroll
  for (int half = kLanes / 2; half > 0; half /= 2) {
    value = smaller(value, __shfl_xor_sync(kWholeWarp, value, half));
  }
  return value;
}

__device__ __forceinline__ float warp_max(float value) {
#pragma unroll
  for (int half = kLanes / 2; half > 0; half /= 2) {
    value = larger(value, __shfl_xor_sync(kWholeWarp, value, half));
  }
  return value;
}
#endif

}  // namespace diva
