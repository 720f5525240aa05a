#pragma once
// Entropy of the spectrum of an image's patch features.
//
// The centred features, patches x dimensions, are multiplied with themselves over the longer side. Householder
// reflections make that matrix tridiagonal; Sturm counts then find every eigenvalue by bisection, each on its own,
// without vectors.
#include "common/float16.h"

namespace diva {

// Where a reflection sends a row x behind the diagonal: v = x but for v[0], x - scale * v (v . x) = (alpha, 0, 0, ...).
template <typename T>
struct Reflection {
  T alpha;
  T first;  // v[0]
  T scale;  // 2 / v.v
};

// A row that is zero behind its first entry already, to within what float can tell, stays as it is. The matrix has
// trace 1.
template <typename T>
HOST_DEVICE Reflection<T> reflection(T first, T squares_behind) {
  if (!(squares_behind > T(1e-30))) return {first, T(0), T(0)};
  const T norm = sqrt(first * first + squares_behind);
  const T alpha = first > 0 ? -norm : norm;
  return {alpha, first - alpha, T(2) / (squares_behind + (first - alpha) * (first - alpha))};
}

// One step of a Sturm count. The number of negative pivots is the number of eigenvalues below x.
template <typename T>
HOST_DEVICE T sturm_pivot(T diagonal, T coupling_squared, T x, T pivot_before) {
  const T pivot = diagonal - x - coupling_squared / pivot_before;
  const T smallest = T(1e-30);
  return fabs(pivot) < smallest ? -smallest : pivot;
}

constexpr int kSpectrumThreads = 512;  // of the block that finds an image's eigenvalues on CUDA
constexpr int kBisections = 30;        // eigenvalues are shares of 1: to 1e-9

template <typename T>
HOST_DEVICE T entropy_term(T share) {
  return share > 0 ? -share * log(share) : T(0);
}

// Features that differ from their mean by less than a millionth are equal but for rounding: there is no spread to speak
// of. `spread` and `squares` are sums of squares of the centred and of the uncentred features.
template <typename T>
HOST_DEVICE bool has_no_spread(T spread, T squares) {
  return spread <= T(1e-12) * squares;
}

#if !defined(__CUDACC_RTC__)
// Images first..last-1 of features [P,d] with offsets [B+1] -> entropy [B].
template <typename Stored, typename T>
void spectral_entropy_cpu(const Stored* features, int64_t dimensions, const int64_t* offsets, int64_t first,
                          int64_t last, T* entropy);
#endif

}  // namespace diva

#if !defined(__CUDACC_RTC__)
enum class DivaFeatureType : int { kFloat, kBFloat16, kFloat16 };

// features [num_patches, dimensions], offsets [num_images + 1] -> entropy [num_images]. `means` is working memory
// [num_images, dimensions], `grams` is [num_patches, side] with side = min(most patches of an image, dimensions). An
// image with more patches than that gives NaN. Returns a cudaError_t.
extern "C" int diva_spectral_entropy_cuda(DivaFeatureType type, const void* features, int64_t num_patches,
                                          int64_t dimensions, const int64_t* offsets, int64_t num_images, int64_t side,
                                          float* means, float* grams, float* entropy, void* stream);
#endif
