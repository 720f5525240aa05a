// The Python module diva_engine._C: what was built, and the ops for arrays of any library, without torch.
#include <pybind11/pybind11.h>

#include "python/ops.h"
#ifdef DIVA_WITH_CUDA
#include "common/device.h"
#endif

namespace py = pybind11;

namespace {

py::dict build_info() {
  py::dict info;
  info["version"] = DIVA_VERSION;
  info["commit"] = DIVA_COMMIT;
  info["compiler"] = DIVA_COMPILER;
  info["torch_abi"] = "stable, torch >= 2.10";
  info["built_against_torch"] = DIVA_TORCH_VERSION;
#ifdef DIVA_WITH_CUDA
  info["cuda"] = DIVA_CUDA_VERSION;
  info["cuda_architectures"] = diva_cuda_architectures();
#else
  info["cuda"] = py::none();
  info["cuda_architectures"] = "";
#endif
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled half of diva_engine that needs no torch.";
  m.def("build_info", &build_info, "What was built: version, commit, compiler, torch, CUDA, architectures.");
  diva::define_groups(m);
  diva::define_advantages(m);
}
