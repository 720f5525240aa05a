// The ops on groups of rewards for arrays of any library, without torch. What they compute, and what their settings
// mean, is said where torch's are: diva_engine/ops/<op>.py.
#include "python/ops.h"

#include <functional>

#include "common/checks.h"
#include "diva_advantage/diva_advantage.h"
#include "group_stats/group_stats.h"
#include "python/array.h"
#include "shared_std_advantage/shared_std_advantage.h"
#include "update_difficulty/update_difficulty.h"
#ifdef DIVA_WITH_CUDA
#include "common/device.h"
#endif

namespace diva {

namespace {

using Stream = uintptr_t;
// Calls the launcher with scratch memory of so many bytes.
using Launcher = std::function<int(void* scratch)>;

int64_t number_of_offsets(const Array& offsets, const char* op, const char* name) {
  check(offsets.shape[0] >= 1, op, ": ", name, " must have at least one entry, the 0 at its start");
  return offsets.shape[0] - 1;
}

void check_entries(const Array& array, int64_t length, const char* op, const char* name) {
  check(array.shape[0] == length, op, ": ", name, " must have ", length, " entries, not ", array.shape[0]);
}

Array rewards_of(const py::object& object, const char* op, const char* name) {
  Array array = vector_of(object, op, name);
  const bool is_real = array.type == ElementType::kFloat32 || array.type == ElementType::kFloat64;
  check(is_real, op, ": ", name, " must be float32, or float64 on the CPU");
  check(!array.is_on_cuda || array.type == ElementType::kFloat32, op, ": ", name, " must be float32 on CUDA");
  return array;
}

template <typename T>
T* data(const Array& array) {
  return static_cast<T*>(array.data);
}

// The number of a setting's value among its names, in the order of the enum.
template <typename Enum>
Enum choice(const std::string& value, const std::vector<const char*>& names, const char* op, const char* setting) {
  std::string all;
  for (size_t i = 0; i < names.size(); ++i) {
    if (value == names[i]) return static_cast<Enum>(i);
    all += (i ? ", " : "") + std::string(names[i]);
  }
  throw py::value_error(std::string(op) + ": " + setting + " must be one of " + all + ", not '" + value + "'");
}

#ifdef DIVA_WITH_CUDA
void on_cuda(const char* op, Stream stream, int64_t scratch_bytes, const Launcher& launcher) {
  void* scratch = nullptr;
  int error = scratch_bytes ? diva_cuda_allocate(&scratch, scratch_bytes, reinterpret_cast<void*>(stream)) : 0;
  if (error == 0) error = launcher(scratch);
  if (scratch) diva_cuda_free(scratch, reinterpret_cast<void*>(stream));
  check(error == 0, op, ": CUDA error ", error, ": ", diva_cuda_error_string(error));
}
#else
void no_cuda(const char* op) {
  check(false, op, ": this build of diva_engine has no CUDA kernels: install it again where nvcc is found");
}
#endif

py::object group_stats(const py::object& values, const py::object& offsets, const py::object& out, Stream stream) {
  constexpr const char* kOp = "group_stats";
  const Array value = rewards_of(values, kOp, "values");
  const Array offset = int64_vector_of(offsets, value, kOp, "offsets");
  const int64_t num_values = value.shape[0], num_groups = number_of_offsets(offset, kOp, "offsets");
  const Outputs outputs(out, 4, value, num_groups, kOp);
  if (value.is_on_cuda) {
#ifdef DIVA_WITH_CUDA
    on_cuda(kOp, stream, 0, [&](void*) {
      return diva_group_stats_cuda(data<float>(value), num_values, data<int64_t>(offset), num_groups,
                                   outputs.data<float>(0), outputs.data<float>(1), outputs.data<float>(2),
                                   outputs.data<float>(3), reinterpret_cast<void*>(stream));
    });
#else
    no_cuda(kOp);
#endif
    return outputs.result();
  }
  check_offsets(data<int64_t>(offset), num_groups, num_values, kOp, "offsets");
  const auto run = [&](auto type) {
    using T = decltype(type);
    const GroupStatsOutput<T> output{outputs.data<T>(0), outputs.data<T>(1), outputs.data<T>(2), outputs.data<T>(3)};
    group_stats_cpu(data<T>(value), data<int64_t>(offset), 0, num_groups, output);
  };
  value.type == ElementType::kFloat32 ? run(float()) : run(double());
  return outputs.result();
}

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

py::object update_difficulty(const py::object& table, const py::object& index, const py::object& accuracy, double eta,
                             double low, double high, const std::string& rule, const py::object& out, Stream stream) {
  constexpr const char* kOp = "update_difficulty";
  const auto rule_ = choice<DifficultyRule>(rule, {"continuous", "steps"}, kOp, "rule");
  const Array levels = rewards_of(table, kOp, "table");
  const Array entries = int64_vector_of(index, levels, kOp, "index");
  const Array accuracies = real_vector_of(accuracy, levels, kOp, "accuracy");
  const int64_t count = entries.shape[0], size = levels.shape[0];
  check_entries(accuracies, count, kOp, "accuracy");
  const Outputs outputs(out, 1, levels, count, kOp);
  if (levels.is_on_cuda) {
#ifdef DIVA_WITH_CUDA
    const DifficultyTable<float> place{data<float>(levels), 1, size};
    const DifficultySettings<float> settings{static_cast<float>(eta), static_cast<float>(low), static_cast<float>(high),
                                             rule_};
    on_cuda(kOp, stream, 0, [&](void*) {
      return diva_update_difficulty_cuda(&place, data<int64_t>(entries), data<float>(accuracies), count, &settings,
                                         outputs.data<float>(0), reinterpret_cast<void*>(stream));
    });
#else
    no_cuda(kOp);
#endif
    return outputs.result();
  }
  const auto run = [&](auto type) {
    using T = decltype(type);
    check_difficulty_entries(data<int64_t>(entries), data<T>(accuracies), count, size);
    const DifficultySettings<T> settings{static_cast<T>(eta), static_cast<T>(low), static_cast<T>(high), rule_};
    update_difficulty_cpu(DifficultyTable<T>{data<T>(levels), 1, size}, data<int64_t>(entries), data<T>(accuracies),
                          count, settings, outputs.data<T>(0));
  };
  levels.type == ElementType::kFloat32 ? run(float()) : run(double());
  return outputs.result();
}

}  // namespace

void define_ops(py::module_& m) {
  using py::arg;
  m.def("group_stats", &group_stats, arg("values"), arg("offsets"), py::kw_only(), arg("out") = py::none(),
        arg("stream") = 0, "Mean, sample std, min and max of ragged groups: a tuple of four arrays [G].");
  m.def("diva_advantage", &diva_advantage, arg("rewards"), arg("prompt_offsets"), arg("question_offsets"),
        arg("difficulty"), py::kw_only(), arg("k") = 0.1, arg("weight") = "global", arg("rrb") = "range",
        arg("r_max") = 1.0, arg("std") = "sample", arg("eps") = 1e-6, arg("balance") = "sequences",
        arg("lengths") = py::none(), arg("max_length") = 0, arg("w_local") = 1.0, arg("w_global") = 1.0,
        arg("out") = py::none(), arg("stream") = 0,
        "DIVA's advantage: a tuple advantage, local, global of arrays [N].");
  m.def("shared_std_advantage", &shared_std_advantage, arg("rewards"), arg("prompt_offsets"), arg("bin_of_prompt"),
        arg("num_bins"), arg("eps") = 1e-6, py::kw_only(), arg("out") = py::none(), arg("stream") = 0,
        "Durian's advantage: an array [N].");
  m.def("update_difficulty", &update_difficulty, arg("table"), arg("index"), arg("accuracy"), py::kw_only(),
        arg("eta") = 4.0, arg("low") = 1.0, arg("high") = 9.0, arg("rule") = "continuous", arg("out") = py::none(),
        arg("stream") = 0,
        "Moves the difficulty of table[index] in place; returns the new values [Q]. On CUDA a bad entry becomes NaN.");
}

}  // namespace diva
