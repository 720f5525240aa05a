#pragma once
// Mean, spread and range of the values of one group. Shared by every op that looks at groups of rewards.
#include "common/segment.h"

namespace diva {

template <typename T>
HOST_DEVICE T square_rn(T x) {
  return mul_rn(x, x);
}

template <typename T>
struct GroupMoments {
  T mean;
  T squares;  // sum of squared deviations from the mean
  T min;
  T max;
  int64_t count;
};

// Where all values are equal the mean is that value and the spread is 0, exactly: a rounded mean would turn "no signal"
// into a small advantage of either sign. Adding zero makes -0 into +0, so that the order of comparison leaves no trace.
template <typename T>
HOST_DEVICE GroupMoments<T> equal_moments(T value, int64_t count) {
  return {add_rn(value, T(0)), T(0), add_rn(value, T(0)), add_rn(value, T(0)), count};
}

// Sample std. A group of one, or of equal values, has none: 0.
template <typename T>
HOST_DEVICE T sample_std(const GroupMoments<T>& group) {
  if (group.min == group.max) return T(0);
  const T freedom = group.count > 1 ? static_cast<T>(group.count - 1) : T(1);
  return sqrt_rn(div_rn(group.squares, freedom));
}

#if !defined(__CUDACC_RTC__)
// values [count] -> moments; an empty group is all zeros.
template <typename T>
inline GroupMoments<T> group_moments(const T* values, int64_t count) {
  if (count == 0) return equal_moments(T(0), 0);
  T low = values[0], high = values[0];
  for (int64_t i = 1; i < count; ++i) {
    low = smaller(low, values[i]);
    high = larger(high, values[i]);
  }
  if (low == high) return equal_moments(low, count);

  const int used = count < kLanes ? static_cast<int>(count) : kLanes;
  T lanes[kLanes];
  for (int lane = 0; lane < used; ++lane) lanes[lane] = add_rn(T(0), values[lane]);
  for (int64_t i = kLanes; i < count; ++i) {
    T& lane = lanes[i % kLanes];
    lane = add_rn(lane, values[i]);
  }
  const T mean = div_rn(sum_lanes(lanes, used), static_cast<T>(count));

  for (int lane = 0; lane < used; ++lane) lanes[lane] = square_rn(sub_rn(values[lane], mean));
  for (int64_t i = kLanes; i < count; ++i) {
    T& lane = lanes[i % kLanes];
    lane = add_rn(lane, square_rn(sub_rn(values[i], mean)));
  }
  return {mean, sum_lanes(lanes, used), add_rn(low, T(0)), add_rn(high, T(0)), count};
}
#endif

#if defined(__CUDACC__) || defined(DIVA_EMULATE_CUDA)
// The same by one warp, all of whose lanes call it and get the result.
__device__ __forceinline__ GroupMoments<float> warp_group_moments(const float* values, int64_t count, int lane) {
  if (count == 0) return equal_moments(0.0f, 0);
  float sum = 0.0f, low = values[0], high = low;
  for (int64_t i = lane; i < count; i += kLanes) {
    sum = add_rn(sum, values[i]);
    low = smaller(low, values[i]);
    high = larger(high, values[i]);
  }
  low = warp_min(low);
  high = warp_max(high);
  if (low == high) return equal_moments(low, count);

  const float mean = div_rn(warp_sum(sum), static_cast<float>(count));
  float squares = 0.0f;
  for (int64_t i = lane; i < count; i += kLanes) {
    squares = add_rn(squares, square_rn(sub_rn(values[i], mean)));
  }
  return {mean, warp_sum(squares), add_rn(low, 0.0f), add_rn(high, 0.0f), count};
}
#endif

#if !defined(__CUDACC_RTC__)
template <typename T>
struct GroupStatsOutput {  // each [G]
  T* mean;
  T* std;
  T* min;
  T* max;
};

// Groups first..last-1. Offsets must be valid: 0 at the start, never falling, at most the number of values.
template <typename T>
void group_stats_cpu(const T* values, const int64_t* offsets, int64_t first, int64_t last, GroupStatsOutput<T> output);
#endif

}  // namespace diva

#if !defined(__CUDACC_RTC__)
// Returns a cudaError_t. Offsets out of order or out of range read nothing outside `values`, but the result is void.
extern "C" int diva_group_stats_cuda(const float* values, int64_t num_values, const int64_t* offsets,
                                     int64_t num_groups, float* mean, float* std, float* min, float* max, void* stream);
#endif
