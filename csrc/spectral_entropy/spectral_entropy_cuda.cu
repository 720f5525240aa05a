#include "common/launch.h"
#include "common/segment.h"
#include "spectral_entropy/spectral_entropy.h"
#if !defined(DIVA_RUN_TIME_KERNELS)
#include "spectral_entropy/eigenvalues_cuda.cuh"
#endif

namespace diva {

constexpr int kMeanThreads = 256;
constexpr int kGramTile = 64;      // a block makes 64 x 64 products
constexpr int kGramThreads = 256;  // 4 x 4 of them a thread
constexpr int kGramEach = 4;
constexpr int kGramDepth = 16;  // entries of the longer side in shared memory at a time
constexpr int kMaxImagesInGrid = 65535;
constexpr int kVectors = 6;  // of the length of the shorter side, in shared memory

template <typename Stored>
__global__ void patch_mean_kernel(const Stored* features, int64_t num_patches, int64_t dimensions,
                                  const int64_t* offsets, int64_t num_images, float* means);
template <typename Stored>
__global__ void gram_kernel(const Stored* features, int64_t num_patches, int64_t dimensions, const int64_t* offsets,
                            int64_t num_images, int64_t side, const float* means, float* grams);
__global__ void spectrum_kernel(const int64_t* offsets, int64_t num_patches, int64_t num_images, int64_t dimensions,
                                int64_t side, const float* means, float* grams, float* entropy);

#if !defined(DIVA_RUN_TIME_KERNELS)
// One image's features, centred, with the shorter side as rows.
template <typename Stored>
struct CentredImage {
  const Stored* features;
  const float* mean;
  int64_t dimensions;
  int64_t rows, columns;
  bool patches_are_rows;

  __device__ __forceinline__ CentredImage(const Stored* all, const float* means, int64_t dimensions_, Segment patches,
                                          int64_t image)
      : features(all + patches.begin * dimensions_),
        mean(means + image * dimensions_),
        dimensions(dimensions_),
        patches_are_rows(patches.count <= dimensions_) {
    rows = patches_are_rows ? patches.count : dimensions;
    columns = patches_are_rows ? dimensions : patches.count;
  }

  __device__ __forceinline__ float at(int64_t row, int64_t column) const {
    if (row >= rows || column >= columns) return 0.0f;
    const int64_t patch = patches_are_rows ? row : column, k = patches_are_rows ? column : row;
    return to_float(features[patch * dimensions + k]) - mean[k];
  }
};

// features [P,d], offsets [B+1] -> means [B,d] over each image's patches. One thread a dimension of an image.
template <typename Stored>
__global__ void __launch_bounds__(kMeanThreads)
    patch_mean_kernel(const Stored* __restrict__ features, int64_t num_patches, int64_t dimensions,
                      const int64_t* __restrict__ offsets, int64_t num_images, float* __restrict__ means) {
  const int64_t k = static_cast<int64_t>(blockIdx.x) * kMeanThreads + threadIdx.x;
  if (k >= dimensions) return;
  for (int64_t b = blockIdx.y; b < num_images; b += gridDim.y) {
    const Segment patches = segment_at(offsets, b, num_patches);
    float sum = 0.0f;
    for (int64_t p = 0; p < patches.count; ++p) sum += to_float(features[(patches.begin + p) * dimensions + k]);
    means[b * dimensions + k] = patches.count > 0 ? sum / static_cast<float>(patches.count) : 0.0f;
  }
}

// One tile of one image's products of rows, and its mirror image. Threads form a 16 x 16 grid, 4 x 4 products each.
template <typename Stored>
__device__ __forceinline__ void gram_tile(const CentredImage<Stored>& x, int64_t top, int64_t left, int64_t side,
                                          float* gram) {
  __shared__ float upper[kGramDepth][kGramTile + 1], lower[kGramDepth][kGramTile + 1];
  const int row = threadIdx.x / 16, column = threadIdx.x % 16;
  float sums[kGramEach][kGramEach] = {};
  for (int64_t start = 0; start < x.columns; start += kGramDepth) {
    for (int i = threadIdx.x; i < kGramDepth * kGramTile; i += kGramThreads) {
      // Neighbouring threads read neighbouring features, whichever side is the row.
      const int depth = x.patches_are_rows ? i % kGramDepth : i / kGramTile;
      const int entry = x.patches_are_rows ? i / kGramDepth : i % kGramTile;
      upper[depth][entry] = x.at(top + entry, start + depth);
      lower[depth][entry] = x.at(left + entry, start + depth);
    }
    __syncthreads();
#pragma unroll
    for (int depth = 0; depth < kGramDepth; ++depth) {
#pragma unroll
      for (int a = 0; a < kGramEach; ++a) {
#pragma unroll
        for (int b = 0; b < kGramEach; ++b) sums[a][b] += upper[depth][row + 16 * a] * lower[depth][column + 16 * b];
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (int a = 0; a < kGramEach; ++a) {
#pragma unroll
    for (int b = 0; b < kGramEach; ++b) {
      const int64_t i = top + row + 16 * a, j = left + column + 16 * b;
      if (i >= x.rows || j >= x.rows) continue;
      gram[i * side + j] = sums[a][b];
      gram[j * side + i] = sums[a][b];
    }
  }
}

// features, means -> grams: that of image b begins at row offsets[b] of [P, side]. One block a tile on or below the
// diagonal; blocks beyond an image's size leave at once.
template <typename Stored>
__global__ void __launch_bounds__(kGramThreads)
    gram_kernel(const Stored* __restrict__ features, int64_t num_patches, int64_t dimensions,
                const int64_t* __restrict__ offsets, int64_t num_images, int64_t side, const float* __restrict__ means,
                float* __restrict__ grams) {
  // Tile number n = i (i + 1) / 2 + j with j <= i.
  int64_t i = static_cast<int64_t>((sqrt(8.0 * blockIdx.x + 1.0) - 1.0) / 2.0);
  while ((i + 1) * (i + 2) / 2 <= static_cast<int64_t>(blockIdx.x)) ++i;
  while (i * (i + 1) / 2 > static_cast<int64_t>(blockIdx.x)) --i;
  const int64_t j = static_cast<int64_t>(blockIdx.x) - i * (i + 1) / 2;
  for (int64_t b = blockIdx.y; b < num_images; b += gridDim.y) {
    const Segment patches = segment_at(offsets, b, num_patches);
    const CentredImage<Stored> x(features, means, dimensions, patches, b);
    if (x.rows > side || i * kGramTile >= x.rows) continue;
    gram_tile(x, i * kGramTile, j * kGramTile, side, grams + patches.begin * side);
  }
}

// grams, means -> entropy [B]. One block an image: reflections by warps, then one eigenvalue a thread.
__global__ void __launch_bounds__(kSpectrumThreads)
    spectrum_kernel(const int64_t* __restrict__ offsets, int64_t num_patches, int64_t num_images, int64_t dimensions,
                    int64_t side, const float* __restrict__ means, float* __restrict__ grams,
                    float* __restrict__ entropy) {
  DIVA_DYNAMIC_SHARED(float, vectors);
  const int64_t b = blockIdx.x;
  const Segment patches = segment_at(offsets, b, num_patches);
  const int64_t size = patches.count < dimensions ? patches.count : dimensions;
  if (size == 0 || size > side) {
    if (threadIdx.x == 0) entropy[b] = size == 0 ? 0.0f : nanf("");
    return;
  }
  float* gram = grams + patches.begin * side;
  float spread = 0.0f, squares = 0.0f;
  for (int64_t i = threadIdx.x; i < size; i += kSpectrumThreads) spread += gram[i * side + i];
  for (int64_t k = threadIdx.x; k < dimensions; k += kSpectrumThreads) {
    squares += means[b * dimensions + k] * means[b * dimensions + k];
  }
  spread = block_sum(spread);
  squares = block_sum(squares) * static_cast<float>(patches.count) + spread;
  if (has_no_spread(spread, squares)) {
    if (threadIdx.x == 0) entropy[b] = 0.0f;
    return;
  }
  float *diagonal = vectors + 4 * side, *coupling_squared = vectors + 5 * side;
  tridiagonalize(gram, size, side, 1.0f / spread, vectors, diagonal, coupling_squared);
  __syncthreads();
  float sum = 0.0f;
  for (int64_t i = threadIdx.x; i < size; i += kSpectrumThreads) {
    sum += entropy_term(bisect(diagonal, coupling_squared, size, i));
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) entropy[b] = spread == spread ? sum : spread;
}

#endif  // DIVA_RUN_TIME_KERNELS

#if !defined(__CUDACC_RTC__)
template <typename Stored>
int launch_spectral_entropy(const Stored* features, int64_t num_patches, int64_t dimensions, const int64_t* offsets,
                            int64_t num_images, int64_t side, float* means, float* grams, float* entropy,
                            void* stream) {
  const auto images = static_cast<unsigned>(num_images < kMaxImagesInGrid ? num_images : kMaxImagesInGrid);
  const auto columns = static_cast<unsigned>((dimensions + kMeanThreads - 1) / kMeanThreads);
  const int64_t tiles = (side + kGramTile - 1) / kGramTile;
  const int shared_bytes = static_cast<int>(kVectors * side * sizeof(float));
  if (const int error = DIVA_ALLOW_SHARED(spectrum_kernel, shared_bytes)) return error;
  if (columns > 0) {
    DIVA_LAUNCH(patch_mean_kernel<Stored>, dim3(columns, images), dim3(kMeanThreads), 0, stream, features, num_patches,
                dimensions, offsets, num_images, means);
  }
  if (tiles > 0) {
    DIVA_LAUNCH(gram_kernel<Stored>, dim3(static_cast<unsigned>(tiles * (tiles + 1) / 2), images), dim3(kGramThreads),
                0, stream, features, num_patches, dimensions, offsets, num_images, side, means, grams);
  }
  DIVA_LAUNCH(spectrum_kernel, dim3(static_cast<unsigned>(num_images)), dim3(kSpectrumThreads), shared_bytes, stream,
              offsets, num_patches, num_images, dimensions, side, means, grams, entropy);
  return cudaGetLastError();
}
#endif

}  // namespace diva

#if !defined(__CUDACC_RTC__)
extern "C" int diva_spectral_entropy_cuda(DivaFeatureType type, const void* features, int64_t num_patches,
                                          int64_t dimensions, const int64_t* offsets, int64_t num_images, int64_t side,
                                          float* means, float* grams, float* entropy, void* stream) {
  if (num_images == 0) return cudaSuccess;
  if (type == DivaFeatureType::kFloat) {
    return diva::launch_spectral_entropy(static_cast<const float*>(features), num_patches, dimensions, offsets,
                                         num_images, side, means, grams, entropy, stream);
  }
  if (type == DivaFeatureType::kBFloat16) {
    return diva::launch_spectral_entropy(static_cast<const diva::BFloat16*>(features), num_patches, dimensions, offsets,
                                         num_images, side, means, grams, entropy, stream);
  }
  return diva::launch_spectral_entropy(static_cast<const diva::Float16*>(features), num_patches, dimensions, offsets,
                                       num_images, side, means, grams, entropy, stream);
}
#endif
