#include "group_stats/group_stats.h"

#include "common/glue.h"

namespace diva {

namespace {

constexpr const char* kOp = "group_stats";
constexpr int64_t kGroupsAThread = 4096;  // below this a second thread costs more than it saves

using FourTensors = std::tuple<Tensor, Tensor, Tensor, Tensor>;

FourTensors new_outputs(const Tensor& values, int64_t num_groups) {
  return {torch::stable::new_empty(values, {num_groups}), torch::stable::new_empty(values, {num_groups}),
          torch::stable::new_empty(values, {num_groups}), torch::stable::new_empty(values, {num_groups})};
}

template <typename T>
void run_cpu(const Tensor& values, const Tensor& offsets, const FourTensors& outputs) {
  const auto& [mean, std, min, max] = outputs;
  const GroupStatsOutput<T> output{mean.mutable_data_ptr<T>(), std.mutable_data_ptr<T>(), min.mutable_data_ptr<T>(),
                                   max.mutable_data_ptr<T>()};
  const T* value = values.const_data_ptr<T>();
  const int64_t* offset = offsets.const_data_ptr<int64_t>();
  parallel_ranges(offsets.numel() - 1, kGroupsAThread,
                  [&](int64_t first, int64_t last) { group_stats_cpu(value, offset, first, last, output); });
}

FourTensors on_cpu(Tensor values, Tensor offsets) {
  values = real_vector_argument(values, kOp, "values");
  offsets = offsets_argument(offsets, kOp, "offsets");
  check_same_device(offsets, values, kOp, "offsets");
  check_offsets_cpu(offsets, values.numel(), kOp, "offsets");
  const FourTensors outputs = new_outputs(values, offsets.numel() - 1);
  values.scalar_type() == ScalarType::Float ? run_cpu<float>(values, offsets, outputs)
                                            : run_cpu<double>(values, offsets, outputs);
  return outputs;
}

FourTensors on_cuda(Tensor values, Tensor offsets) {
  values = real_vector_argument(values, kOp, "values");
  offsets = offsets_argument(offsets, kOp, "offsets");
  check_same_device(offsets, values, kOp, "offsets");
  const CudaGuard guard(values, kOp);
  const FourTensors outputs = new_outputs(values, offsets.numel() - 1);
  const auto& [mean, std, min, max] = outputs;
  check_cuda(
      diva_group_stats_cuda(values.const_data_ptr<float>(), values.numel(), offsets.const_data_ptr<int64_t>(),
                            offsets.numel() - 1, mean.mutable_data_ptr<float>(), std.mutable_data_ptr<float>(),
                            min.mutable_data_ptr<float>(), max.mutable_data_ptr<float>(), current_stream(values)),
      kOp);
  return outputs;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(diva_engine, CPU, m) { m.impl("group_stats", TORCH_BOX(&on_cpu)); }
STABLE_TORCH_LIBRARY_IMPL(diva_engine, CUDA, m) { m.impl("group_stats", TORCH_BOX(&on_cuda)); }

}  // namespace diva
