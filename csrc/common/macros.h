#pragma once
// What every shared header needs: fixed-width integers and HOST_DEVICE, under g++, nvcc and NVRTC alike.
#if defined(__CUDACC_RTC__)  // NVRTC has no C++ standard library
typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef short int16_t;
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long long int64_t;
typedef unsigned long long uint64_t;
#define HOST_DEVICE __device__ __forceinline__
#else
#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__CUDACC__)
#define HOST_DEVICE __host__ __device__ __forceinline__
#else
#define HOST_DEVICE inline __attribute__((always_inline))
#endif
#endif
