#include "common/launch.h"
#include "common/segment.h"
#include "policy_loss/policy_loss.h"

namespace diva {

constexpr int kPolicyLossThreads = 256;
constexpr int kPolicyLossWarps = kPolicyLossThreads / kLanes;
constexpr int kTokensABlock = 4 * kPolicyLossThreads;
constexpr int kLossSum = kNumTotals;  // the loss is summed like the metrics, behind them
constexpr int kNumSums = kNumTotals + 1;
constexpr int kRowsAtOnce = 16;
constexpr int kFinishColumns = 16;
static_assert(kNumSums <= kFinishColumns && kRowsAtOnce * kFinishColumns == kPolicyLossThreads, "one thread a cell");

__global__ void mean_log_ratio_kernel(PolicyLossInput<float> input, float* mean);
__global__ void policy_loss_kernel(PolicyLossInput<float> input, PolicyLossSettings<float> settings,
                                   const float* mean_log_ratio, float* gradient, double* partial);
__global__ void policy_loss_finish_kernel(const double* partial, int64_t num_blocks, float* loss, double* totals);

#if !defined(DIVA_RUN_TIME_KERNELS)
template <typename T>
HOST_DEVICE T joined(int sum, T a, T b) {
  return sum == kTotalRatioMax ? larger(a, b) : a + b;
}

// Sequence of a token: the last that begins at or before it. Empty sequences begin where the next one does, so the last
// of equal offsets is the one with tokens.
HOST_DEVICE int64_t sequence_of(const int64_t* offsets, int64_t num_sequences, int64_t token) {
  int64_t low = 0, high = num_sequences;
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    (offsets[middle] <= token ? low : high) = middle;
  }
  return low;
}

// logprob, old_logprob [T], offsets [S+1] -> mean [S] of their difference. One warp a sequence, lanes stride over it.
__global__ void __launch_bounds__(kPolicyLossThreads)
    mean_log_ratio_kernel(PolicyLossInput<float> input, float* __restrict__ mean) {
  const int lane = threadIdx.x % kLanes;
  const int64_t s = static_cast<int64_t>(blockIdx.x) * kPolicyLossWarps + threadIdx.x / kLanes;
  if (s >= input.num_sequences) return;
  const Segment segment = segment_at(input.offsets, s, input.num_tokens);
  float sum = 0.0f;
  for (int64_t i = lane; i < segment.count; i += kLanes) {
    sum += input.logprob[segment.begin + i] - input.old_logprob[segment.begin + i];
  }
  sum = warp_sum(sum);
  if (lane == 0) mean[s] = segment.count > 0 ? sum / static_cast<float>(segment.count) : 0.0f;
}

// One token: its gradient, and its part of every sum.
HOST_DEVICE float add_token(const PolicyLossInput<float>& input, const PolicyLossSettings<float>& s,
                            const float* mean_log_ratio, int64_t token, float* sums) {
  const float logprob = input.logprob[token], old_logprob = input.old_logprob[token];
  const float advantage = input.advantage[token];
  float log_ratio = logprob - old_logprob, scale = s.scale;
  const float move = limited(log_ratio);
  if (s.sequence_ratio || s.sequence_mean) {
    const int64_t sequence = sequence_of(input.offsets, input.num_sequences, token);
    if (s.sequence_ratio) log_ratio = mean_log_ratio[sequence];
    const float length = static_cast<float>(input.offsets[sequence + 1] - input.offsets[sequence]);
    if (s.sequence_mean) scale = s.scale / length;
  }
  const Ratio<float> ratio = importance_ratio(log_ratio);
  Clip clip{0, 0, 0};
  Cost<float> cost;
  if (s.loss == LossKind::kPpo) {
    clip = ppo_clip(ratio.value, advantage, s);
    cost = ppo_cost(ratio, advantage, s);
  } else if (s.loss == LossKind::kCispo) {
    clip = cispo_clip(ratio.value, advantage, s);
    cost = cispo_cost(ratio, advantage, logprob, s);
  } else {
    cost = sapo_cost(ratio, advantage, s);
  }
  float importance = 1.0f, gap = 0.0f;
  if (input.sampler_logprob) {
    const float difference = sampler_gap(old_logprob, input.sampler_logprob[token]);
    importance = exponential(limited(difference));
    gap = difference < 0 ? -difference : difference;
  }
  const bool truncated = input.sampler_logprob && importance > s.truncation;
  const float weight = truncated ? s.truncation : importance;
  Cost<float> kl{0.0f, 0.0f};
  if (input.ref_logprob) kl = kl_cost(logprob, input.ref_logprob[token], s.kl);

  sums[kTotalTokens] += 1.0f;
  sums[kTotalRatio] += ratio.value;
  sums[kTotalRatioMax] = larger(sums[kTotalRatioMax], ratio.value);
  sums[kTotalClipLow] += clip.low;
  sums[kTotalClipHigh] += clip.high;
  sums[kTotalClipDual] += clip.dual;
  sums[kTotalKlOld] += move * move * 0.5f;
  sums[kTotalKlRef] += kl.value;
  sums[kTotalWeight] += weight;
  sums[kTotalTruncated] += truncated;
  sums[kTotalGap] += gap;
  sums[kTotalImportance] += importance;
  sums[kTotalImportanceSquared] += importance * importance;
  sums[kLossSum] += (cost.value * weight + s.kl_coef * kl.value) * scale;
  return (cost.slope * weight + s.kl_coef * kl.slope) * scale;
}

// inputs [T] -> gradient [T], partial [number of blocks, kNumSums]. A block takes kTokensABlock tokens, whatever
// sequences they belong to; sums are in float inside a block, in a fixed order, and in double from there on.
__global__ void __launch_bounds__(kPolicyLossThreads)
    policy_loss_kernel(PolicyLossInput<float> input, PolicyLossSettings<float> settings,
                       const float* __restrict__ mean_log_ratio, float* __restrict__ gradient,
                       double* __restrict__ partial) {
  __shared__ float warp_sums[kPolicyLossWarps][kNumSums];
  const int lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes;
  float sums[kNumSums];
#pragma unroll
  for (int sum = 0; sum < kNumSums; ++sum) sums[sum] = 0.0f;
  const int64_t start = static_cast<int64_t>(blockIdx.x) * kTokensABlock;
#pragma unroll
  for (int step = 0; step < kTokensABlock / kPolicyLossThreads; ++step) {
    const int64_t token = start + step * kPolicyLossThreads + threadIdx.x;
    if (token < input.num_tokens) gradient[token] = add_token(input, settings, mean_log_ratio, token, sums);
  }
#pragma unroll
  for (int sum = 0; sum < kNumSums; ++sum) {
    const float joint = sum == kTotalRatioMax ? warp_max(sums[sum]) : warp_sum(sums[sum]);
    if (lane == 0) warp_sums[warp][sum] = joint;
  }
  __syncthreads();
  const int sum = threadIdx.x;
  if (sum >= kNumSums) return;
  double joint = 0.0;
  for (int w = 0; w < kPolicyLossWarps; ++w) joint = joined(sum, joint, static_cast<double>(warp_sums[w][sum]));
  partial[static_cast<int64_t>(blockIdx.x) * kNumSums + sum] = joint;
}

// partial [num_blocks, kNumSums] -> loss [1], totals [kNumTotals]. One block; a thread has one sum and every 16th row.
__global__ void __launch_bounds__(kPolicyLossThreads)
    policy_loss_finish_kernel(const double* __restrict__ partial, int64_t num_blocks, float* __restrict__ loss,
                              double* __restrict__ totals) {
  __shared__ double rows[kRowsAtOnce][kFinishColumns];
  const int sum = threadIdx.x % kFinishColumns, first = threadIdx.x / kFinishColumns;
  double joint = 0.0;
  for (int64_t row = first; sum < kNumSums && row < num_blocks; row += kRowsAtOnce) {
    joint = joined(sum, joint, partial[row * kNumSums + sum]);
  }
  rows[first][sum] = joint;
  __syncthreads();
  if (first != 0 || sum >= kNumSums) return;
  for (int row = 1; row < kRowsAtOnce; ++row) joint = joined(sum, joint, rows[row][sum]);
  if (sum == kLossSum) *loss = static_cast<float>(joint);
  if (sum < kNumTotals) totals[sum] = joint;
}

#endif  // DIVA_RUN_TIME_KERNELS

}  // namespace diva

#if !defined(__CUDACC_RTC__)
static int64_t policy_loss_blocks(int64_t num_tokens) {
  return (num_tokens + diva::kTokensABlock - 1) / diva::kTokensABlock;
}

extern "C" int64_t diva_policy_loss_workspace(int64_t num_tokens) {
  return policy_loss_blocks(num_tokens) * diva::kNumSums;
}

extern "C" int diva_policy_loss_cuda(const diva::PolicyLossInput<float>* input,
                                     const diva::PolicyLossSettings<float>* settings, float* mean_log_ratio,
                                     double* workspace, float* loss, float* gradient, double* totals, void* stream) {
  const dim3 threads(diva::kPolicyLossThreads);
  if (settings->sequence_ratio && input->num_sequences > 0) {
    const int64_t blocks = (input->num_sequences + diva::kPolicyLossWarps - 1) / diva::kPolicyLossWarps;
    DIVA_LAUNCH(diva::mean_log_ratio_kernel, dim3(static_cast<unsigned>(blocks)), threads, 0, stream, *input,
                mean_log_ratio);
  }
  const int64_t blocks = policy_loss_blocks(input->num_tokens);
  if (blocks > 0) {
    DIVA_LAUNCH(diva::policy_loss_kernel, dim3(static_cast<unsigned>(blocks)), threads, 0, stream, *input, *settings,
                mean_log_ratio, gradient, workspace);
  }
  DIVA_LAUNCH(diva::policy_loss_finish_kernel, dim3(1), threads, 0, stream, workspace, blocks, loss, totals);
  return cudaGetLastError();
}
#endif
