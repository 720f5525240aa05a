#pragma once
// DIVA's advantage. Each rollout is judged inside its prompt (local) and inside its question (global). Both are brought
// to the scale of the batch ("balance"), weighted by the difficulty of the prompt, faded by the reward range of the
// group
// ("rrb"), and added.
#include "group_stats/group_stats.h"

#if !defined(__CUDACC_RTC__)
#include <vector>
#endif

namespace diva {

enum class Weight : int64_t { kGlobal, kBoth, kNone };
enum class Rrb : int64_t { kRange, kThreshold, kNone };
enum class Balance : int64_t { kSequences, kPaddedTokens, kMinmax, kNone };

// The authors' rule: groups whose rewards all stay below the threshold count a tenth.
constexpr double kRrbThreshold = 0.15;
constexpr double kRrbFactor = 0.1;

struct DivaOptions {
  double k;
  Weight weight;
  Rrb rrb;
  double r_max;
  bool sample_std;
  double eps;
  Balance balance;
  int64_t max_length;
  double w_local;
  double w_global;
};

// What turns a reward of a group into its advantage before the balance: (reward - mean) * inverse; and what fades it
// after.
template <typename T>
struct GroupScale {
  T mean;
  T inverse;  // 1 / (std + eps), or 0 where the group has no spread
  T fade;
  T difficulty;  // of a prompt, or the mean over the prompts of a question
};

// What the balance needs of the whole batch. Float64: these are sums over all rollouts.
struct BatchSums {
  double sum;      // of the advantages, each counted as often as it has tokens (padded tokens only)
  double squares;  // of the same, squared
  double largest;  // absolute advantage
};

// The balance: (advantage - shift) * gain.
template <typename T>
struct BatchScale {
  T shift;
  T gain;
};

template <typename T>
HOST_DEVICE GroupScale<T> group_scale(const GroupMoments<T>& group, T difficulty, const DivaOptions& options) {
  T std = T(0);
  if (group.min != group.max) {
    const int64_t freedom = options.sample_std && group.count > 1 ? group.count - 1 : group.count;
    std = sqrt_rn(div_rn(group.squares, static_cast<T>(freedom)));
  }
  T fade = T(1);
  if (options.rrb == Rrb::kRange) fade = (group.max - group.min) / static_cast<T>(options.r_max);
  if (options.rrb == Rrb::kThreshold && group.max < static_cast<T>(kRrbThreshold)) fade = static_cast<T>(kRrbFactor);
  const T inverse = std == T(0) ? T(0) : T(1) / (std + static_cast<T>(options.eps));
  return {group.mean, inverse, fade, difficulty};
}

// The share of one group in the batch sums, in closed form where the balance is over sequences: the advantages of a
// group sum to zero, so no mean is taken off and a group without signal keeps exactly 0.
template <typename T>
HOST_DEVICE BatchSums sums_of_group(const GroupMoments<T>& group, const GroupScale<T>& scale) {
  const double inverse = static_cast<double>(scale.inverse);
  const double high = (static_cast<double>(group.max) - group.mean) * inverse;
  const double low = (static_cast<double>(group.mean) - group.min) * inverse;
  return {0.0, static_cast<double>(group.squares) * inverse * inverse, larger(high, low)};
}

// The share of one rollout, where padding counts.
template <typename T>
HOST_DEVICE BatchSums sums_of_rollout(T reward, const GroupScale<T>& scale, int64_t length) {
  const double advantage = static_cast<double>((reward - scale.mean) * scale.inverse);
  return {advantage * length, advantage * advantage * length, 0.0};
}

HOST_DEVICE BatchSums join(const BatchSums& a, const BatchSums& b) {
  return {a.sum + b.sum, a.squares + b.squares, larger(a.largest, b.largest)};
}

template <typename T>
HOST_DEVICE BatchScale<T> batch_scale(const BatchSums& sums, int64_t num_rollouts, const DivaOptions& options) {
  if (options.balance == Balance::kNone) return {T(0), T(1)};
  if (options.balance == Balance::kMinmax) {
    return {T(0), sums.largest == 0.0 ? T(0) : static_cast<T>(1.0 / sums.largest)};
  }
  double count = static_cast<double>(num_rollouts);
  if (options.balance == Balance::kPaddedTokens) count *= static_cast<double>(options.max_length);
  const double freedom = options.sample_std && count > 1.0 ? count - 1.0 : count;
  const double mean = sums.sum / count;
  const double variance = (sums.squares - count * mean * mean) / freedom;
  const double std = sqrt(variance < 0.0 ? 0.0 : variance);
  return {static_cast<T>(mean), std == 0.0 ? T(0) : static_cast<T>(1.0 / (std + options.eps))};
}

// The factors of a prompt's difficulty: `up` for positive advantages, `down` for negative ones.
template <typename T>
struct DifficultyWeight {
  T up;
  T down;
};

HOST_DEVICE float e_to_the(float x) { return expf(x); }
#if !defined(__CUDACC__)
HOST_DEVICE double e_to_the(double x) { return exp(x); }
#endif

template <typename T>
HOST_DEVICE DifficultyWeight<T> difficulty_weight(T difficulty, T mean_difficulty, const DivaOptions& options) {
  if (options.weight == Weight::kNone || difficulty == mean_difficulty) return {T(1), T(1)};
  const T exponent = static_cast<T>(options.k) * (difficulty - mean_difficulty);
  return {e_to_the(exponent), e_to_the(-exponent)};
}

template <typename T>
HOST_DEVICE T balanced(T reward, const GroupScale<T>& group, const BatchScale<T>& batch) {
  return ((reward - group.mean) * group.inverse - batch.shift) * batch.gain;
}

template <typename T>
struct Advantage {
  T total;
  T local;
  T global;
};

template <typename T>
HOST_DEVICE Advantage<T> advantage_of(T reward, const GroupScale<T>& prompt, const GroupScale<T>& question,
                                      const BatchScale<T>& local_batch, const BatchScale<T>& global_batch,
                                      const DifficultyWeight<T>& weight, const DivaOptions& options) {
  T local = balanced(reward, prompt, local_batch);
  T global = balanced(reward, question, global_batch);
  if (options.weight == Weight::kBoth) local *= local > T(0) ? weight.up : weight.down;
  global *= global > T(0) ? weight.up : weight.down;  // both are 1 where nothing is weighted
  local *= prompt.fade;
  global *= question.fade;
  return {static_cast<T>(options.w_local) * local + static_cast<T>(options.w_global) * global, local, global};
}

template <typename T>
struct DivaInput {
  const T* rewards;                 // [N]
  const int64_t* prompt_offsets;    // [P+1] over rollouts
  const int64_t* question_offsets;  // [Q+1] over prompts
  const T* difficulty;              // [P]
  const int64_t* lengths;           // [N], or null where the balance needs none
  int64_t num_rollouts;
  int64_t num_prompts;
  int64_t num_questions;
};

template <typename T>
struct DivaOutput {  // each [N]
  T* advantage;
  T* local;
  T* global;
};

#if !defined(__CUDACC_RTC__)
struct QuestionSums {
  BatchSums local;
  BatchSums global;
};

// Each of the lengths [count] between 0 and options.max_length, or an error with the value.
void check_lengths(const int64_t* lengths, int64_t count, const DivaOptions& options);

// Questions first..last-1, in two passes with a sum over all questions between them.
template <typename T>
void diva_scales_cpu(const DivaInput<T>& input, const DivaOptions& options, int64_t first, int64_t last,
                     GroupScale<T>* prompts, GroupScale<T>* questions, QuestionSums* sums);
template <typename T>
void diva_advantages_cpu(const DivaInput<T>& input, const DivaOptions& options, const QuestionSums& sums, int64_t first,
                         int64_t last, const GroupScale<T>* prompts, const GroupScale<T>* questions,
                         const DivaOutput<T>& output);

// All of it. `parallel(count, f)` calls f(first, last) for ranges that make up [0, count).
template <typename T, typename Parallel>
void diva_advantage_cpu(const DivaInput<T>& input, const DivaOptions& options, const DivaOutput<T>& output,
                        const Parallel& parallel) {
  std::vector<GroupScale<T>> prompts(input.num_prompts), questions(input.num_questions);
  std::vector<QuestionSums> sums(input.num_questions);
  parallel(input.num_questions, [&](int64_t first, int64_t last) {
    diva_scales_cpu(input, options, first, last, prompts.data(), questions.data(), sums.data());
  });
  QuestionSums batch{};  // one order of summation for any number of threads
  for (const QuestionSums& question : sums) {
    batch = {join(batch.local, question.local), join(batch.global, question.global)};
  }
  parallel(input.num_questions, [&](int64_t first, int64_t last) {
    diva_advantages_cpu(input, options, batch, first, last, prompts.data(), questions.data(), output);
  });
}
#endif

}  // namespace diva

#if !defined(__CUDACC_RTC__)
// Bytes of scratch memory the launch below needs, aligned to 8.
extern "C" int64_t diva_advantage_scratch_bytes(int64_t num_prompts, int64_t num_questions);
// Returns a cudaError_t.
extern "C" int diva_advantage_cuda(const diva::DivaInput<float>* input, const diva::DivaOptions* options,
                                   const diva::DivaOutput<float>* output, void* scratch, void* stream);
#endif
