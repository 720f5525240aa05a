#pragma once
// Arrays of any library, read in place: NumPy and its kin by __array_interface__, CuPy, Numba and torch by
// __cuda_array_interface__, others by DLPack.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>
#include <vector>

namespace diva {

namespace py = pybind11;

enum class ElementType { kFloat32, kFloat64, kInt64, kOther };

struct Array {
  void* data;
  std::vector<int64_t> shape;
  ElementType type;
  bool is_on_cuda;
  py::object owner;  // keeps the memory alive
};

// A one-dimensional contiguous array; `op` and `name` stand in the message where it is none.
Array vector_of(const py::object& object, const char* op, const char* name);

// The same, of one element type and on the device of another array.
Array int64_vector_of(const py::object& object, const Array& beside, const char* op, const char* name);
Array real_vector_of(const py::object& object, const Array& beside, const char* op, const char* name);

// Where an op writes: the arrays `out` of the caller, or new NumPy arrays where there are none. CUDA arrays must be
// given, since only the caller's library can allocate them.
class Outputs {
 public:
  Outputs(const py::object& out, size_t count, const Array& like, int64_t length, const char* op);

  template <typename T>
  T* data(size_t i) const {
    return static_cast<T*>(arrays_[i].data);
  }

  // What Python gets: one array or a tuple.
  py::object result() const;

 private:
  std::vector<Array> arrays_;
};

}  // namespace diva
