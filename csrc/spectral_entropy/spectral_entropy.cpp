#include "spectral_entropy/spectral_entropy.h"

#include <algorithm>

#include "common/glue.h"

namespace diva {

namespace {

constexpr const char* kOp = "spectral_entropy";

struct Arguments {
  Tensor features, offsets;
  std::optional<int64_t> max_patches;

  Arguments(const Tensor& features_in, const Tensor& offsets_in, std::optional<int64_t> max_patches_in)
      : features(features_in), offsets(offsets_argument(offsets_in, kOp, "offsets")), max_patches(max_patches_in) {
    const ScalarType type = features.scalar_type();
    STD_TORCH_CHECK(features.dim() == 2, kOp, ": features must have two dimensions [P,d], not ", features.dim());
    STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::BFloat16 || type == ScalarType::Half ||
                        (type == ScalarType::Double && features.is_cpu()),
                    kOp, ": features must be Float, BFloat16 or Half (or Double on the CPU), not ",
                    torch::headeronly::toString(type));
    STD_TORCH_CHECK(!max_patches || *max_patches >= 0, kOp, ": max_patches must not be below 0");
    check_same_device(offsets, features, kOp, "offsets");
    if (!features.is_contiguous()) features = torch::stable::contiguous(features);
  }

  int64_t num_images() const { return offsets.numel() - 1; }

  Tensor new_entropy() const {
    const bool is_double = features.scalar_type() == ScalarType::Double;
    return torch::stable::new_empty(features, {num_images()}, is_double ? ScalarType::Double : ScalarType::Float);
  }
};

template <typename Stored, typename T>
void run_cpu(const Arguments& arguments, const Tensor& entropy) {
  parallel_ranges(arguments.num_images(), 1, [&](int64_t first, int64_t last) {
    spectral_entropy_cpu(static_cast<const Stored*>(arguments.features.const_data_ptr()), arguments.features.size(1),
                         arguments.offsets.const_data_ptr<int64_t>(), first, last, entropy.mutable_data_ptr<T>());
  });
}

Tensor on_cpu(Tensor features, Tensor offsets, std::optional<int64_t> max_patches) {
  const Arguments arguments(features, offsets, max_patches);
  check_offsets_cpu(arguments.offsets, features.size(0), kOp, "offsets");
  const int64_t* offset = arguments.offsets.const_data_ptr<int64_t>();
  for (int64_t b = 0; max_patches && b < arguments.num_images(); ++b) {
    STD_TORCH_CHECK(offset[b + 1] - offset[b] <= *max_patches, kOp, ": image ", b, " has ", offset[b + 1] - offset[b],
                    " patches, more than max_patches = ", *max_patches);
  }
  const Tensor entropy = arguments.new_entropy();
  switch (features.scalar_type()) {
    case ScalarType::Float:
      run_cpu<float, float>(arguments, entropy);
      break;
    case ScalarType::BFloat16:
      run_cpu<BFloat16, float>(arguments, entropy);
      break;
    case ScalarType::Half:
      run_cpu<Float16, float>(arguments, entropy);
      break;
    default:
      run_cpu<double, double>(arguments, entropy);
  }
  return entropy;
}

DivaFeatureType feature_type(const Tensor& features) {
  if (features.scalar_type() == ScalarType::Float) return DivaFeatureType::kFloat;
  return features.scalar_type() == ScalarType::BFloat16 ? DivaFeatureType::kBFloat16 : DivaFeatureType::kFloat16;
}

Tensor on_cuda(Tensor features_in, Tensor offsets, std::optional<int64_t> max_patches) {
  const Arguments arguments(features_in, offsets, max_patches);
  const Tensor& features = arguments.features;
  const CudaGuard guard(features, kOp);
  const int64_t num_patches = features.size(0), dimensions = features.size(1);
  const int64_t side = std::min({max_patches.value_or(num_patches), num_patches, dimensions});
  const Tensor entropy = arguments.new_entropy();
  const Tensor means = torch::stable::new_empty(features, {arguments.num_images(), dimensions}, ScalarType::Float);
  const Tensor grams = torch::stable::new_empty(features, {num_patches, side}, ScalarType::Float);
  check_cuda(diva_spectral_entropy_cuda(feature_type(features), features.const_data_ptr(), num_patches, dimensions,
                                        arguments.offsets.const_data_ptr<int64_t>(), arguments.num_images(), side,
                                        means.mutable_data_ptr<float>(), grams.mutable_data_ptr<float>(),
                                        entropy.mutable_data_ptr<float>(), current_stream(features)),
             kOp);
  return entropy;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(diva_engine, CPU, m) { m.impl("spectral_entropy", TORCH_BOX(&on_cpu)); }
STABLE_TORCH_LIBRARY_IMPL(diva_engine, CUDA, m) { m.impl("spectral_entropy", TORCH_BOX(&on_cuda)); }

}  // namespace diva
