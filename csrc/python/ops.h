#pragma once
#include <pybind11/pybind11.h>

namespace diva {

// Add the ops for arrays of any library to the module.
void define_groups(pybind11::module_& m);
void define_advantages(pybind11::module_& m);

}  // namespace diva
