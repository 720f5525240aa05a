#include "common/glue.h"

#include "common/device.h"
// Lives in libtorch_cuda.so. Weak, because a torch without CUDA has no such symbol and the library must load there too.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream);

namespace diva {

namespace {

Tensor as_vector(const Tensor& tensor, const char* op, const char* name) {
  check(tensor.dim() == 1, op, ": ", name, " must have one dimension, not ", tensor.dim());
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

}  // namespace

Tensor vector_argument(const Tensor& tensor, ScalarType type, const char* op, const char* name) {
  check(tensor.scalar_type() == type, op, ": ", name, " must be ", torch::headeronly::toString(type), ", not ",
        torch::headeronly::toString(tensor.scalar_type()));
  return as_vector(tensor, op, name);
}

Tensor real_vector_argument(const Tensor& tensor, const char* op, const char* name) {
  const bool is_double = tensor.scalar_type() == ScalarType::Double;
  check(tensor.scalar_type() == ScalarType::Float || is_double, op, ": ", name,
        " must be Float (or Double on the CPU), not ", torch::headeronly::toString(tensor.scalar_type()));
  check(!is_double || tensor.is_cpu(), op, ": ", name, " must be Float on CUDA; Double is for checks on the CPU");
  return as_vector(tensor, op, name);
}

void check_length(const Tensor& tensor, int64_t length, const char* op, const char* name) {
  check(tensor.numel() == length, op, ": ", name, " must have ", length, " entries, not ", tensor.numel());
}

void check_same_device(const Tensor& tensor, const Tensor& other, const char* op, const char* name) {
  check(tensor.is_cpu() == other.is_cpu() && tensor.get_device_index() == other.get_device_index(), op, ": ", name,
        " must be on the same device as the other tensors");
}

void check_same_type(const Tensor& tensor, const Tensor& other, const char* op, const char* name) {
  check(tensor.scalar_type() == other.scalar_type(), op, ": ", name, " must be ",
        torch::headeronly::toString(other.scalar_type()), " like the other tensors, not ",
        torch::headeronly::toString(tensor.scalar_type()));
}

Tensor offsets_argument(const Tensor& offsets, const char* op, const char* name) {
  Tensor vector = vector_argument(offsets, ScalarType::Long, op, name);
  check(vector.numel() >= 1, op, ": ", name, " must have at least one entry, the 0 at its start");
  return vector;
}

void check_offsets_cpu(const Tensor& offsets, int64_t total, const char* op, const char* name) {
  check_offsets(offsets.const_data_ptr<int64_t>(), offsets.numel() - 1, total, op, name);
}

CudaGuard::CudaGuard(const Tensor& tensor, const char* op) {
  const char* missing = diva_cuda_missing();
  check(missing == nullptr, op, ": ", missing ? missing : "");
  guard_.emplace(tensor.get_device_index());
}

void* current_stream(const Tensor& tensor) {
  check(aoti_torch_get_current_cuda_stream != nullptr, "diva_engine: this torch has no CUDA");
  void* stream = nullptr;
  check(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream) == 0,
        "diva_engine: torch gave no current CUDA stream");
  return stream;
}

void check_cuda(int error, const char* op) {
  check(error == 0, op, ": CUDA error ", error, ": ", diva_cuda_error_string(error));
}

}  // namespace diva
