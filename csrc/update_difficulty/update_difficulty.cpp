#include "update_difficulty/update_difficulty.h"

#include <algorithm>
#include <cmath>

#include "common/device.h"
#include "common/glue.h"

namespace diva {

namespace {

constexpr const char* kOp = "update_difficulty";

struct Arguments {
  Tensor table;
  Tensor index;
  Tensor accuracy;
};

Arguments checked(const Tensor& table, const Tensor& index, const Tensor& accuracy) {
  real_vector_argument(table, kOp, "table");  // for its checks; a copy would not be in place
  const Arguments checked{table, vector_argument(index, ScalarType::Long, kOp, "index"),
                          real_vector_argument(accuracy, kOp, "accuracy")};
  check_length(checked.accuracy, checked.index.numel(), kOp, "accuracy");
  check_same_type(checked.accuracy, table, kOp, "accuracy");
  check_same_device(checked.index, table, kOp, "index");
  check_same_device(checked.accuracy, table, kOp, "accuracy");
  return checked;
}

template <typename T>
DifficultyTable<T> table_of(Tensor& table) {
  return {table.mutable_data_ptr<T>(), table.stride(0), table.numel()};
}

template <typename T>
DifficultySettings<T> settings_of(double eta, double low, double high, int64_t rule) {
  return {static_cast<T>(eta), static_cast<T>(low), static_cast<T>(high), static_cast<DifficultyRule>(rule)};
}

template <typename T>
void run_cpu(Arguments& arguments, const DifficultySettings<T>& settings, Tensor& updated) {
  const int64_t* index = arguments.index.const_data_ptr<int64_t>();
  const T* accuracy = arguments.accuracy.const_data_ptr<T>();
  const int64_t count = arguments.index.numel();
  check_difficulty_entries(index, accuracy, count, arguments.table.numel());
  update_difficulty_cpu(table_of<T>(arguments.table), index, accuracy, count, settings, updated.mutable_data_ptr<T>());
}

Tensor on_cpu(Tensor table, Tensor index, Tensor accuracy, double eta, double low, double high, int64_t rule) {
  Arguments arguments = checked(table, index, accuracy);
  Tensor updated = torch::stable::new_empty(arguments.accuracy, {arguments.accuracy.numel()});
  table.scalar_type() == ScalarType::Float ? run_cpu(arguments, settings_of<float>(eta, low, high, rule), updated)
                                           : run_cpu(arguments, settings_of<double>(eta, low, high, rule), updated);
  return updated;
}

template <typename T>
std::vector<T> on_host(const Tensor& tensor, void* stream) {
  std::vector<T> host(tensor.numel());
  check_cuda(diva_cuda_copy_to_host(host.data(), tensor.const_data_ptr<T>(), host.size() * sizeof(T), stream), kOp);
  return host;
}

// A bad entry shows as NaN. To tell, the host must wait, which a graph under capture cannot.
void check_updated(const Arguments& arguments, const Tensor& updated, void* stream) {
  if (diva_cuda_is_capturing(stream)) return;
  const std::vector<float> levels = on_host<float>(updated, stream);
  if (std::none_of(levels.begin(), levels.end(), [](float level) { return std::isnan(level); })) return;
  const auto index = on_host<int64_t>(arguments.index, stream);
  const auto accuracy = on_host<float>(arguments.accuracy, stream);
  check_difficulty_entries(index.data(), accuracy.data(), static_cast<int64_t>(index.size()), arguments.table.numel());
}

Tensor on_cuda(Tensor table, Tensor index, Tensor accuracy, double eta, double low, double high, int64_t rule) {
  Arguments arguments = checked(table, index, accuracy);
  const CudaGuard guard(table, kOp);
  Tensor updated = torch::stable::new_empty(arguments.accuracy, {arguments.accuracy.numel()});
  const auto levels = table_of<float>(arguments.table);
  const auto settings = settings_of<float>(eta, low, high, rule);
  void* stream = current_stream(table);
  check_cuda(diva_update_difficulty_cuda(&levels, arguments.index.const_data_ptr<int64_t>(),
                                         arguments.accuracy.const_data_ptr<float>(), arguments.index.numel(), &settings,
                                         updated.mutable_data_ptr<float>(), stream),
             kOp);
  check_updated(arguments, updated, stream);
  return updated;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(diva_engine, CPU, m) { m.impl("update_difficulty", TORCH_BOX(&on_cpu)); }
STABLE_TORCH_LIBRARY_IMPL(diva_engine, CUDA, m) { m.impl("update_difficulty", TORCH_BOX(&on_cuda)); }

}  // namespace diva
