#include "shared_std_advantage/shared_std_advantage.h"

#include "common/glue.h"

namespace diva {

namespace {

constexpr const char* kOp = "shared_std_advantage";

struct Arguments {
  Tensor rewards;
  Tensor prompt_offsets;
  Tensor bin_of_prompt;
  int64_t num_bins;
};

Arguments checked(const Tensor& rewards, const Tensor& prompt_offsets, const Tensor& bin_of_prompt, int64_t num_bins) {
  const Arguments checked{real_vector_argument(rewards, kOp, "rewards"),
                          offsets_argument(prompt_offsets, kOp, "prompt_offsets"),
                          vector_argument(bin_of_prompt, ScalarType::Long, kOp, "bin_of_prompt"), num_bins};
  check(num_bins >= 1, kOp, ": num_bins must be at least 1, not ", num_bins);
  check_length(checked.bin_of_prompt, checked.prompt_offsets.numel() - 1, kOp, "bin_of_prompt");
  check_same_device(checked.prompt_offsets, checked.rewards, kOp, "prompt_offsets");
  check_same_device(checked.bin_of_prompt, checked.rewards, kOp, "bin_of_prompt");
  return checked;
}

template <typename T>
SharedStdInput<T> input_of(const Arguments& arguments) {
  return {arguments.rewards.const_data_ptr<T>(),
          arguments.prompt_offsets.const_data_ptr<int64_t>(),
          arguments.bin_of_prompt.const_data_ptr<int64_t>(),
          arguments.rewards.numel(),
          arguments.bin_of_prompt.numel(),
          arguments.num_bins};
}

Tensor on_cpu(Tensor rewards, Tensor prompt_offsets, Tensor bin_of_prompt, int64_t num_bins, double eps) {
  const Arguments arguments = checked(rewards, prompt_offsets, bin_of_prompt, num_bins);
  check_offsets_cpu(arguments.prompt_offsets, arguments.rewards.numel(), kOp, "prompt_offsets");
  check_bins(arguments.bin_of_prompt.const_data_ptr<int64_t>(), arguments.bin_of_prompt.numel(), num_bins);
  Tensor advantage = torch::stable::new_empty(arguments.rewards, {arguments.rewards.numel()});
  if (arguments.rewards.scalar_type() == ScalarType::Float) {
    shared_std_advantage_cpu(input_of<float>(arguments), eps, advantage.mutable_data_ptr<float>());
  } else {
    shared_std_advantage_cpu(input_of<double>(arguments), eps, advantage.mutable_data_ptr<double>());
  }
  return advantage;
}

Tensor on_cuda(Tensor rewards, Tensor prompt_offsets, Tensor bin_of_prompt, int64_t num_bins, double eps) {
  const Arguments arguments = checked(rewards, prompt_offsets, bin_of_prompt, num_bins);
  const CudaGuard guard(arguments.rewards, kOp);
  Tensor advantage = torch::stable::new_empty(arguments.rewards, {arguments.rewards.numel()});
  const SharedStdInput<float> input = input_of<float>(arguments);
  const int64_t bytes = diva_shared_std_advantage_scratch_bytes(input.num_prompts, num_bins);
  Tensor scratch = torch::stable::new_empty(arguments.rewards, {bytes}, ScalarType::Byte);
  check_cuda(diva_shared_std_advantage_cuda(&input, eps, advantage.mutable_data_ptr<float>(),
                                            scratch.mutable_data_ptr(), current_stream(arguments.rewards)),
             kOp);
  return advantage;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(diva_engine, CPU, m) { m.impl("shared_std_advantage", TORCH_BOX(&on_cpu)); }
STABLE_TORCH_LIBRARY_IMPL(diva_engine, CUDA, m) { m.impl("shared_std_advantage", TORCH_BOX(&on_cuda)); }

}  // namespace diva
