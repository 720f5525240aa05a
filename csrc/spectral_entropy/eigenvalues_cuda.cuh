// Eigenvalues of one image's Gram matrix by one block: reflections to tridiagonal form, then bisection.
#pragma once

#include "common/launch.h"
#include "common/segment.h"
#include "spectral_entropy/spectral_entropy.h"

namespace diva {

constexpr int kSpectrumWarps = kSpectrumThreads / kLanes;

// Sum over the block, the same for every thread. A barrier before and after: values written earlier may be read next.
__device__ __forceinline__ float block_sum(float value) {
  __shared__ float warp_sums[kSpectrumWarps];
  value = warp_sum(value);
  __syncthreads();
  if (threadIdx.x % kLanes == 0) warp_sums[threadIdx.x / kLanes] = value;
  __syncthreads();
  float sum = 0.0f;
#pragma unroll
  for (int warp = 0; warp < kSpectrumWarps; ++warp) sum += warp_sums[warp];
  return sum;
}

// gram [size, size] with rows `side` apart -> diagonal [size], squares of the couplings [size - 1], by the steps of the
// CPU: the update of one reflection is made in the pass that multiplies with the next. A warp takes a row.
__device__ __forceinline__ void tridiagonalize(float* gram, int64_t size, int64_t side, float scale_to_shares,
                                               float* vectors, float* diagonal, float* coupling_squared) {
  float *v = vectors, *w = vectors + side, *next = vectors + 2 * side, *y = vectors + 3 * side;
  const int lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes;
  for (int64_t k = threadIdx.x; k < size; k += kSpectrumThreads) v[k] = w[k] = 0.0f;
  for (int64_t i = threadIdx.x; i < size * size; i += kSpectrumThreads)
    gram[i / size * side + i % size] *= scale_to_shares;
  __syncthreads();
  for (int64_t j = 0; j < size; ++j) {
    float squares = 0.0f;
    for (int64_t k = j + threadIdx.x; k < size; k += kSpectrumThreads) {
      const float entry = gram[j * side + k] - (v[j] * w[k] + w[j] * v[k]);
      next[k] = entry;
      if (k == j) diagonal[j] = entry;
      if (k >= j + 2) squares += entry * entry;
    }
    squares = block_sum(squares);
    if (j + 1 == size) break;
    const Reflection<float> turn = reflection(next[j + 1], squares);
    __syncthreads();  // all have read next[j + 1]
    if (threadIdx.x == 0) {
      next[j + 1] = turn.first;
      coupling_squared[j] = turn.alpha * turn.alpha;
    }
    __syncthreads();
    for (int64_t i = j + 1 + warp; i < size; i += kSpectrumWarps) {
      float sum = 0.0f;
      for (int64_t k = j + 1 + lane; k < size; k += kLanes) {
        const float entry = gram[i * side + k] - (v[i] * w[k] + w[i] * v[k]);
        gram[i * side + k] = entry;
        sum += entry * next[k];
      }
      sum = warp_sum(sum);
      if (lane == 0) y[i] = sum;
    }
    __syncthreads();
    float product = 0.0f;
    for (int64_t k = j + 1 + threadIdx.x; k < size; k += kSpectrumThreads) product += y[k] * next[k];
    const float half = turn.scale / 2 * turn.scale * block_sum(product);
    for (int64_t k = j + 1 + threadIdx.x; k < size; k += kSpectrumThreads) w[k] = turn.scale * y[k] - half * next[k];
    float* before = v;
    v = next;
    next = before;
    __syncthreads();
  }
}

// Eigenvalue number `index` in rising order, a share in [0, 1].
__device__ __forceinline__ float bisect(const float* diagonal, const float* coupling_squared, int64_t size,
                                        int64_t index) {
  float low = 0.0f, high = 1.0f;
  for (int step = 0; step < kBisections; ++step) {
    const float x = (low + high) / 2;
    float pivot = 1.0f;
    int64_t below = 0;
    for (int64_t i = 0; i < size; ++i) {
      pivot = sturm_pivot(diagonal[i], i == 0 ? 0.0f : coupling_squared[i - 1], x, pivot);
      below += pivot < 0;
    }
    (below > index ? high : low) = x;
  }
  return (low + high) / 2;
}

}  // namespace diva
