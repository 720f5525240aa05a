#pragma once
// What the ops for arrays share: checks of what the caller gave, and the call on CUDA.
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "common/checks.h"
#include "python/array.h"
#ifdef DIVA_WITH_CUDA
#include "common/device.h"
#endif

namespace diva {

using Stream = uintptr_t;
// Calls the launcher with scratch memory of so many bytes.
using Launcher = std::function<int(void* scratch)>;

inline int64_t number_of_offsets(const Array& offsets, const char* op, const char* name) {
  check(offsets.shape[0] >= 1, op, ": ", name, " must have at least one entry, the 0 at its start");
  return offsets.shape[0] - 1;
}

inline void check_entries(const Array& array, int64_t length, const char* op, const char* name) {
  check(array.shape[0] == length, op, ": ", name, " must have ", length, " entries, not ", array.shape[0]);
}

inline Array rewards_of(const py::object& object, const char* op, const char* name) {
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
inline void on_cuda(const char* op, Stream stream, int64_t scratch_bytes, const Launcher& launcher) {
  void* scratch = nullptr;
  int error = scratch_bytes ? diva_cuda_allocate(&scratch, scratch_bytes, reinterpret_cast<void*>(stream)) : 0;
  if (error == 0) error = launcher(scratch);
  if (scratch) diva_cuda_free(scratch, reinterpret_cast<void*>(stream));
  check(error == 0, op, ": CUDA error ", error, ": ", diva_cuda_error_string(error));
}
#else
inline void no_cuda(const char* op) {
  check(false, op, ": this build of diva_engine has no CUDA kernels: install it again where nvcc is found");
}
#endif

}  // namespace diva
