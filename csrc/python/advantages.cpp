// diva_advantage and shared_std_advantage for arrays of any library, without torch.
// What they compute, and what their settings mean, is said where torch's are: diva_engine/ops/<op>.py.
#include "diva_advantage/diva_advantage.h"
#include "python/call.h"
#include "python/ops.h"
#include "shared_std_advantage/shared_std_advantage.h"

namespace diva {

namespace {

struct DivaArrays {
  Array rewards;
  Array prompts;
  Array questions;
  Array difficulty;
  Array lengths;  // empty where the balance needs none

  template <typename T>
  DivaInput<T> input() const {
    return {data<T>(rewards),       data<int64_t>(prompts), data<int64_t>(questions), data<T>(difficulty),
            data<int64_t>(lengths), rewards.shape[0],       difficulty.shape[0],      questions.shape[0] - 1};
  }
};

DivaArrays diva_arrays(const py::object& rewards, const py::object& prompt_offsets, const py::object& question_offsets,
                       const py::object& difficulty, const py::object& lengths, const DivaOptions& options) {
  constexpr const char* kOp = "diva_advantage";
  DivaArrays arrays{};
  arrays.rewards = rewards_of(rewards, kOp, "rewards");
  arrays.prompts = int64_vector_of(prompt_offsets, arrays.rewards, kOp, "prompt_offsets");
  arrays.questions = int64_vector_of(question_offsets, arrays.rewards, kOp, "question_offsets");
  arrays.difficulty = real_vector_of(difficulty, arrays.rewards, kOp, "difficulty");
  check_entries(arrays.difficulty, number_of_offsets(arrays.prompts, kOp, "prompt_offsets"), kOp, "difficulty");
  number_of_offsets(arrays.questions, kOp, "question_offsets");
  if (options.balance == Balance::kPaddedTokens) {
    check(!lengths.is_none() && options.max_length >= 1, kOp,
          ": balance='padded_tokens' needs lengths and a max_length of at least 1");
    arrays.lengths = int64_vector_of(lengths, arrays.rewards, kOp, "lengths");
    check_entries(arrays.lengths, arrays.rewards.shape[0], kOp, "lengths");
  }
  check(options.r_max > 0, kOp, ": r_max must be above 0, not ", options.r_max);
  return arrays;
}

template <typename T>
void diva_on_cpu(const DivaArrays& arrays, const DivaOptions& options, const Outputs& outputs) {
  constexpr const char* kOp = "diva_advantage";
  const DivaInput<T> input = arrays.input<T>();
  check_offsets(input.prompt_offsets, input.num_prompts, input.num_rollouts, kOp, "prompt_offsets");
  check_offsets(input.question_offsets, input.num_questions, input.num_prompts, kOp, "question_offsets");
  if (input.lengths) check_lengths(input.lengths, input.num_rollouts, options);
  diva_advantage_cpu(input, options, DivaOutput<T>{outputs.data<T>(0), outputs.data<T>(1), outputs.data<T>(2)},
                     [](int64_t count, const auto& f) { f(int64_t{0}, count); });
}

py::object diva_advantage(const py::object& rewards, const py::object& prompt_offsets,
                          const py::object& question_offsets, const py::object& difficulty, double k,
                          const std::string& weight, const std::string& rrb, double r_max, const std::string& std,
                          double eps, const std::string& balance, const py::object& lengths, int64_t max_length,
                          double w_local, double w_global, const py::object& out, Stream stream) {
  constexpr const char* kOp = "diva_advantage";
  const DivaOptions options{k,
                            choice<Weight>(weight, {"global", "both", "none"}, kOp, "weight"),
                            choice<Rrb>(rrb, {"range", "threshold", "none"}, kOp, "rrb"),
                            r_max,
                            choice<int>(std, {"sample", "population"}, kOp, "std") == 0,
                            eps,
                            choice<Balance>(balance, {"sequences", "padded_tokens", "minmax", "none"}, kOp, "balance"),
                            max_length,
                            w_local,
                            w_global};
  const DivaArrays arrays = diva_arrays(rewards, prompt_offsets, question_offsets, difficulty, lengths, options);
  const Outputs outputs(out, 3, arrays.rewards, arrays.rewards.shape[0], kOp);
  if (arrays.rewards.is_on_cuda) {
#ifdef DIVA_WITH_CUDA
    const auto input = arrays.input<float>();
    const DivaOutput<float> output{outputs.data<float>(0), outputs.data<float>(1), outputs.data<float>(2)};
    on_cuda(kOp, stream, diva_advantage_scratch_bytes(input.num_prompts, input.num_questions), [&](void* scratch) {
      return diva_advantage_cuda(&input, &options, &output, scratch, reinterpret_cast<void*>(stream));
    });
#else
    no_cuda(kOp);
#endif
    return outputs.result();
  }
  arrays.rewards.type == ElementType::kFloat32 ? diva_on_cpu<float>(arrays, options, outputs)
                                               : diva_on_cpu<double>(arrays, options, outputs);
  return outputs.result();
}

py::object shared_std_advantage(const py::object& rewards, const py::object& prompt_offsets,
                                const py::object& bin_of_prompt, int64_t num_bins, double eps, const py::object& out,
                                Stream stream) {
  constexpr const char* kOp = "shared_std_advantage";
  check(num_bins >= 1, kOp, ": num_bins must be at least 1, not ", num_bins);
  const Array reward = rewards_of(rewards, kOp, "rewards");
  const Array prompts = int64_vector_of(prompt_offsets, reward, kOp, "prompt_offsets");
  const Array bins = int64_vector_of(bin_of_prompt, reward, kOp, "bin_of_prompt");
  const int64_t n = reward.shape[0], num_prompts = number_of_offsets(prompts, kOp, "prompt_offsets");
  check_entries(bins, num_prompts, kOp, "bin_of_prompt");
  const Outputs outputs(out, 1, reward, n, kOp);
  const auto input_of = [&](auto type) {
    using T = decltype(type);
    return SharedStdInput<T>{data<T>(reward), data<int64_t>(prompts), data<int64_t>(bins), n, num_prompts, num_bins};
  };
  if (reward.is_on_cuda) {
#ifdef DIVA_WITH_CUDA
    const auto input = input_of(float());
    on_cuda(kOp, stream, diva_shared_std_advantage_scratch_bytes(num_prompts, num_bins), [&](void* scratch) {
      return diva_shared_std_advantage_cuda(&input, eps, outputs.data<float>(0), scratch,
                                            reinterpret_cast<void*>(stream));
    });
#else
    no_cuda(kOp);
#endif
    return outputs.result();
  }
  check_offsets(data<int64_t>(prompts), num_prompts, n, kOp, "prompt_offsets");
  check_bins(data<int64_t>(bins), num_prompts, num_bins);
  const auto run = [&](auto type) { shared_std_advantage_cpu(input_of(type), eps, outputs.data<decltype(type)>(0)); };
  reward.type == ElementType::kFloat32 ? run(float()) : run(double());
  return outputs.result();
}

}  // namespace

void define_advantages(py::module_& m) {
  using py::arg;
  m.def("diva_advantage", &diva_advantage, arg("rewards"), arg("prompt_offsets"), arg("question_offsets"),
        arg("difficulty"), py::kw_only(), arg("k") = 0.1, arg("weight") = "global", arg("rrb") = "range",
        arg("r_max") = 1.0, arg("std") = "sample", arg("eps") = 1e-6, arg("balance") = "sequences",
        arg("lengths") = py::none(), arg("max_length") = 0, arg("w_local") = 1.0, arg("w_global") = 1.0,
        arg("out") = py::none(), arg("stream") = 0,
        "DIVA's advantage: a tuple advantage, local, global of arrays [N].");
  m.def("shared_std_advantage", &shared_std_advantage, arg("rewards"), arg("prompt_offsets"), arg("bin_of_prompt"),
        arg("num_bins"), arg("eps") = 1e-6, py::kw_only(), arg("out") = py::none(), arg("stream") = 0,
        "Durian's advantage: an array [N].");
}

}  // namespace diva
