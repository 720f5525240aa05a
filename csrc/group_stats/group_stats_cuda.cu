#include "common/launch.h"
#include "group_stats/group_stats.h"

namespace diva {

constexpr int kGroupStatsThreads = 256;

__global__ void group_stats_kernel(const float* values, int64_t num_values, const int64_t* offsets, int64_t num_groups,
                                   float* mean, float* std, float* min, float* max);

#if !defined(DIVA_RUN_TIME_KERNELS)
// values [N], offsets [G+1] -> mean, std, min, max, each [G]. One warp a group; its lanes stride over the values.
__global__ void __launch_bounds__(kGroupStatsThreads)
    group_stats_kernel(const float* __restrict__ values, int64_t num_values, const int64_t* __restrict__ offsets,
                       int64_t num_groups, float* __restrict__ mean, float* __restrict__ std, float* __restrict__ min,
                       float* __restrict__ max) {
  const int lane = threadIdx.x % kLanes;
  const int64_t g = static_cast<int64_t>(blockIdx.x) * (kGroupStatsThreads / kLanes) + threadIdx.x / kLanes;
  if (g >= num_groups) return;
  const Segment segment = segment_at(offsets, g, num_values);
  const GroupMoments<float> group = warp_group_moments(values + segment.begin, segment.count, lane);
  if (lane != 0) return;
  mean[g] = group.mean;
  std[g] = sample_std(group);
  min[g] = group.min;
  max[g] = group.max;
}

#endif  // DIVA_RUN_TIME_KERNELS

}  // namespace diva

#if !defined(__CUDACC_RTC__)
extern "C" int diva_group_stats_cuda(const float* values, int64_t num_values, const int64_t* offsets,
                                     int64_t num_groups, float* mean, float* std, float* min, float* max,
                                     void* stream) {
  if (num_groups == 0) return cudaSuccess;
  const int64_t groups_a_block = diva::kGroupStatsThreads / diva::kLanes;
  const dim3 grid(static_cast<unsigned>((num_groups + groups_a_block - 1) / groups_a_block));
  DIVA_LAUNCH(diva::group_stats_kernel, grid, dim3(diva::kGroupStatsThreads), 0, stream, values, num_values, offsets,
              num_groups, mean, std, min, max);
  return cudaGetLastError();
}
#endif
