#pragma once
// Loops over numbers, one lane of a vector register beside the other, with a sum in each.
#include <cstdint>

#include "common/vectorize.h"

namespace diva {

template <typename T>
using Lanes = T[kVectorLanes];

// Calls f(i, lane). Whole vectors first: their inner loop has no tail.
template <typename F>
HOST_DEVICE void over_lanes(int64_t count, F f) {
  int64_t i = 0;
  for (; i + kVectorLanes <= count; i += kVectorLanes) {
    for (int lane = 0; lane < kVectorLanes; ++lane) f(i + lane, lane);
  }
  for (int lane = 0; i + lane < count; ++lane) f(i + lane, lane);
}

template <typename Number>
HOST_DEVICE void add_lanes(double* sums, const Lanes<Number>& lanes) {
  for (int lane = 0; lane < kVectorLanes; ++lane) sums[lane] += static_cast<double>(lanes[lane]);
}

}  // namespace diva
