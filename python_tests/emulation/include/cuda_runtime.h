#pragma once
// Stands in for CUDA's header of this name when a kernel file is compiled by g++ for a test: the language, the warp and
// block operations, exact arithmetic, and the few runtime calls that launchers make. What is missing here is a compile
// error, never a guess.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "fibers.h"

#define DIVA_EMULATE_CUDA 1
#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __shared__ static thread_local
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
#ifndef __restrict__
#define __restrict__ __restrict
#endif

#define threadIdx emulation::thread_index
#define blockIdx emulation::block_index
#define blockDim emulation::block_size
#define gridDim emulation::grid_size
constexpr int warpSize = emulation::kWarp;

#define DIVA_GRID_SYNC() emulation::wait_at(emulation::State::kAtGrid)
#define DIVA_DYNAMIC_SHARED(type, name) type* name = reinterpret_cast<type*>(emulation::dynamic_shared.data())
#define DIVA_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  ((void)(stream), emulation::launch(grid, block, shared_bytes, [=] { kernel(__VA_ARGS__); }))
#define DIVA_LAUNCH_COOPERATIVE(kernel, grid, block, shared_bytes, stream, ...)                            \
  ((void)(stream), emulation::launch_cooperative(grid, block, shared_bytes, [=] { kernel(__VA_ARGS__); }), \
   cudaGetLastError())

// Warps and blocks
inline void __syncthreads() { emulation::wait_at(emulation::State::kAtBlock); }
inline void __syncwarp(unsigned = ~0u) { emulation::wait_at(emulation::State::kAtWarp); }
inline void __threadfence() {}
inline void __threadfence_block() {}
inline int emulated_lane() { return emulation::current % emulation::kWarp; }

template <typename T>
T __shfl_sync(unsigned, T value, int source) {
  return emulation::exchange(value, source % emulation::kWarp);
}
template <typename T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return emulation::exchange(value, emulated_lane() ^ mask);
}
template <typename T>
T __shfl_down_sync(unsigned, T value, int delta) {
  const int source = emulated_lane() + delta;
  return emulation::exchange(value, source < emulation::kWarp ? source : emulated_lane());
}
template <typename T>
T __shfl_up_sync(unsigned, T value, int delta) {
  const int source = emulated_lane() - delta;
  return emulation::exchange(value, source >= 0 ? source : emulated_lane());
}
inline unsigned __ballot_sync(unsigned, bool predicate) { return emulation::ballot(predicate); }
inline bool __any_sync(unsigned, bool predicate) { return emulation::ballot(predicate) != 0; }
inline bool __all_sync(unsigned, bool predicate) { return emulation::ballot(!predicate) == 0; }

// Atomics: only one fiber runs at a time.
template <typename T>
T atomicAdd(T* address, T value) {
  const T old = *address;
  *address = old + value;
  return old;
}
template <typename T>
T atomicMin(T* address, T value) {
  const T old = *address;
  *address = std::min(old, value);
  return old;
}
template <typename T>
T atomicMax(T* address, T value) {
  const T old = *address;
  *address = std::max(old, value);
  return old;
}
template <typename T>
T atomicExch(T* address, T value) {
  const T old = *address;
  *address = value;
  return old;
}
template <typename T>
T atomicCAS(T* address, T compare, T value) {
  const T old = *address;
  if (old == compare) *address = value;
  return old;
}

// Arithmetic that is exact on both devices. Approximate intrinsics (__expf and the like) are left out on purpose.
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }
inline float __fmaf_rn(float a, float b, float c) { return std::fmaf(a, b, c); }
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>((static_cast<uint64_t>(a) * b) >> 32); }
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>((static_cast<uint64_t>(high) << 32 | low) >> (shift & 31));
}
inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
  const uint64_t bytes = static_cast<uint64_t>(high) << 32 | low;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i)
    result |= static_cast<unsigned>(bytes >> (8 * (selector >> (4 * i) & 7)) & 0xff) << (8 * i);
  return result;
}
// Two 16-bit numbers times the lower, or upper, two bytes.
inline unsigned __dp2a_lo(unsigned words, unsigned bytes, unsigned sum) {
  return sum + (words & 0xffff) * (bytes & 0xff) + (words >> 16) * (bytes >> 8 & 0xff);
}
inline unsigned __dp2a_hi(unsigned words, unsigned bytes, unsigned sum) { return __dp2a_lo(words, bytes >> 16, sum); }
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline int __clz(int bits) { return bits == 0 ? 32 : __builtin_clz(static_cast<unsigned>(bits)); }
template <typename To, typename From>
To emulated_bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}
inline unsigned __float_as_uint(float value) { return emulated_bits<unsigned>(value); }
inline int __float_as_int(float value) { return emulated_bits<int>(value); }
inline float __uint_as_float(unsigned bits) { return emulated_bits<float>(bits); }
inline float __int_as_float(int bits) { return emulated_bits<float>(bits); }
using std::max;
using std::min;

// Cached loads and streaming stores
template <typename T>
T __ldg(const T* address) {
  return *address;
}
template <typename T>
T __ldcs(const T* address) {
  return *address;
}
template <typename T>
void __stcs(T* address, T value) {
  *address = value;
}

// Vectors
#define DIVA_EMULATED_VECTORS(T, name)                                      \
  struct name##2 { T x, y; };                                               \
  struct __attribute__((aligned(sizeof(T) * 4))) name##4 { T x, y, z, w; }; \
  inline name##2 make_##name##2(T x, T y) { return {x, y}; }                \
  inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
DIVA_EMULATED_VECTORS(float, float)
DIVA_EMULATED_VECTORS(int, int)
DIVA_EMULATED_VECTORS(unsigned, uint)
DIVA_EMULATED_VECTORS(unsigned char, uchar)

// The runtime: a device of two processors that holds two blocks each.
typedef int cudaError_t;
typedef void* cudaStream_t;
enum { cudaSuccess = 0, cudaErrorEmulation = 1 };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount, cudaDevAttrMaxSharedMemoryPerBlockOptin };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
enum cudaStreamCaptureStatus { cudaStreamCaptureStatusNone };

inline thread_local std::string emulated_error;
inline cudaError_t cudaGetLastError() {
  const std::lock_guard<std::mutex> lock(emulation::error_mutex);
  if (emulation::error_text.empty()) return cudaSuccess;
  emulated_error.swap(emulation::error_text);
  emulation::error_text.clear();
  return cudaErrorEmulation;
}
inline cudaError_t cudaPeekAtLastError() { return emulation::error_text.empty() ? cudaSuccess : cudaErrorEmulation; }
inline const char* cudaGetErrorString(cudaError_t error) { return error ? emulated_error.c_str() : "no error"; }
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrMultiProcessorCount ? 2 : 227 << 10;
  return cudaSuccess;
}
template <typename Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel*, int, size_t) {
  *blocks = 2;
  return cudaSuccess;
}
template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel*, cudaFuncAttribute, int) {
  return cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* address, int value, size_t bytes, cudaStream_t) {
  std::memset(address, value, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, int, cudaStream_t) {
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaMallocAsync(void** memory, size_t bytes, cudaStream_t) {
  *memory = std::malloc(bytes);
  return cudaSuccess;
}
inline cudaError_t cudaFreeAsync(void* memory, cudaStream_t) {
  std::free(memory);
  return cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  *status = cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
enum { cudaMemcpyDeviceToHost = 2 };
