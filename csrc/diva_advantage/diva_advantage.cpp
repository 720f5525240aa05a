#include "diva_advantage/diva_advantage.h"

#include "common/glue.h"

namespace diva {

namespace {

constexpr const char* kOp = "diva_advantage";
constexpr int64_t kQuestionsAThread = 2048;  // below this a second thread costs more than it saves

using ThreeTensors = std::tuple<Tensor, Tensor, Tensor>;

struct Arguments {
  Tensor rewards;
  Tensor prompt_offsets;
  Tensor question_offsets;
  Tensor difficulty;
  std::optional<Tensor> lengths;
};

Arguments checked(const Tensor& rewards, const Tensor& prompt_offsets, const Tensor& question_offsets,
                  const Tensor& difficulty, const std::optional<Tensor>& lengths, const DivaOptions& options) {
  Arguments checked{real_vector_argument(rewards, kOp, "rewards"),
                    offsets_argument(prompt_offsets, kOp, "prompt_offsets"),
                    offsets_argument(question_offsets, kOp, "question_offsets"),
                    real_vector_argument(difficulty, kOp, "difficulty"),
                    {}};
  check_same_type(checked.difficulty, checked.rewards, kOp, "difficulty");
  check_length(checked.difficulty, checked.prompt_offsets.numel() - 1, kOp, "difficulty");
  check_same_device(checked.prompt_offsets, checked.rewards, kOp, "prompt_offsets");
  check_same_device(checked.question_offsets, checked.rewards, kOp, "question_offsets");
  check_same_device(checked.difficulty, checked.rewards, kOp, "difficulty");
  if (options.balance == Balance::kPaddedTokens) {
    check(lengths.has_value(), kOp, ": balance padded_tokens needs lengths");
    checked.lengths = vector_argument(*lengths, ScalarType::Long, kOp, "lengths");
    check_length(*checked.lengths, checked.rewards.numel(), kOp, "lengths");
    check_same_device(*checked.lengths, checked.rewards, kOp, "lengths");
  }
  return checked;
}

template <typename T>
DivaInput<T> input_of(const Arguments& arguments) {
  return {arguments.rewards.const_data_ptr<T>(),
          arguments.prompt_offsets.const_data_ptr<int64_t>(),
          arguments.question_offsets.const_data_ptr<int64_t>(),
          arguments.difficulty.const_data_ptr<T>(),
          arguments.lengths ? arguments.lengths->const_data_ptr<int64_t>() : nullptr,
          arguments.rewards.numel(),
          arguments.prompt_offsets.numel() - 1,
          arguments.question_offsets.numel() - 1};
}

template <typename T>
DivaOutput<T> output_of(const ThreeTensors& outputs) {
  const auto& [advantage, local, global] = outputs;
  return {advantage.mutable_data_ptr<T>(), local.mutable_data_ptr<T>(), global.mutable_data_ptr<T>()};
}

ThreeTensors new_outputs(const Tensor& rewards) {
  const int64_t n = rewards.numel();
  return {torch::stable::new_empty(rewards, {n}), torch::stable::new_empty(rewards, {n}),
          torch::stable::new_empty(rewards, {n})};
}

template <typename T>
void run_cpu(const Arguments& arguments, const DivaOptions& options, const ThreeTensors& outputs) {
  diva_advantage_cpu(input_of<T>(arguments), options, output_of<T>(outputs),
                     [](int64_t count, const auto& f) { parallel_ranges(count, kQuestionsAThread, f); });
}

// The schema's plain numbers, in the struct's order.
DivaOptions options_of(double k, int64_t weight, int64_t rrb, double r_max, bool sample_std, double eps,
                       int64_t balance, int64_t max_length, double w_local, double w_global) {
  return {k,
          static_cast<Weight>(weight),
          static_cast<Rrb>(rrb),
          r_max,
          sample_std,
          eps,
          static_cast<Balance>(balance),
          max_length,
          w_local,
          w_global};
}

ThreeTensors on_cpu(Tensor rewards, Tensor prompt_offsets, Tensor question_offsets, Tensor difficulty, double k,
                    int64_t weight, int64_t rrb, double r_max, bool sample_std, double eps, int64_t balance,
                    std::optional<Tensor> lengths, int64_t max_length, double w_local, double w_global) {
  const DivaOptions options =
      options_of(k, weight, rrb, r_max, sample_std, eps, balance, max_length, w_local, w_global);
  const Arguments arguments = checked(rewards, prompt_offsets, question_offsets, difficulty, lengths, options);
  check_offsets_cpu(arguments.prompt_offsets, arguments.rewards.numel(), kOp, "prompt_offsets");
  check_offsets_cpu(arguments.question_offsets, arguments.difficulty.numel(), kOp, "question_offsets");
  if (arguments.lengths)
    check_lengths(arguments.lengths->const_data_ptr<int64_t>(), arguments.rewards.numel(), options);
  const ThreeTensors outputs = new_outputs(arguments.rewards);
  arguments.rewards.scalar_type() == ScalarType::Float ? run_cpu<float>(arguments, options, outputs)
                                                       : run_cpu<double>(arguments, options, outputs);
  return outputs;
}

ThreeTensors on_cuda(Tensor rewards, Tensor prompt_offsets, Tensor question_offsets, Tensor difficulty, double k,
                     int64_t weight, int64_t rrb, double r_max, bool sample_std, double eps, int64_t balance,
                     std::optional<Tensor> lengths, int64_t max_length, double w_local, double w_global) {
  const DivaOptions options =
      options_of(k, weight, rrb, r_max, sample_std, eps, balance, max_length, w_local, w_global);
  const Arguments arguments = checked(rewards, prompt_offsets, question_offsets, difficulty, lengths, options);
  const CudaGuard guard(arguments.rewards, kOp);
  const ThreeTensors outputs = new_outputs(arguments.rewards);
  const DivaInput<float> input = input_of<float>(arguments);
  const DivaOutput<float> output = output_of<float>(outputs);
  const int64_t bytes = diva_advantage_scratch_bytes(input.num_prompts, input.num_questions);
  Tensor scratch = torch::stable::new_empty(arguments.rewards, {bytes}, ScalarType::Byte);
  check_cuda(
      diva_advantage_cuda(&input, &options, &output, scratch.mutable_data_ptr(), current_stream(arguments.rewards)),
      kOp);
  return outputs;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(diva_engine, CPU, m) { m.impl("diva_advantage", TORCH_BOX(&on_cpu)); }
STABLE_TORCH_LIBRARY_IMPL(diva_engine, CUDA, m) { m.impl("diva_advantage", TORCH_BOX(&on_cuda)); }

}  // namespace diva
