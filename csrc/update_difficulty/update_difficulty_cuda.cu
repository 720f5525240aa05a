#include "common/launch.h"
#include "update_difficulty/update_difficulty.h"

namespace diva {

constexpr int kDifficultyThreads = 256;

__global__ void update_difficulty_kernel(DifficultyTable<float> table, const int64_t* index, const float* accuracy,
                                         int64_t count, DifficultySettings<float> settings, float* updated);

#if !defined(DIVA_RUN_TIME_KERNELS)
// table [M], index, accuracy [Q] -> table in place, updated [Q]. One thread an entry. Each looks through all indices
// for its own: Q is the questions of one step, and so no two threads ever write to one place.
__global__ void __launch_bounds__(kDifficultyThreads)
    update_difficulty_kernel(DifficultyTable<float> table, const int64_t* __restrict__ index,
                             const float* __restrict__ accuracy, int64_t count, DifficultySettings<float> settings,
                             float* __restrict__ updated) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kDifficultyThreads + threadIdx.x;
  if (i >= count) return;
  const int64_t own = index[i];
  int64_t times = 0;
  for (int64_t other = 0; other < count; ++other) times += index[other] == own;

  const bool is_good = times == 1 && own >= 0 && own < table.size && accuracy[i] >= 0.0f && accuracy[i] <= 1.0f;
  float level = nanf("");
  if (is_good) {
    float* place = table.levels + own * table.stride;
    level = updated_difficulty(*place, accuracy[i], settings);
    *place = level;
  }
  updated[i] = level;
}

#endif  // DIVA_RUN_TIME_KERNELS

}  // namespace diva

#if !defined(__CUDACC_RTC__)
extern "C" int diva_update_difficulty_cuda(const diva::DifficultyTable<float>* table, const int64_t* index,
                                           const float* accuracy, int64_t count,
                                           const diva::DifficultySettings<float>* settings, float* updated,
                                           void* stream) {
  if (count == 0) return cudaSuccess;
  const dim3 grid(static_cast<unsigned>((count + diva::kDifficultyThreads - 1) / diva::kDifficultyThreads));
  DIVA_LAUNCH(diva::update_difficulty_kernel, grid, dim3(diva::kDifficultyThreads), 0, stream, *table, index, accuracy,
              count, *settings, updated);
  return cudaGetLastError();
}
#endif
