#pragma once
// Grids whose blocks wait for each other. Apart from launch.h, because CUDA's header for it takes as long to compile as
// a whole kernel file.
#include "common/launch.h"

#if defined(__CUDACC__)
#include <cooperative_groups.h>
// Waits for all threads of a grid that was launched with DIVA_LAUNCH_COOPERATIVE.
#define DIVA_GRID_SYNC() cooperative_groups::this_grid().sync()
#endif

#if !defined(__CUDACC_RTC__) && !defined(DIVA_RUN_TIME_KERNELS)
namespace diva {
// A cooperative grid must fit on the device at once.
template <typename Kernel>
int limit_cooperative_blocks(Kernel* kernel, int threads, int64_t* blocks) {
  int device = 0, processors = 0, blocks_each = 0;
  if (const int error = cudaGetDevice(&device)) return error;
  if (const int error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device)) return error;
  if (const int error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks_each, kernel, threads, 0)) return error;
  const int64_t most = static_cast<int64_t>(processors) * blocks_each;
  if (*blocks > most) *blocks = most;
  return cudaSuccess;
}
}  // namespace diva
#define DIVA_LIMIT_COOPERATIVE(kernel, threads, blocks) diva::limit_cooperative_blocks(kernel, threads, blocks)
#endif

#if defined(__CUDACC__) && !defined(__CUDACC_RTC__)
namespace diva {
template <typename... Parameters, typename... Arguments>
cudaError_t launch_cooperative(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, void* stream,
                               Arguments... arguments) {
  return [&](Parameters... converted) {
    void* pointers[] = {static_cast<void*>(&converted)...};
    return cudaLaunchCooperativeKernel(reinterpret_cast<void*>(kernel), grid, block, pointers, shared_bytes,
                                       static_cast<cudaStream_t>(stream));
  }(arguments...);
}
}  // namespace diva
#define DIVA_LAUNCH_COOPERATIVE(kernel, grid, block, shared_bytes, stream, ...) \
  diva::launch_cooperative(kernel, grid, block, shared_bytes, stream, __VA_ARGS__)
#endif
