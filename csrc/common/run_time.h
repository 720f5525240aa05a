#pragma once
// Stands in for CUDA's runtime where the library is built without nvcc. The launchers of <op>_cuda.cu then compile as
// plain C++, and their kernels are named instead of linked: whoever sets the functions below (the extra cuda-jit,
// diva_engine/ops/cuda_jit.py) compiles them from the same files and launches them.
#include <cstddef>
#include <cstdint>
#include <string>
#include <typeinfo>

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

extern "C" {
// What CUDA's driver must know of a launch. The parameters' sizes are there to be checked.
struct DivaLaunch {
  const char* kernel;  // as C++ writes it: diva::gram_kernel<float>
  const char* file;    // that has it
  dim3 grid, block;
  int64_t shared_bytes;
  int64_t is_cooperative;
  void* stream;
  void** arguments;
  const int64_t* sizes;
  int64_t num_arguments;
};

// Each returns 0, or an error whose words it has given to diva_set_run_time_error.
struct DivaRunTime {
  int (*launch)(const DivaLaunch* launch);
  // The most blocks of so many threads that run on the device at once.
  int (*most_blocks)(const char* kernel, const char* file, int64_t threads, int64_t* blocks);
  int (*processors)(int64_t* count);
  int (*zero)(void* memory, int64_t bytes, void* stream);
  int (*is_capturing)(void* stream, int64_t* answer);
  int (*copy_to_host)(void* host, const void* device, int64_t bytes, void* stream);
};

__attribute__((visibility("default"))) void diva_set_run_time(const DivaRunTime* functions);  // null: none again
__attribute__((visibility("default"))) void diva_set_run_time_error(const char* words);
}

#define __global__

typedef int cudaError_t;
typedef void* cudaStream_t;
enum { cudaSuccess = 0 };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount };
cudaError_t cudaGetLastError();
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t stream);

namespace diva {
namespace run_time {

// Launches, unless an earlier launch failed whose error nobody has asked for yet.
cudaError_t launch(const DivaLaunch& launch);
cudaError_t limit_blocks(const char* kernel, const char* file, int threads, int64_t* blocks);

// From the compiler's name of Named<kernel>.
std::string kernel_name(const char* type_name);

template <auto* kernel>
struct Named {};

template <auto* kernel>
const char* name_of() {
  static const std::string name = kernel_name(typeid(Named<kernel>).name());
  return name.c_str();
}

// The arguments, converted to the kernel's parameters as a call would. The pointer is null: it brings the types.
template <typename... Parameters, typename... Arguments>
cudaError_t launch_with(void (*)(Parameters...), DivaLaunch description, Arguments... arguments) {
  return [&](Parameters... converted) {
    void* pointers[] = {const_cast<void*>(static_cast<const void*>(&converted))...};
    const int64_t sizes[] = {static_cast<int64_t>(sizeof(Parameters))...};
    description.arguments = pointers;
    description.sizes = sizes;
    description.num_arguments = sizeof...(Parameters);
    return launch(description);
  }(arguments...);
}

}  // namespace run_time
}  // namespace diva

// The kernel is named in types only: it has no definition here.
#define DIVA_LAUNCH_AS(kernel, grid, block, shared_bytes, is_cooperative, stream, ...)                          \
  diva::run_time::launch_with(                                                                                  \
      decltype(&kernel){},                                                                                      \
      DivaLaunch{diva::run_time::name_of<&kernel>(), __FILE__, grid, block, static_cast<int64_t>(shared_bytes), \
                 is_cooperative, stream, nullptr, nullptr, 0},                                                  \
      __VA_ARGS__)
#define DIVA_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  DIVA_LAUNCH_AS(kernel, grid, block, shared_bytes, 0, stream, __VA_ARGS__)
#define DIVA_LAUNCH_COOPERATIVE(kernel, grid, block, shared_bytes, stream, ...) \
  (DIVA_LAUNCH_AS(kernel, grid, block, shared_bytes, 1, stream, __VA_ARGS__), cudaGetLastError())
#define DIVA_LIMIT_COOPERATIVE(kernel, threads, blocks) \
  diva::run_time::limit_blocks(diva::run_time::name_of<&kernel>(), __FILE__, threads, blocks)
#define DIVA_ALLOW_SHARED(kernel, bytes) cudaSuccess  // whoever launches sees to it
