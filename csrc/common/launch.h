#pragma once
// Everything a launcher needs. The CPU emulation of the tests (python_tests/emulation) supplies its own
// <cuda_runtime.h> and its own DIVA_LAUNCH, so a kernel file compiles unchanged under g++. With DIVA_RUN_TIME_KERNELS
// g++ compiles only its launchers, for a library whose kernels are compiled at run time.
#include "common/macros.h"

#if defined(DIVA_RUN_TIME_KERNELS)
#include "common/run_time.h"
#elif !defined(__CUDACC_RTC__)
#include <cuda_runtime.h>
// Leave to launch with so many bytes of dynamic shared memory.
#define DIVA_ALLOW_SHARED(kernel, bytes) \
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes))
#endif

#if defined(__CUDACC__)
// Shared memory whose size the launch gives.
#define DIVA_DYNAMIC_SHARED(type, name) extern __shared__ type name[]
#endif

#if defined(__CUDACC__) && !defined(__CUDACC_RTC__)
#define DIVA_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  kernel<<<grid, block, shared_bytes, static_cast<cudaStream_t>(stream)>>>(__VA_ARGS__)
#endif
