// group_stats and update_difficulty for arrays of any library, without torch.
// What they compute, and what their settings mean, is said where torch's are: diva_engine/ops/<op>.py.
#include "group_stats/group_stats.h"
#include "python/call.h"
#include "python/ops.h"
#include "update_difficulty/update_difficulty.h"

namespace diva {

namespace {

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

void define_groups(py::module_& m) {
  using py::arg;
  m.def("group_stats", &group_stats, arg("values"), arg("offsets"), py::kw_only(), arg("out") = py::none(),
        arg("stream") = 0, "Mean, sample std, min and max of ragged groups: a tuple of four arrays [G].");
  m.def("update_difficulty", &update_difficulty, arg("table"), arg("index"), arg("accuracy"), py::kw_only(),
        arg("eta") = 4.0, arg("low") = 1.0, arg("high") = 9.0, arg("rule") = "continuous", arg("out") = py::none(),
        arg("stream") = 0,
        "Moves the difficulty of table[index] in place; returns the new values [Q]. On CUDA a bad entry becomes NaN.");
}

}  // namespace diva
