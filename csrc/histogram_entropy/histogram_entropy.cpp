#include "histogram_entropy/histogram_entropy.h"

#include "common/glue.h"

namespace diva {

namespace {

constexpr const char* kOp = "histogram_entropy";

Tensor images_argument(const Tensor& images, const Tensor& pixels) {
  STD_TORCH_CHECK(images.scalar_type() == ScalarType::Long && images.dim() == 2 && images.size(1) == kImageFields, kOp,
                  ": images must be Long and [B, 4]: first byte, height, width, channels");
  check_same_device(images, pixels, kOp, "images");
  return images.is_contiguous() ? images : torch::stable::contiguous(images);
}

Tensor on_cpu(Tensor pixels, Tensor images) {
  pixels = vector_argument(pixels, ScalarType::Byte, kOp, "pixels");
  images = images_argument(images, pixels);
  const int64_t num_images = images.size(0), num_bytes = pixels.numel();
  const int64_t* image = images.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < num_images; ++i) {
    const int64_t *fields = image + i * kImageFields, bytes = fields[1] * fields[2] * fields[3];
    STD_TORCH_CHECK(bytes > 0 && fields[0] >= 0 && fields[0] + bytes <= num_bytes, kOp, ": image ", i,
                    " is empty or lies outside the pixels");
  }
  Tensor entropy = torch::stable::new_empty(pixels, {num_images}, ScalarType::Float);
  const uint8_t* from = pixels.const_data_ptr<uint8_t>();
  float* to = entropy.mutable_data_ptr<float>();
  parallel_ranges(num_images, 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t* fields = image + i * kImageFields;
      to[i] = histogram_entropy_cpu(from + fields[0], fields[1] * fields[2], fields[3]);
    }
  });
  return entropy;
}

Tensor on_cuda(Tensor pixels, Tensor images) {
  pixels = vector_argument(pixels, ScalarType::Byte, kOp, "pixels");
  images = images_argument(images, pixels);
  const int64_t num_images = images.size(0);
  const CudaGuard guard(pixels, kOp);
  Tensor entropy = torch::stable::new_empty(pixels, {num_images}, ScalarType::Float);
  Tensor histograms = torch::stable::new_empty(pixels, {num_images * kGreyLevels}, ScalarType::Int);
  check_cuda(diva_histogram_entropy_cuda(pixels.const_data_ptr<uint8_t>(), images.const_data_ptr<int64_t>(), num_images,
                                         reinterpret_cast<uint32_t*>(histograms.mutable_data_ptr<int32_t>()),
                                         entropy.mutable_data_ptr<float>(), current_stream(pixels)),
             kOp);
  return entropy;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(diva_engine, CPU, m) { m.impl("histogram_entropy", TORCH_BOX(&on_cpu)); }
STABLE_TORCH_LIBRARY_IMPL(diva_engine, CUDA, m) { m.impl("histogram_entropy", TORCH_BOX(&on_cuda)); }

}  // namespace diva
