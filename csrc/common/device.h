#pragma once
// What the host asks of the CUDA runtime, without its headers. Ints are cudaError_t.
#include <cstddef>

extern "C" {
const char* diva_cuda_error_string(int error);
// Why there are no kernels to launch, and the mend; null where there are.
const char* diva_cuda_missing();
// The architectures the kernels were compiled for, as in "800,900".
const char* diva_cuda_architectures();
// Whether the stream is being captured into a graph, so that nothing may wait for it.
bool diva_cuda_is_capturing(void* stream);
// Memory in the order of the stream.
int diva_cuda_allocate(void** memory, size_t bytes, void* stream);
int diva_cuda_free(void* memory, void* stream);
// Copies and waits for the stream.
int diva_cuda_copy_to_host(void* host, const void* device, size_t bytes, void* stream);
}
