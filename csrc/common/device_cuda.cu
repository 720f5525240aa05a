#include "common/device.h"

#include "common/launch.h"

#define DIVA_STRING(...) #__VA_ARGS__
#define DIVA_EXPANDED_STRING(...) DIVA_STRING(__VA_ARGS__)

extern "C" const char* diva_cuda_error_string(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

extern "C" const char* diva_cuda_missing() { return nullptr; }

extern "C" const char* diva_cuda_architectures() { return DIVA_EXPANDED_STRING(__CUDA_ARCH_LIST__); }

extern "C" bool diva_cuda_is_capturing(void* stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  cudaStreamIsCapturing(static_cast<cudaStream_t>(stream), &status);
  return status != cudaStreamCaptureStatusNone;
}

extern "C" int diva_cuda_allocate(void** memory, size_t bytes, void* stream) {
  return cudaMallocAsync(memory, bytes, static_cast<cudaStream_t>(stream));
}

extern "C" int diva_cuda_free(void* memory, void* stream) {
  return cudaFreeAsync(memory, static_cast<cudaStream_t>(stream));
}

extern "C" int diva_cuda_copy_to_host(void* host, const void* device, size_t bytes, void* stream) {
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  if (const int error = cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, cuda_stream)) return error;
  return cudaStreamSynchronize(cuda_stream);
}
