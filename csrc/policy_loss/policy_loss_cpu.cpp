#include "policy_loss/policy_loss.h"

#include <algorithm>

#include "common/lanes.h"
#include "common/segment.h"

namespace diva {

namespace {

// Tokens are worked on in blocks that stay in the first cache. A loop goes over them a vector's worth at a time, with
// everything in registers, sums included; what only some losses need has a loop of its own, which keeps out choices.
constexpr int kBlock = 256;
constexpr int kLossSum = kNumTotals;  // the loss is summed like the metrics, behind them

// Over a chunk of tokens: one sum a lane until the end, floats inside a block and doubles from there on.
using LaneSums = double[kNumTotals + 1][kVectorLanes];

template <typename T>
struct Block {
  int64_t start;
  int count;                       // tokens in use, at most kBlock
  T ratio[kBlock], moves[kBlock];  // of the token's sequence, for sequence ratios
  T scale[kBlock];                 // what the token's cost is multiplied with at the end, for sequence means
  T value[kBlock], slope[kBlock], divergence[kBlock];
};

// Fills value and slope by cost(i, ratio), counts what clip(i, ratio) says, and sums what is known of every token.
template <bool kBySequence, typename T, typename CostOf, typename ClipOf>
HOST_DEVICE void add_costs(Block<T>& block, const T* logprob, const T* old_logprob, LaneSums& sums, CostOf cost_of,
                           ClipOf clip_of) {
  Lanes<T> moved = {}, ratios = {}, highest = {};  // ratios are never below 0
  Lanes<int> low = {}, high = {}, dual = {};
  over_lanes(block.count, [&](int64_t i, int lane) ALWAYS_INLINE {
    const T log_ratio = logprob[i] - old_logprob[i];
    Ratio<T> ratio;
    if (kBySequence)
      ratio = {block.ratio[i], block.moves[i] != 0};
    else
      ratio = importance_ratio(log_ratio);
    const Cost<T> cost = cost_of(i, ratio);
    const Clip clip = clip_of(i, ratio.value);
    block.value[i] = cost.value;
    block.slope[i] = cost.slope;
    moved[lane] += limited(log_ratio) * limited(log_ratio);
    ratios[lane] += ratio.value;
    highest[lane] = ratio.value > highest[lane] ? ratio.value : highest[lane];
    low[lane] += clip.low;
    high[lane] += clip.high;
    dual[lane] += clip.dual;
  });
  add_lanes(sums[kTotalKlOld], moved);
  add_lanes(sums[kTotalRatio], ratios);
  add_lanes(sums[kTotalClipLow], low);
  add_lanes(sums[kTotalClipHigh], high);
  add_lanes(sums[kTotalClipDual], dual);
  double* maxima = sums[kTotalRatioMax];
  for (int lane = 0; lane < kVectorLanes; ++lane) maxima[lane] = std::max(maxima[lane], double(highest[lane]));
}

template <bool kBySequence, typename T>
HOST_DEVICE void add_surrogate(Block<T>& block, const PolicyLossInput<T>& input, const PolicyLossSettings<T>& s,
                               LaneSums& sums) {
  const T *logprob = input.logprob + block.start, *old_logprob = input.old_logprob + block.start;
  const T* advantage = input.advantage + block.start;
  switch (s.loss) {
    case LossKind::kPpo:
      return add_costs<kBySequence>(
          block, logprob, old_logprob, sums,
          [&](int64_t i, Ratio<T> ratio) ALWAYS_INLINE { return ppo_cost(ratio, advantage[i], s); },
          [&](int64_t i, T ratio) ALWAYS_INLINE { return ppo_clip(ratio, advantage[i], s); });
    case LossKind::kCispo:
      return add_costs<kBySequence>(
          block, logprob, old_logprob, sums,
          [&](int64_t i, Ratio<T> ratio) ALWAYS_INLINE { return cispo_cost(ratio, advantage[i], logprob[i], s); },
          [&](int64_t i, T ratio) ALWAYS_INLINE { return cispo_clip(ratio, advantage[i], s); });
    case LossKind::kSapo:
      return add_costs<kBySequence>(
          block, logprob, old_logprob, sums,
          [&](int64_t i, Ratio<T> ratio) ALWAYS_INLINE { return sapo_cost(ratio, advantage[i], s); },
          [](int64_t, T) ALWAYS_INLINE { return Clip{0, 0, 0}; });
  }
}

// The truncated importance weight of the sampler, a constant for the gradient.
template <typename T>
HOST_DEVICE void weigh(Block<T>& block, const PolicyLossInput<T>& input, T truncation, LaneSums& sums) {
  const T *old_logprob = input.old_logprob + block.start, *sampler_logprob = input.sampler_logprob + block.start;
  Lanes<T> gaps = {}, weights = {}, importances = {}, squares = {};
  Lanes<int> truncated = {};
  over_lanes(block.count, [&](int64_t i, int lane) ALWAYS_INLINE {
    const T gap = sampler_gap(old_logprob[i], sampler_logprob[i]);
    const T importance = bounded_exponential(limited(gap));
    const T weight = importance > truncation ? truncation : importance;
    block.value[i] *= weight;
    block.slope[i] *= weight;
    gaps[lane] += gap < 0 ? -gap : gap;
    weights[lane] += weight;
    importances[lane] += importance;
    squares[lane] += importance * importance;
    truncated[lane] += importance > truncation;
  });
  add_lanes(sums[kTotalGap], gaps);
  add_lanes(sums[kTotalWeight], weights);
  add_lanes(sums[kTotalImportance], importances);
  add_lanes(sums[kTotalImportanceSquared], squares);
  add_lanes(sums[kTotalTruncated], truncated);
}

template <KlKind kKind, typename T>
HOST_DEVICE void add_kl(Block<T>& block, const PolicyLossInput<T>& input, T kl_coef, LaneSums& sums) {
  const T *logprob = input.logprob + block.start, *ref_logprob = input.ref_logprob + block.start;
  for (int i = 0; i < block.count; ++i) {
    const Cost<T> kl = kl_cost(logprob[i], ref_logprob[i], kKind);
    block.divergence[i] = kl.value;
    block.value[i] += kl_coef * kl.value;
    block.slope[i] += kl_coef * kl.slope;
  }
  Lanes<T> divergences = {};
  over_lanes(block.count, [&](int64_t i, int lane) ALWAYS_INLINE { divergences[lane] += block.divergence[i]; });
  add_lanes(sums[kTotalKlRef], divergences);
}

// Loss and gradient, each token's scaled by scale(i).
template <typename T, typename ScaleOf>
HOST_DEVICE void finish(const Block<T>& block, T* gradient, LaneSums& sums, ScaleOf scale_of) {
  Lanes<T> loss = {};
  over_lanes(block.count, [&](int64_t i, int lane) ALWAYS_INLINE {
    loss[lane] += block.value[i] * scale_of(i);
    gradient[i] = block.slope[i] * scale_of(i);
  });
  add_lanes(sums[kLossSum], loss);
}

// Fills what depends on the sequence: its ratio, its length. `sequence` is that of the first token, and is moved on to
// that of the last.
template <typename T>
HOST_DEVICE void look_up_sequences(Block<T>& block, const PolicyLossInput<T>& input, const PolicyLossSettings<T>& s,
                                   const T* mean_log_ratio, int64_t& sequence) {
  for (int i = 0; i < block.count;) {
    while (input.offsets[sequence + 1] <= block.start + i) ++sequence;
    const int64_t left = input.offsets[sequence + 1] - block.start;
    const int end = left < block.count ? static_cast<int>(left) : block.count;
    if (s.sequence_ratio) {
      const Ratio<T> ratio = importance_ratio(mean_log_ratio[sequence]);
      std::fill(block.ratio + i, block.ratio + end, ratio.value);
      std::fill(block.moves + i, block.moves + end, static_cast<T>(ratio.moves));
    }
    const T length = static_cast<T>(input.offsets[sequence + 1] - input.offsets[sequence]);
    if (s.sequence_mean) std::fill(block.scale + i, block.scale + end, s.scale / length);
    i = end;
  }
}

template <typename T>
HOST_DEVICE void add_block(Block<T>& block, const PolicyLossInput<T>& input, const PolicyLossSettings<T>& s,
                           T* gradient, LaneSums& sums) {
  if (s.sequence_ratio)
    add_surrogate<true>(block, input, s, sums);
  else
    add_surrogate<false>(block, input, s, sums);
  if (input.sampler_logprob) weigh(block, input, s.truncation, sums);
  if (input.ref_logprob) {
    switch (s.kl) {
      case KlKind::kK1:
        add_kl<KlKind::kK1>(block, input, s.kl_coef, sums);
        break;
      case KlKind::kK2:
        add_kl<KlKind::kK2>(block, input, s.kl_coef, sums);
        break;
      case KlKind::kK3:
        add_kl<KlKind::kK3>(block, input, s.kl_coef, sums);
        break;
    }
  }
  if (s.sequence_mean)
    finish(block, gradient + block.start, sums, [&](int64_t i) ALWAYS_INLINE { return block.scale[i]; });
  else
    finish(block, gradient + block.start, sums, [&](int64_t) ALWAYS_INLINE { return s.scale; });
}

HOST_DEVICE void join(const LaneSums& sums, int64_t count, bool sampled, double* totals) {
  for (int total = 0; total < kNumTotals; ++total) totals[total] = strided_sum(sums[total], kVectorLanes);
  const double* maxima = sums[kTotalRatioMax];
  totals[kTotalRatioMax] = *std::max_element(maxima, maxima + kVectorLanes);
  if (totals[kTotalRatio] != totals[kTotalRatio]) totals[kTotalRatioMax] = totals[kTotalRatio];  // NaN
  totals[kTotalKlOld] *= 0.5;
  totals[kTotalTokens] = static_cast<double>(count);
  if (sampled) return;
  for (Total total : {kTotalWeight, kTotalImportance, kTotalImportanceSquared}) totals[total] = totals[kTotalTokens];
}

template <typename T>
HOST_DEVICE double policy_loss_tokens(const PolicyLossInput<T>& input, const PolicyLossSettings<T> s,
                                      const T* mean_log_ratio, int64_t first, int64_t last, T* gradient,
                                      double* totals) {
  const bool by_sequence = s.sequence_ratio || s.sequence_mean;
  const int64_t* end = input.offsets + input.num_sequences + 1;
  int64_t sequence = by_sequence ? std::upper_bound(input.offsets, end, first) - input.offsets - 1 : 0;
  LaneSums sums = {};
  Block<T> block;
  for (block.start = first; block.start < last; block.start += kBlock) {
    block.count = static_cast<int>(std::min<int64_t>(kBlock, last - block.start));
    if (by_sequence) look_up_sequences(block, input, s, mean_log_ratio, sequence);
    add_block(block, input, s, gradient, sums);
  }
  join(sums, last - first, input.sampler_logprob != nullptr, totals);
  return strided_sum(sums[kLossSum], kVectorLanes);
}

template <typename T>
HOST_DEVICE void mean_log_ratios(const PolicyLossInput<T>& input, int64_t first, int64_t last, T* mean) {
  for (int64_t s = first; s < last; ++s) {
    const int64_t begin = input.offsets[s], length = input.offsets[s + 1] - begin;
    const T *logprob = input.logprob + begin, *old_logprob = input.old_logprob + begin;
    Lanes<T> sums = {};
    over_lanes(length, [&](int64_t i, int lane) ALWAYS_INLINE { sums[lane] += logprob[i] - old_logprob[i]; });
    mean[s] = length > 0 ? strided_sum(sums, kVectorLanes) / static_cast<T>(length) : T(0);
  }
}

}  // namespace

// GCC clones functions, not templates.
template <>
CPU_CLONES void mean_log_ratio_cpu(const PolicyLossInput<float>& input, int64_t first, int64_t last, float* mean) {
  mean_log_ratios(input, first, last, mean);
}

template <>
void mean_log_ratio_cpu(const PolicyLossInput<double>& input, int64_t first, int64_t last, double* mean) {
  mean_log_ratios(input, first, last, mean);
}

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
