#include "policy_loss/policy_loss.h"

#include <algorithm>

#include "common/segment.h"
#include "common/vectorize.h"

namespace diva {

namespace {

// Tokens are worked on in blocks that stay in the first cache, one simple loop a quantity: such loops become vector
// code whatever the settings are, where one loop with every case inside would not.
constexpr int kBlock = 256;

template <typename T>
struct Block {
  int count;  // tokens in use, at most kBlock
  const T* logprob;
  const T* advantage;
  T log_ratio[kBlock];
  T scale[kBlock];  // what the token's cost is multiplied with at the end
  T ratio[kBlock];
  T ratio_slope[kBlock];
  T value[kBlock];
  T slope[kBlock];
  T scratch[kBlock];
  T other[kBlock];
  T third[kBlock];
};

template <typename T>
HOST_DEVICE T strided_max(const T* values, int count) {
  T lanes[kVectorLanes] = {};  // ratios are never below 0
  int i = 0;
  for (; i + kVectorLanes <= count; i += kVectorLanes) {
    for (int lane = 0; lane < kVectorLanes; ++lane) lanes[lane] = larger(lanes[lane], values[i + lane]);
  }
  for (int lane = 0; i + lane < count; ++lane) lanes[lane] = larger(lanes[lane], values[i + lane]);
  T result = lanes[0];
  for (int lane = 1; lane < kVectorLanes; ++lane) result = larger(result, lanes[lane]);
  return result;
}

template <typename T>
HOST_DEVICE void add_ratios(Block<T>& block, double* totals) {
  for (int i = 0; i < block.count; ++i) {
    const Ratio<T> ratio = importance_ratio(block.log_ratio[i]);
    block.ratio[i] = ratio.value;
    block.ratio_slope[i] = ratio.slope;
  }
  totals[kTotalTokens] += block.count;
  totals[kTotalRatio] += strided_sum(block.ratio, block.count);
  totals[kTotalRatioMax] = larger(totals[kTotalRatioMax], static_cast<double>(strided_max(block.ratio, block.count)));
}

// Fills value and slope by cost(i), and counts what clip(i) says.
template <typename T, typename CostOf, typename ClipOf>
HOST_DEVICE void add_costs(Block<T>& block, double* totals, CostOf cost_of, ClipOf clip_of) {
  int low = 0, high = 0, dual = 0;
  for (int i = 0; i < block.count; ++i) {
    const Cost<T> cost = cost_of(i);
    block.value[i] = cost.value;
    block.slope[i] = cost.slope;
  }
  for (int i = 0; i < block.count; ++i) {
    const Clip clip = clip_of(i);
    low += clip.low;
    high += clip.high;
    dual += clip.dual;
  }
  totals[kTotalClipLow] += low;
  totals[kTotalClipHigh] += high;
  totals[kTotalClipDual] += dual;
}

template <typename T>
HOST_DEVICE Ratio<T> ratio_at(const Block<T>& block, int i) {
  return {block.ratio[i], block.ratio_slope[i]};
}

template <typename T>
HOST_DEVICE void add_surrogate(Block<T>& block, const PolicyLossSettings<T>& s, double* totals) {
  const T* advantage = block.advantage;
  switch (s.loss) {
    case LossKind::kPpo:
      return add_costs(
          block, totals, [&](int i) { return ppo_cost(ratio_at(block, i), advantage[i], s); },
          [&](int i) { return ppo_clip(block.ratio[i], advantage[i], s); });
    case LossKind::kCispo:
      return add_costs(
          block, totals, [&](int i) { return cispo_cost(ratio_at(block, i), advantage[i], block.logprob[i], s); },
          [&](int i) { return cispo_clip(block.ratio[i], advantage[i], s); });
    case LossKind::kSapo:
      return add_costs(
          block, totals, [&](int i) { return sapo_cost(ratio_at(block, i), advantage[i], s); },
          [](int) { return Clip{0, 0, 0}; });
  }
}

// The truncated importance weight of the sampler, a constant for the gradient.
template <typename T>
HOST_DEVICE void weigh(Block<T>& block, const T* old_logprob, const T* sampler_logprob, T truncation, double* totals) {
  T *gap = block.scratch, *importance = block.other, *weight = block.third;
  int truncated = 0;
  for (int i = 0; i < block.count; ++i) {
    const T difference = sampler_gap(old_logprob[i], sampler_logprob[i]);
    importance[i] = exponential(limited(difference));
    weight[i] = importance[i] > truncation ? truncation : importance[i];
    gap[i] = difference < 0 ? -difference : difference;
    block.value[i] *= weight[i];
    block.slope[i] *= weight[i];
  }
  for (int i = 0; i < block.count; ++i) truncated += importance[i] > truncation;
  totals[kTotalGap] += strided_sum(gap, block.count);
  totals[kTotalWeight] += strided_sum(weight, block.count);
  totals[kTotalImportance] += strided_sum(importance, block.count);
  totals[kTotalTruncated] += truncated;
  for (int i = 0; i < block.count; ++i) importance[i] *= importance[i];
  totals[kTotalImportanceSquared] += strided_sum(importance, block.count);
}

template <typename T>
HOST_DEVICE void add_kl(Block<T>& block, const T* ref_logprob, const PolicyLossSettings<T>& s, double* totals) {
  for (int i = 0; i < block.count; ++i) {
    const Cost<T> kl = kl_cost(block.logprob[i], ref_logprob[i], s.kl);
    block.scratch[i] = kl.value;
    block.value[i] += s.kl_coef * kl.value;
    block.slope[i] += s.kl_coef * kl.slope;
  }
  totals[kTotalKlRef] += strided_sum(block.scratch, block.count);
}

// Token log-ratios, and how far the policy has moved by them.
template <typename T>
HOST_DEVICE void add_log_ratios(Block<T>& block, const T* old_logprob, double* totals) {
  for (int i = 0; i < block.count; ++i) {
    block.log_ratio[i] = block.logprob[i] - old_logprob[i];
    const T move = limited(block.log_ratio[i]);
    block.scratch[i] = move * move * T(0.5);
  }
  totals[kTotalKlOld] += strided_sum(block.scratch, block.count);
}

// Replaces what depends on the sequence: its mean log-ratio, its length. `sequence` is that of the first token, and is
// moved on to that of the last.
template <typename T>
HOST_DEVICE void look_up_sequences(Block<T>& block, const PolicyLossInput<T>& input, const PolicyLossSettings<T>& s,
                                   const T* mean_log_ratio, int64_t first, int64_t& sequence) {
  for (int i = 0; i < block.count;) {
    while (input.offsets[sequence + 1] <= first + i) ++sequence;
    const int64_t left = input.offsets[sequence + 1] - first;
    const int end = left < block.count ? static_cast<int>(left) : block.count;
    const T length = static_cast<T>(input.offsets[sequence + 1] - input.offsets[sequence]);
    const T scale = s.sequence_mean ? T(1) / length : T(1);
    if (s.sequence_ratio) std::fill(block.log_ratio + i, block.log_ratio + end, mean_log_ratio[sequence]);
    std::fill(block.scale + i, block.scale + end, scale);
    i = end;
  }
}

template <typename T>
HOST_DEVICE double policy_loss_tokens(const PolicyLossInput<T>& input, const PolicyLossSettings<T> s,
                                      const T* mean_log_ratio, int64_t first, int64_t last, T* gradient,
                                      double* totals) {
  const bool by_sequence = s.sequence_ratio || s.sequence_mean;
  const int64_t* end = input.offsets + input.num_sequences + 1;
  int64_t sequence = by_sequence ? std::upper_bound(input.offsets, end, first) - input.offsets - 1 : 0;
  double loss = 0;
  Block<T> block;
  std::fill(block.scale, block.scale + kBlock, T(1));
  for (int64_t start = first; start < last; start += kBlock) {
    block.count = static_cast<int>(std::min<int64_t>(kBlock, last - start));
    block.logprob = input.logprob + start;
    block.advantage = input.advantage + start;
    add_log_ratios(block, input.old_logprob + start, totals);
    if (by_sequence) look_up_sequences(block, input, s, mean_log_ratio, start, sequence);
    add_ratios(block, totals);
    add_surrogate(block, s, totals);
    if (input.sampler_logprob) {
      weigh(block, input.old_logprob + start, input.sampler_logprob + start, s.truncation, totals);
    }
    if (input.ref_logprob) add_kl(block, input.ref_logprob + start, s, totals);
    for (int i = 0; i < block.count; ++i) block.value[i] *= block.scale[i];
    for (int i = 0; i < block.count; ++i) gradient[start + i] = block.slope[i] * block.scale[i];
    loss += strided_sum(block.value, block.count);
  }
  if (!input.sampler_logprob) {  // every weight is 1
    for (Total total : {kTotalWeight, kTotalImportance, kTotalImportanceSquared}) totals[total] = last - first;
  }
  return loss;
}

}  // namespace

template <typename T>
void mean_log_ratio_cpu(const PolicyLossInput<T>& input, int64_t first, int64_t last, T* mean) {
  for (int64_t s = first; s < last; ++s) {
    T sum = 0;
    for (int64_t i = input.offsets[s]; i < input.offsets[s + 1]; ++i) sum += input.logprob[i] - input.old_logprob[i];
    const int64_t length = input.offsets[s + 1] - input.offsets[s];
    mean[s] = length > 0 ? sum / static_cast<T>(length) : T(0);
  }
}

template void mean_log_ratio_cpu(const PolicyLossInput<float>&, int64_t, int64_t, float*);
template void mean_log_ratio_cpu(const PolicyLossInput<double>&, int64_t, int64_t, double*);

// GCC clones functions, not templates.
template <>
CPU_CLONES double policy_loss_cpu(const PolicyLossInput<float>& input, const PolicyLossSettings<float>& settings,
                                  const float* mean_log_ratio, int64_t first, int64_t last, float* gradient,
                                  double* totals) {
  return policy_loss_tokens(input, settings, mean_log_ratio, first, last, gradient, totals);
}

template <>
double policy_loss_cpu(const PolicyLossInput<double>& input, const PolicyLossSettings<double>& settings,
                       const double* mean_log_ratio, int64_t first, int64_t last, double* gradient, double* totals) {
  return policy_loss_tokens(input, settings, mean_log_ratio, first, last, gradient, totals);
}

}  // namespace diva
