// All ops of the engine: the table of contents. Each is implemented in csrc/<op>/ and explained in
// diva_engine/ops/<op>.py.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(diva_engine, m) {
  m.def("group_stats(Tensor values, Tensor offsets) -> (Tensor mean, Tensor std, Tensor min, Tensor max)");
}
