#pragma once
// What was launched on the emulation, for tests that compare it with what another launcher asks for.
#include <cstddef>
#include <cstdint>
#include <vector>

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

namespace emulation {

// Every launch, in order: grid, block, bytes of dynamic shared memory, whether its blocks wait for each other.
struct Plan {
  int64_t grid[3], block[3], shared_bytes, is_cooperative;
};
inline std::vector<Plan> plans;

inline void note(dim3 grid, dim3 block, size_t shared_bytes, bool is_cooperative) {
  const auto bytes = static_cast<int64_t>(shared_bytes);
  plans.push_back({{grid.x, grid.y, grid.z}, {block.x, block.y, block.z}, bytes, is_cooperative});
}

}  // namespace emulation
