#include "common/cooperative.h"
#include "shared_std_advantage/shared_std_advantage.h"

namespace diva {

constexpr int kSharedStdThreads = 256;
constexpr int kSharedStdWarps = kSharedStdThreads / kLanes;

__global__ void shared_std_advantage_kernel(SharedStdInput<float> input, double eps, float* advantage,
                                            BinMoments* prompts, float* inverse);

#if !defined(DIVA_RUN_TIME_KERNELS)
__device__ __forceinline__ BinMoments shuffled(const BinMoments& bin, int half) {
  return {__shfl_xor_sync(kWholeWarp, bin.count, half), __shfl_xor_sync(kWholeWarp, bin.mean, half),
          __shfl_xor_sync(kWholeWarp, bin.squares, half), __shfl_xor_sync(kWholeWarp, bin.min, half),
          __shfl_xor_sync(kWholeWarp, bin.max, half)};
}

// rewards [N], bins of the prompts [P] -> advantage [N]. One warp a prompt for its moments, the grid waits, one warp a
// bin over all prompts for its std, the grid waits, one warp a prompt again for its rollouts.
__global__ void __launch_bounds__(kSharedStdThreads, 2)
    shared_std_advantage_kernel(SharedStdInput<float> input, double eps, float* __restrict__ advantage,
                                BinMoments* __restrict__ prompts, float* __restrict__ inverse) {
  const int lane = threadIdx.x % kLanes;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kSharedStdWarps + threadIdx.x / kLanes;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kSharedStdWarps;

  for (int64_t p = first; p < input.num_prompts; p += stride) {
    const Segment segment = segment_at(input.prompt_offsets, p, input.num_rollouts);
    const auto moments = warp_group_moments(input.rewards + segment.begin, segment.count, lane);
    if (lane == 0) prompts[p] = bin_moments(moments);
  }
  DIVA_GRID_SYNC();

  for (int64_t b = first; b < input.num_bins; b += stride) {
    BinMoments bin{};
    for (int64_t p = lane; p < input.num_prompts; p += kLanes) {
      if (input.bin_of_prompt[p] == b) bin = join(bin, prompts[p]);
    }
    for (int half = kLanes / 2; half > 0; half /= 2) bin = join(bin, shuffled(bin, half));
    if (lane == 0) inverse[b] = static_cast<float>(inverse_std(bin, eps));
  }
  DIVA_GRID_SYNC();

  for (int64_t p = first; p < input.num_prompts; p += stride) {
    const Segment segment = segment_at(input.prompt_offsets, p, input.num_rollouts);
    const int64_t b = input.bin_of_prompt[p];
    const float scale = b >= 0 && b < input.num_bins ? inverse[b] : nanf("");
    const float mean = static_cast<float>(prompts[p].mean);
    for (int64_t i = segment.begin + lane; i < segment.begin + segment.count; i += kLanes) {
      advantage[i] = (input.rewards[i] - mean) * scale;
    }
  }
}

#endif  // DIVA_RUN_TIME_KERNELS

}  // namespace diva

#if !defined(__CUDACC_RTC__)
extern "C" int64_t diva_shared_std_advantage_scratch_bytes(int64_t num_prompts, int64_t num_bins) {
  return num_prompts * sizeof(diva::BinMoments) + (num_bins + 1) / 2 * 2 * sizeof(float);
}

extern "C" int diva_shared_std_advantage_cuda(const diva::SharedStdInput<float>* input, double eps, float* advantage,
                                              void* scratch, void* stream) {
  if (input->num_prompts == 0) return cudaSuccess;
  const int64_t warps = input->num_prompts > input->num_bins ? input->num_prompts : input->num_bins;
  int64_t blocks = (warps + diva::kSharedStdWarps - 1) / diva::kSharedStdWarps;
  const int error = DIVA_LIMIT_COOPERATIVE(diva::shared_std_advantage_kernel, diva::kSharedStdThreads, &blocks);
  if (error != cudaSuccess) return error;

  auto* prompts = static_cast<diva::BinMoments*>(scratch);
  auto* inverse = reinterpret_cast<float*>(prompts + input->num_prompts);
  return DIVA_LAUNCH_COOPERATIVE(diva::shared_std_advantage_kernel, dim3(static_cast<unsigned>(blocks)),
                                 dim3(diva::kSharedStdThreads), 0, stream, *input, eps, advantage, prompts, inverse);
}
#endif
