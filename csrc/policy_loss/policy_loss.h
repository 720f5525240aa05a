#pragma once
// What one token of the policy loss costs, and how its cost changes with its log-probability.
#include "common/exponential.h"

namespace diva {

enum class LossKind : int { kPpo, kCispo, kSapo };
enum class KlKind : int { kK1, kK2, kK3 };

// What is summed over tokens for the metrics; kTotalRatioMax is a maximum. The order is TOTALS of ops/policy_loss.py.
enum Total : int {
  kTotalTokens,
  kTotalRatio,
  kTotalRatioMax,
  kTotalClipLow,
  kTotalClipHigh,
  kTotalClipDual,
  kTotalKlOld,
  kTotalKlRef,
  kTotalWeight,
  kTotalTruncated,
  kTotalGap,
  kTotalImportance,
  kTotalImportanceSquared,
  kNumTotals
};

template <typename T>
struct PolicyLossSettings {
  LossKind loss;
  KlKind kl;
  bool sequence_ratio;
  bool sequence_mean;
  T low, high, dual;  // bounds of the ratio; dual is infinite where it is not used
  T tau_positive, tau_negative;
  T kl_coef;
  T truncation;
  T scale;  // what loss and gradient are multiplied with: one over the divisor
};

template <typename T>
struct PolicyLossInput {
  const T* logprob;          // [num_tokens]
  const T* old_logprob;      // [num_tokens]
  const T* advantage;        // [num_tokens]
  const T* ref_logprob;      // [num_tokens], or null
  const T* sampler_logprob;  // [num_tokens], or null
  const int64_t* offsets;    // [num_sequences + 1]
  int64_t num_tokens;
  int64_t num_sequences;
};

template <typename T>
struct Cost {
  T value;
  T slope;  // derivative by the token's log-probability
};

constexpr float kLogRatioLimit = 20.0f;

// Comparisons that are false for NaN keep it, here and below.
template <typename T>
HOST_DEVICE T between(T value, T low, T high) {
  value = value < low ? low : value;
  return value > high ? high : value;
}

template <typename T>
HOST_DEVICE T limited(T log_ratio) {
  return between(log_ratio, T(-kLogRatioLimit), T(kLogRatioLimit));
}

// Whether the log-ratio still moves what is made of it.
template <typename T>
HOST_DEVICE bool within_limit(T log_ratio) {
  return limited(log_ratio) == log_ratio;
}

template <typename T>
struct Ratio {
  T value;
  bool moves;  // with the token's log-probability: not where the log-ratio is held at its limit
};

template <typename T>
HOST_DEVICE Ratio<T> importance_ratio(T log_ratio) {
  return {bounded_exponential(limited(log_ratio)), within_limit(log_ratio)};
}

// Which bound holds the ratio, as 0 or 1.
struct Clip {
  int low, high, dual;
};

template <typename T>
HOST_DEVICE Clip ppo_clip(T ratio, T advantage, const PolicyLossSettings<T>& s) {
  return {(advantage < 0) & (ratio < s.low), (advantage > 0) & (ratio > s.high), (advantage < 0) & (ratio > s.dual)};
}

template <typename T>
HOST_DEVICE Clip cispo_clip(T ratio, T advantage, const PolicyLossSettings<T>& s) {
  return {(advantage != 0) & (ratio < s.low), (advantage != 0) & (ratio > s.high), 0};
}

// min(r A, clip(r) A) is A times a ratio with one bound: from above where A > 0, from below (and dual) where A < 0.
template <typename T>
HOST_DEVICE Cost<T> ppo_cost(Ratio<T> ratio, T advantage, const PolicyLossSettings<T>& s) {
  const T low = advantage < 0 ? s.low : T(0), high = advantage < 0 ? s.dual : s.high;
  const T held = between(ratio.value, low, high);
  // A product, not a choice: NaN stays NaN.
  return {-advantage * held, -advantage * ratio.value * static_cast<T>((held == ratio.value) & ratio.moves)};
}

template <typename T>
HOST_DEVICE Cost<T> cispo_cost(Ratio<T> ratio, T advantage, T logprob, const PolicyLossSettings<T>& s) {
  const T slope = -between(ratio.value, s.low, s.high) * advantage;
  return {slope * logprob, slope};
}

template <typename T>
HOST_DEVICE Cost<T> sapo_cost(Ratio<T> ratio, T advantage, const PolicyLossSettings<T>& s) {
  const T tau = advantage >= 0 ? s.tau_positive : s.tau_negative;
  const T gate = T(1) / (T(1) + exponential(-tau * (ratio.value - T(1))));
  const T slope = ratio.value * (ratio.moves ? T(1) : T(0));
  return {-advantage * (T(4) / tau) * gate, T(-4) * advantage * gate * (T(1) - gate) * slope};
}

// How far the policy's log-probability lies above the sampler's. NaN says that nobody sampled the token: no gap.
template <typename T>
HOST_DEVICE T sampler_gap(T old_logprob, T sampler_logprob) {
  return sampler_logprob == sampler_logprob ? old_logprob - sampler_logprob : T(0);
}

// KL(policy, reference) estimated from the one token that was drawn.
template <typename T>
HOST_DEVICE Cost<T> kl_cost(T logprob, T ref_logprob, KlKind kind) {
  const T gap = ref_logprob - logprob, d = limited(gap);
  const T moves = within_limit(gap) ? T(1) : T(0);  // GCC makes no vector code of a bool cast to T here
  if (kind == KlKind::kK1) return {-d, d == d ? moves : d};
  if (kind == KlKind::kK2) return {d * d * T(0.5), -d * moves};
  const T odds = bounded_exponential(d);
  return {odds - d - T(1), (T(1) - odds) * moves};
}

#if !defined(__CUDACC_RTC__)
// Means over sequences first..last-1 of logprob - old_logprob -> mean [num_sequences]; 0 for an empty one.
template <typename T>
void mean_log_ratio_cpu(const PolicyLossInput<T>& input, int64_t first, int64_t last, T* mean);

// Tokens first..last-1 -> gradient [num_tokens] of the loss, totals [kNumTotals], and their part of the loss
// (returned). `mean_log_ratio` [num_sequences] is read for sequence ratios only.
template <typename T>
double policy_loss_cpu(const PolicyLossInput<T>& input, const PolicyLossSettings<T>& settings, const T* mean_log_ratio,
                       int64_t first, int64_t last, T* gradient, double* totals);
#endif

}  // namespace diva

#if !defined(__CUDACC_RTC__)
// How many doubles of working memory the launcher below needs for `num_tokens` tokens.
extern "C" int64_t diva_policy_loss_workspace(int64_t num_tokens);

// loss [1], gradient [num_tokens], totals [kNumTotals]; mean_log_ratio [num_sequences] for sequence ratios, else
// unused. Returns a cudaError_t. Offsets out of order or out of range read nothing outside the tokens, but the result
// is void.
extern "C" int diva_policy_loss_cuda(const diva::PolicyLossInput<float>* input,
                                     const diva::PolicyLossSettings<float>* settings, float* mean_log_ratio,
                                     double* workspace, float* loss, float* gradient, double* totals, void* stream);
#endif
