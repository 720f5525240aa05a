#pragma once
// Durian's advantage: a reward less the mean of its own prompt, over the std of all rewards in the prompt's bin.
#include "group_stats/group_stats.h"

namespace diva {

// Moments of a whole bin, joined from those of its prompts. Float64, so that the order of joining leaves no trace in
// float.
struct BinMoments {
  double count;
  double mean;
  double squares;  // sum of squared deviations from the mean
  double min;
  double max;
};

template <typename T>
HOST_DEVICE BinMoments bin_moments(const GroupMoments<T>& prompt) {
  return {static_cast<double>(prompt.count), static_cast<double>(prompt.mean), static_cast<double>(prompt.squares),
          static_cast<double>(prompt.min), static_cast<double>(prompt.max)};
}

// Chan's rule.
HOST_DEVICE BinMoments join(const BinMoments& a, const BinMoments& b) {
  if (a.count == 0.0) return b;
  if (b.count == 0.0) return a;
  const double count = a.count + b.count, delta = b.mean - a.mean;
  return {count, a.mean + delta * b.count / count, a.squares + b.squares + delta * delta * a.count * b.count / count,
          smaller(a.min, b.min), larger(a.max, b.max)};
}

// 1 / (sample std + eps), or 0 where the bin has no spread.
HOST_DEVICE double inverse_std(const BinMoments& bin, double eps) {
  if (bin.min == bin.max) return 0.0;
  return 1.0 / (sqrt(bin.squares / (bin.count > 1.0 ? bin.count - 1.0 : 1.0)) + eps);
}

template <typename T>
struct SharedStdInput {
  const T* rewards;               // [N]
  const int64_t* prompt_offsets;  // [P+1] over rollouts
  const int64_t* bin_of_prompt;   // [P], each in [0, num_bins)
  int64_t num_rollouts;
  int64_t num_prompts;
  int64_t num_bins;
};

#if !defined(__CUDACC_RTC__)
// Each bin [count] between 0 and num_bins - 1, or an error with the value.
void check_bins(const int64_t* bins, int64_t count, int64_t num_bins);

template <typename T>
void shared_std_advantage_cpu(const SharedStdInput<T>& input, double eps, T* advantage);
#endif

}  // namespace diva

#if !defined(__CUDACC_RTC__)
// Bytes of scratch memory the launch below needs, aligned to 8.
extern "C" int64_t diva_shared_std_advantage_scratch_bytes(int64_t num_prompts, int64_t num_bins);
// Returns a cudaError_t. Rollouts of a prompt whose bin does not exist become NaN.
extern "C" int diva_shared_std_advantage_cuda(const diva::SharedStdInput<float>* input, double eps, float* advantage,
                                              void* scratch, void* stream);
#endif
