#include "common/device.h"

#include "common/launch.h"

#define DIVA_STRING(...) #__VA_ARGS__
#define DIVA_EXPANDED_STRING(...) DIVA_STRING(__VA_ARGS__)

extern "C" const char* diva_cuda_error_string(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

extern "C" const char* diva_cuda_architectures() { return DIVA_EXPANDED_STRING(__CUDA_ARCH_LIST__); }
