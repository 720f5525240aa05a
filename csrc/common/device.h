#pragma once
// What the host asks of the CUDA runtime, without its headers.
extern "C" {
const char* diva_cuda_error_string(int error);
// The architectures the kernels were compiled for, as in "80,90".
const char* diva_cuda_architectures();
}
