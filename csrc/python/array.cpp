#include "python/array.h"

#include <pybind11/stl.h>

#include "common/checks.h"

namespace diva {

namespace {

// The part of DLPack's dlpack.h (version 0 capsules) that a consumer needs.
struct DLDataType {
  uint8_t code;  // 0 signed integer, 2 float
  uint8_t bits;
  uint16_t lanes;
};
struct DLTensor {
  void* data;
  int32_t device_type;  // 1 CPU, 2 CUDA, 3 pinned, 13 managed
  int32_t device_id;
  int32_t ndim;
  DLDataType type;
  int64_t* shape;
  int64_t* strides;  // in elements, or null where contiguous
  uint64_t byte_offset;
};
struct DLManagedTensor {
  DLTensor tensor;
  void* manager;
  void (*deleter)(DLManagedTensor*);
};

ElementType element_type(char kind, int bytes) {
  if (kind == 'f' && bytes == 4) return ElementType::kFloat32;
  if (kind == 'f' && bytes == 8) return ElementType::kFloat64;
  return kind == 'i' && bytes == 8 ? ElementType::kInt64 : ElementType::kOther;
}

// `unit` is 1 for strides in elements.
void check_vector(const std::vector<int64_t>& shape, const int64_t* strides, int64_t unit, const char* op,
                  const char* name) {
  check(shape.size() == 1, op, ": ", name, " must have one dimension, not ", shape.size());
  check(strides == nullptr || shape[0] < 2 || strides[0] == unit, op, ": ", name, " must be contiguous");
}

Array from_interface(const py::object& object, const char* attribute, bool is_on_cuda, const char* op,
                     const char* name) {
  const py::dict interface = object.attr(attribute);
  const auto address = interface["data"].cast<py::tuple>()[0].cast<uintptr_t>();
  const auto type = interface["typestr"].cast<std::string>();
  const auto shape = interface["shape"].cast<std::vector<int64_t>>();
  const int bytes = std::stoi(type.substr(2));
  const py::object given = interface.contains("strides") ? py::object(interface["strides"]) : py::none();
  const auto strides = given.is_none() ? std::vector<int64_t>() : given.cast<std::vector<int64_t>>();
  check_vector(shape, strides.empty() ? nullptr : strides.data(), bytes, op, name);
  return {reinterpret_cast<void*>(address), shape, element_type(type[1], bytes), is_on_cuda, object};
}

Array from_dlpack(const py::object& object, const char* op, const char* name) {
  const py::object owner = object.attr("__dlpack__")();
  auto* managed = static_cast<DLManagedTensor*>(PyCapsule_GetPointer(owner.ptr(), "dltensor"));
  if (managed == nullptr) throw py::error_already_set();
  const DLTensor& tensor = managed->tensor;  // stays alive with its capsule
  const std::vector<int64_t> shape(tensor.shape, tensor.shape + tensor.ndim);
  check_vector(shape, tensor.strides, 1, op, name);
  const bool is_on_cpu = tensor.device_type == 1 || tensor.device_type == 3;
  const bool is_on_cuda = tensor.device_type == 2 || tensor.device_type == 13;
  check(is_on_cpu || is_on_cuda, op, ": ", name, " is neither on the CPU nor on CUDA");
  const char kind = tensor.type.code == 2 ? 'f' : (tensor.type.code == 0 ? 'i' : '?');
  const auto type = tensor.type.lanes == 1 ? element_type(kind, tensor.type.bits / 8) : ElementType::kOther;
  return {static_cast<char*>(tensor.data) + tensor.byte_offset, shape, type, is_on_cuda, owner};
}

void check_beside(const Array& array, const Array& beside, const char* op, const char* name) {
  check(array.is_on_cuda == beside.is_on_cuda, op, ": ", name, " must be on the same device as the other arrays");
}

Array new_array(const Array& like, int64_t length) {
  const py::array array = like.type == ElementType::kFloat32 ? py::array(py::array_t<float>(length))
                                                             : py::array(py::array_t<double>(length));
  return {const_cast<void*>(array.data()), {length}, like.type, false, array};
}

}  // namespace

Array vector_of(const py::object& object, const char* op, const char* name) {
  if (py::hasattr(object, "__cuda_array_interface__")) {
    return from_interface(object, "__cuda_array_interface__", true, op, name);
  }
  if (py::hasattr(object, "__array_interface__")) return from_interface(object, "__array_interface__", false, op, name);
  check(py::hasattr(object, "__dlpack__"), op, ": ", name,
        " is no array: it has none of __array_interface__, __cuda_array_interface__, __dlpack__");
  return from_dlpack(object, op, name);
}

Array int64_vector_of(const py::object& object, const Array& beside, const char* op, const char* name) {
  Array array = vector_of(object, op, name);
  check(array.type == ElementType::kInt64, op, ": ", name, " must be int64");
  check_beside(array, beside, op, name);
  return array;
}

Array real_vector_of(const py::object& object, const Array& beside, const char* op, const char* name) {
  Array array = vector_of(object, op, name);
  check(array.type == beside.type, op, ": ", name, " must have the type of the other arrays");
  check_beside(array, beside, op, name);
  return array;
}

Outputs::Outputs(const py::object& out, size_t count, const Array& like, int64_t length, const char* op) {
  if (out.is_none()) {
    check(!like.is_on_cuda, op, ": for CUDA arrays give the arrays to write to as out");
    for (size_t i = 0; i < count; ++i) arrays_.push_back(new_array(like, length));
    return;
  }
  const py::sequence given = count == 1 ? py::sequence(py::make_tuple(out)) : out.cast<py::sequence>();
  check(given.size() == count, op, ": out must hold ", count, " arrays, not ", given.size());
  for (const auto item : given) {
    const auto object = py::reinterpret_borrow<py::object>(item);
    arrays_.push_back(real_vector_of(object, like, op, "out"));
    check(arrays_.back().shape[0] == length, op, ": out must have ", length, " entries, not ", arrays_.back().shape[0]);
    arrays_.back().owner = object;
  }
}

py::object Outputs::result() const {
  if (arrays_.size() == 1) return arrays_[0].owner;
  py::tuple tuple(arrays_.size());
  for (size_t i = 0; i < arrays_.size(); ++i) tuple[i] = arrays_[i].owner;
  return tuple;
}

}  // namespace diva
