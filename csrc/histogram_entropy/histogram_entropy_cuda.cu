#include "common/launch.h"
#include "histogram_entropy/histogram_entropy.h"

namespace diva {

constexpr int kHistogramThreads = 256;
constexpr int kBlocksAnImage = 16;

__global__ void histogram_kernel(const uint8_t* pixels, const int64_t* images, uint32_t* histograms);
__global__ void entropy_kernel(const int64_t* images, const uint32_t* histograms, float* entropy);

#if !defined(DIVA_RUN_TIME_KERNELS)
// images [B, 4] -> histograms [B, 256]. 16 blocks an image, each with a histogram in shared memory; threads stride over
// the pixels. The counts are integers, so the order of the atomics leaves no trace.
__global__ void __launch_bounds__(kHistogramThreads)
    histogram_kernel(const uint8_t* __restrict__ pixels, const int64_t* __restrict__ images,
                     uint32_t* __restrict__ histograms) {
  __shared__ uint32_t histogram[kGreyLevels];
  const int64_t* image = images + int64_t{blockIdx.y} * kImageFields;
  const int64_t count = image[1] * image[2], channels = image[3];
  const uint8_t* first = pixels + image[0];
  histogram[threadIdx.x] = 0;
  __syncthreads();
  for (int64_t p = int64_t{blockIdx.x} * kHistogramThreads + threadIdx.x; p < count;
       p += kBlocksAnImage * kHistogramThreads) {
    const uint8_t* pixel = first + p * channels;
    const uint32_t level = channels == 1 ? pixel[0] : grey_level(pixel[0], pixel[1], pixel[2]);
    atomicAdd(&histogram[level], 1u);
  }
  __syncthreads();
  if (histogram[threadIdx.x] == 0) return;
  atomicAdd(&histograms[int64_t{blockIdx.y} * kGreyLevels + threadIdx.x], histogram[threadIdx.x]);
}

// histograms [B, 256] -> entropy [B]. One block an image, one thread a level; the first thread adds them up in order.
__global__ void __launch_bounds__(kHistogramThreads)
    entropy_kernel(const int64_t* __restrict__ images, const uint32_t* __restrict__ histograms,
                   float* __restrict__ entropy) {
  __shared__ double terms[kGreyLevels];
  const int64_t* image = images + int64_t{blockIdx.x} * kImageFields;
  terms[threadIdx.x] = level_term(histograms[int64_t{blockIdx.x} * kGreyLevels + threadIdx.x]);
  __syncthreads();
  if (threadIdx.x == 0) entropy[blockIdx.x] = entropy_of(terms, image[1] * image[2]);
}

#endif  // DIVA_RUN_TIME_KERNELS

}  // namespace diva

#if !defined(__CUDACC_RTC__)
extern "C" int diva_histogram_entropy_cuda(const uint8_t* pixels, const int64_t* images, int64_t num_images,
                                           uint32_t* histograms, float* entropy, void* stream) {
  if (num_images == 0) return cudaSuccess;
  const size_t bytes = sizeof(uint32_t) * diva::kGreyLevels * num_images;
  const cudaError_t error = cudaMemsetAsync(histograms, 0, bytes, static_cast<cudaStream_t>(stream));
  if (error != cudaSuccess) return error;
  constexpr int64_t kMostInAGrid = 65535;  // blocks in y
  for (int64_t first = 0; first < num_images; first += kMostInAGrid) {
    const unsigned count = static_cast<unsigned>(num_images - first < kMostInAGrid ? num_images - first : kMostInAGrid);
    DIVA_LAUNCH(diva::histogram_kernel, dim3(diva::kBlocksAnImage, count), dim3(diva::kHistogramThreads), 0, stream,
                pixels, images + first * diva::kImageFields, histograms + first * diva::kGreyLevels);
  }
  DIVA_LAUNCH(diva::entropy_kernel, dim3(static_cast<unsigned>(num_images)), dim3(diva::kHistogramThreads), 0, stream,
              images, histograms, entropy);
  return cudaGetLastError();
}
#endif
