#pragma once
#include <pybind11/pybind11.h>

namespace diva {

// Adds the ops for arrays of any library to the module.
void define_ops(pybind11::module_& m);

}  // namespace diva
