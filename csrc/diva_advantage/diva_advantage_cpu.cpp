#include "diva_advantage/diva_advantage.h"

#include "common/checks.h"

namespace diva {

namespace {

template <typename T>
BatchSums token_sums(const DivaInput<T>& input, const GroupScale<T>& scale, int64_t first, int64_t last) {
  BatchSums sums{};
  for (int64_t i = first; i < last; ++i) {
    sums = join(sums, sums_of_rollout(input.rewards[i], scale, input.lengths[i]));
  }
  return sums;
}

template <typename T>
BatchSums group_sums(const DivaInput<T>& input, const DivaOptions& options, const GroupMoments<T>& moments,
                     const GroupScale<T>& scale, int64_t first) {
  if (options.balance == Balance::kNone) return {};
  if (options.balance == Balance::kPaddedTokens) return token_sums(input, scale, first, first + moments.count);
  return sums_of_group(moments, scale);
}

}  // namespace

template <typename T>
void diva_scales_cpu(const DivaInput<T>& input, const DivaOptions& options, int64_t first, int64_t last,
                     GroupScale<T>* prompts, GroupScale<T>* questions, QuestionSums* sums) {
  for (int64_t q = first; q < last; ++q) {
    const int64_t first_prompt = input.question_offsets[q], last_prompt = input.question_offsets[q + 1];
    sums[q] = {};
    T difficulty = T(0);
    for (int64_t p = first_prompt; p < last_prompt; ++p) {
      const int64_t begin = input.prompt_offsets[p];
      const auto moments = group_moments(input.rewards + begin, input.prompt_offsets[p + 1] - begin);
      prompts[p] = group_scale(moments, input.difficulty[p], options);
      sums[q].local = join(sums[q].local, group_sums(input, options, moments, prompts[p], begin));
      difficulty += input.difficulty[p];
    }
    if (last_prompt > first_prompt) difficulty /= static_cast<T>(last_prompt - first_prompt);

    const int64_t begin = input.prompt_offsets[first_prompt];
    const auto moments = group_moments(input.rewards + begin, input.prompt_offsets[last_prompt] - begin);
    questions[q] = group_scale(moments, difficulty, options);
    sums[q].global = group_sums(input, options, moments, questions[q], begin);
  }
}

template <typename T>
void diva_advantages_cpu(const DivaInput<T>& input, const DivaOptions& options, const QuestionSums& sums, int64_t first,
                         int64_t last, const GroupScale<T>* prompts, const GroupScale<T>* questions,
                         const DivaOutput<T>& output) {
  const auto local_batch = batch_scale<T>(sums.local, input.num_rollouts, options);
  const auto global_batch = batch_scale<T>(sums.global, input.num_rollouts, options);
  for (int64_t q = first; q < last; ++q) {
    for (int64_t p = input.question_offsets[q]; p < input.question_offsets[q + 1]; ++p) {
      const auto weight = difficulty_weight(prompts[p].difficulty, questions[q].difficulty, options);
      for (int64_t i = input.prompt_offsets[p]; i < input.prompt_offsets[p + 1]; ++i) {
        const auto advantage =
            advantage_of(input.rewards[i], prompts[p], questions[q], local_batch, global_batch, weight, options);
        output.advantage[i] = advantage.total;
        output.local[i] = advantage.local;
        output.global[i] = advantage.global;
      }
    }
  }
}

void check_lengths(const int64_t* lengths, int64_t count, const DivaOptions& options) {
  for (int64_t i = 0; i < count; ++i) {
    if (lengths[i] >= 0 && lengths[i] <= options.max_length) continue;
    check(false, "diva_advantage: lengths[", i, "] is ", lengths[i], ", not between 0 and max_length ",
          options.max_length);
  }
}

#define DIVA_INSTANTIATE(T)                                                                                         \
  template void diva_scales_cpu(const DivaInput<T>&, const DivaOptions&, int64_t, int64_t, GroupScale<T>*,          \
                                GroupScale<T>*, QuestionSums*);                                                     \
  template void diva_advantages_cpu(const DivaInput<T>&, const DivaOptions&, const QuestionSums&, int64_t, int64_t, \
                                    const GroupScale<T>*, const GroupScale<T>*, const DivaOutput<T>&);
DIVA_INSTANTIATE(float)
DIVA_INSTANTIATE(double)
#undef DIVA_INSTANTIATE

}  // namespace diva
