#pragma once
// What the torch glue of every op shares: checks with words, the current stream, CUDA errors. LibTorch stable ABI only,
// so one binary serves every torch from 2.10 on.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "common/checks.h"

namespace diva {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// A 1-D contiguous tensor of the given type; `op` and `name` stand in the message.
Tensor vector_argument(const Tensor& tensor, ScalarType type, const char* op, const char* name);

// The same for float32, and float64 where the tensor lives on the CPU.
Tensor real_vector_argument(const Tensor& tensor, const char* op, const char* name);

void check_length(const Tensor& tensor, int64_t length, const char* op, const char* name);
void check_same_device(const Tensor& tensor, const Tensor& other, const char* op, const char* name);
void check_same_type(const Tensor& tensor, const Tensor& other, const char* op, const char* name);

// CSR offsets [G+1] as a contiguous int64 vector with at least one entry.
Tensor offsets_argument(const Tensor& offsets, const char* op, const char* name);

// On the CPU: 0 at the start, `total` at the end, never falling. Throws with the first offset that is wrong.
void check_offsets_cpu(const Tensor& offsets, int64_t total, const char* op, const char* name);

// Calls f(first, last) over [0, count) on torch's threads, at least `grain` items a call.
template <typename F>
void parallel_ranges(int64_t count, int64_t grain, const F& f) {
  if (count <= grain) {
    f(int64_t{0}, count);
    return;
  }
  torch::stable::parallel_for(0, count, grain, f);
}

// Makes the tensor's device the current one. Throws where this library has no kernels and nobody compiles them.
class CudaGuard {
 public:
  CudaGuard(const Tensor& tensor, const char* op);

 private:
  std::optional<torch::stable::accelerator::DeviceGuard> guard_;
};

void* current_stream(const Tensor& tensor);
void check_cuda(int error, const char* op);

}  // namespace diva
