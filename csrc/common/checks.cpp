#include "common/checks.h"

namespace diva {

void check_offsets(const int64_t* offsets, int64_t last, int64_t total, const char* op, const char* name) {
  check(offsets[0] == 0, op, ": ", name, " must begin with 0, not ", offsets[0]);
  check(offsets[last] == total, op, ": ", name, " must end with ", total, ", not ", offsets[last]);
  for (int64_t g = 0; g < last; ++g) {
    if (offsets[g] <= offsets[g + 1]) continue;
    check(false, op, ": ", name, " must never fall, but entry ", g, " is ", offsets[g], " and entry ", g + 1, " is ",
          offsets[g + 1]);
  }
}

}  // namespace diva
