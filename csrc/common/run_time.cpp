#include "common/run_time.h"

#include <cxxabi.h>

#include <cstdlib>

#include "common/device.h"

namespace {

constexpr int kFailed = -1;
constexpr const char* kMissing =
    "this diva_engine was built without its CUDA kernels; install it where nvcc is found: DIVA_FORCE_CUDA=1 pip "
    "install . (in the source tree), or have them compiled at run time: pip install 'diva-engine[cuda-jit]'";
DivaRunTime functions{};  // all null: nobody compiles kernels
thread_local std::string error_words;
thread_local cudaError_t last_error = cudaSuccess;

// Calls the function, if there are any.
template <typename Function, typename... Arguments>
cudaError_t call(Function function, Arguments... arguments) {
  if (function != nullptr) return function(arguments...);
  error_words = kMissing;
  return kFailed;
}

}  // namespace

extern "C" void diva_set_run_time(const DivaRunTime* given) { functions = given ? *given : DivaRunTime{}; }
extern "C" void diva_set_run_time_error(const char* words) { error_words = words; }

cudaError_t cudaGetLastError() {
  const cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}

cudaError_t cudaGetDevice(int* device) {
  *device = 0;  // not used: the functions speak of the current device
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  int64_t count = 0;
  const cudaError_t error = call(functions.processors, &count);
  *value = static_cast<int>(count);
  return error;
}

cudaError_t cudaMemsetAsync(void* memory, int, size_t bytes, cudaStream_t stream) {  // launchers only ever write zeros
  return call(functions.zero, memory, static_cast<int64_t>(bytes), stream);
}

namespace diva {
namespace run_time {

cudaError_t launch(const DivaLaunch& launch) {
  if (last_error == cudaSuccess) last_error = call(functions.launch, &launch);
  return last_error;
}

cudaError_t limit_blocks(const char* kernel, const char* file, int threads, int64_t* blocks) {
  int64_t most = 0;
  if (const int error = call(functions.most_blocks, kernel, file, int64_t{threads}, &most)) return error;
  if (*blocks > most) *blocks = most;
  return cudaSuccess;
}

// "diva::run_time::Named<&(void diva::gram_kernel<float>(float const*, long))>" -> "diva::gram_kernel<float>". Where
// there is one function of that name, compilers leave the parameters and the brackets around it out.
std::string kernel_name(const char* type_name) {
  int status = 0;
  char* demangled = abi::__cxa_demangle(type_name, nullptr, nullptr, &status);
  const std::string whole = status == 0 ? demangled : type_name;
  std::free(demangled);
  const size_t begin = whole.find("diva::", whole.find('&'));
  size_t end = begin;
  for (int depth = 0; end < whole.size() && whole[end] != '('; ++end) {
    depth += whole[end] == '<' ? 1 : whole[end] == '>' ? -1 : 0;
    if (depth < 0) break;
  }
  return whole.substr(begin, end - begin);
}

}  // namespace run_time
}  // namespace diva

extern "C" const char* diva_cuda_error_string(int) { return error_words.c_str(); }

extern "C" const char* diva_cuda_missing() { return functions.launch ? nullptr : kMissing; }

extern "C" bool diva_cuda_is_capturing(void* stream) {
  int64_t answer = 0;
  return call(functions.is_capturing, stream, &answer) == cudaSuccess && answer != 0;
}

extern "C" int diva_cuda_copy_to_host(void* host, const void* device, size_t bytes, void* stream) {
  return call(functions.copy_to_host, host, device, static_cast<int64_t>(bytes), stream);
}
