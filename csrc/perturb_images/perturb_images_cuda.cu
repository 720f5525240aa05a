#include "common/launch.h"
#include "perturb_images/perturb_images.h"
#if !defined(DIVA_RUN_TIME_KERNELS)
#include "perturb_images/gather_cuda.cuh"
#include "perturb_images/points_cuda.cuh"
#endif

namespace diva {

constexpr int kBlocksAProcessor = 7;

struct Buffers {  // where a stage reads and writes; the two halves of the scratch memory take turns
  const uint8_t* pixels;
  uint8_t* scratch;
  int64_t half;
  uint8_t* output;
};

__global__ void edge_mean_kernel(const Stage* stages, const int32_t* rotations, Buffers buffers, uint32_t* fills);
__global__ void perturb_kernel(const Stage* stages, const Point* points, const int32_t* tables, const int32_t* tiles,
                               int64_t num_tiles, uint64_t seed, Buffers buffers, const uint32_t* fills);

#if !defined(DIVA_RUN_TIME_KERNELS)
// How many of them the registers must leave room for. Up to sm_90 that makes 72 a thread without spills; newer ones
// spill.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
constexpr int kResidentBlocks = 0;  // no demand
#else
constexpr int kResidentBlocks = kBlocksAProcessor;
#endif
constexpr int kWarps = kTileThreads / 32;

__device__ __forceinline__ const uint8_t* source_of(const Stage& stage, const Buffers& buffers) {
  if (stage.src_buffer == kInput) return buffers.pixels + stage.src_offset;
  return buffers.scratch + (stage.src_buffer == kPong ? buffers.half : 0) + stage.src_offset;
}

__device__ __forceinline__ uint8_t* result_of(const Stage& stage, const Buffers& buffers) {
  if (stage.dst_buffer == kOutput) return buffers.output + stage.dst_offset;
  return buffers.scratch + (stage.dst_buffer == kPong ? buffers.half : 0) + stage.dst_offset;
}

// rotations [R] stages -> fills, one word a stage: the mean colour of the source's border. One block a rotation; its
// threads stride over the border pixels. Integer sums, so their order leaves no trace.
__global__ void __launch_bounds__(kTileThreads)
    edge_mean_kernel(const Stage* __restrict__ stages, const int32_t* __restrict__ rotations, Buffers buffers,
                     uint32_t* __restrict__ fills) {
  __shared__ uint32_t warp_sums[kWarps][4];
  const Stage stage = stages[rotations[blockIdx.x]];
  const uint8_t* source = source_of(stage, buffers);
  const int64_t count = border_count(stage.src_height, stage.src_width);
  uint32_t sums[4] = {0, 0, 0, 0};
  for (int64_t i = threadIdx.x; i < count; i += kTileThreads) {
    const uint8_t* pixel = source + border_pixel(stage.src_height, stage.src_width, i) * stage.channels;
    for (int c = 0; c < 4; ++c) sums[c] += c < stage.channels ? pixel[c] : 0;
  }
  for (int c = 0; c < 4; ++c) {
    for (int half = 16; half > 0; half /= 2) sums[c] += __shfl_xor_sync(0xffffffffu, sums[c], half);
    if (threadIdx.x % 32 == 0) warp_sums[threadIdx.x / 32][c] = sums[c];
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  uint32_t mean = 0;
  for (int c = 0; c < stage.channels; ++c) {
    uint64_t sum = 0;
    for (int warp = 0; warp < kWarps; ++warp) sum += warp_sums[warp][c];
    mean |= rounded_mean(sum, count) << (8 * c);
  }
  fills[rotations[blockIdx.x]] = mean;
}

// Tile t of a launch: 2048 pixels of a stage's result. Gathered into shared memory, thread beside thread a pixel beside
// a pixel; then each thread takes 16 pixels in a row into registers, applies the pointwise operations and stores 16
// bytes at a time.
template <int C>
__device__ __forceinline__ void perturb_tile(const Stage& stage, int64_t t, const Point* points, const int32_t* tables,
                                             uint64_t seed, const uint8_t* source, uint8_t* result, uint32_t fill,
                                             const int16_t* normals, const uint32_t* pairs, uint8_t* tile) {
  const int64_t first = (t - stage.first_tile) * kTilePixels, count = stage.dst_height * stage.dst_width;
  const int64_t chunk = first + threadIdx.x * kChunkPixels;
  uint32_t words[4 * C];
  if (stage.kind == kCopy) {
    load_chunk<C>(source, chunk, count, words);
  } else {
    gather_tile<C>(stage, tables, source, fill, first, count, pairs, tile);
    __syncthreads();
    const uint4* from = reinterpret_cast<const uint4*>(tile) + threadIdx.x * C;
    for (int v = 0; v < C; ++v) unpack(from[v], words + 4 * v);
  }
  if (chunk >= count) return;
  for (int64_t i = 0; i < stage.num_points; ++i) {
    apply_point<C>(stage, points[stage.first_point + i], seed, normals, chunk, words);
  }
  store_chunk<C>(result, chunk, count, words);
}

__device__ __forceinline__ bool draws_normals(const Stage& stage, const Point* points) {
  for (int64_t i = 0; i < stage.num_points; ++i) {
    const int64_t kind = points[stage.first_point + i].kind;
    if (kind == kGaussian || kind == kSpeckle) return true;
  }
  return false;
}

// tiles [T]: the stage of each tile of 2048 pixels -> their results. Blocks stride over the tiles, so that the
// quantiles are loaded once a block.
__global__ void __launch_bounds__(kTileThreads, kResidentBlocks)
    perturb_kernel(const Stage* __restrict__ stages, const Point* __restrict__ points,
                   const int32_t* __restrict__ tables, const int32_t* __restrict__ tiles, int64_t num_tiles,
                   uint64_t seed, Buffers buffers, const uint32_t* __restrict__ fills) {
  __shared__ uint4 tile_vectors[kTilePixels * 4 / 16];
  __shared__ int16_t normals[kNormalEntries];
  __shared__ uint32_t pairs[kWeightPairs];
  __shared__ int64_t stage_fields[kStageFields];
  const Stage& stage = *reinterpret_cast<const Stage*>(stage_fields);
  const int64_t* fields_of_stages = reinterpret_cast<const int64_t*>(stages);
  uint8_t* tile = reinterpret_cast<uint8_t*>(tile_vectors);
  bool loaded = false;
  for (int64_t t = blockIdx.x; t < num_tiles; t += gridDim.x) {
    __syncthreads();  // no thread reads the last tile any more
    if (threadIdx.x < kStageFields) stage_fields[threadIdx.x] = fields_of_stages[tiles[t] * kStageFields + threadIdx.x];
    __syncthreads();
    if (!loaded && draws_normals(stage, points)) {
      for (int i = threadIdx.x; i < kNormalEntries; i += kTileThreads) normals[i] = static_cast<int16_t>(tables[i]);
      loaded = true;
      __syncthreads();
    }
    if (stage.kind == kBlurRows || stage.kind == kBlurColumns) {
      load_weight_pairs(stage, tables, pairs);
      __syncthreads();
    }
    const uint8_t* source = source_of(stage, buffers);
    uint8_t* result = result_of(stage, buffers);
    const uint32_t fill = stage.kind == kRotate ? fills[tiles[t]] : 0;
    if (stage.channels == 1) {
      perturb_tile<1>(stage, t, points, tables, seed, source, result, fill, normals, pairs, tile);
    } else if (stage.channels == 3) {
      perturb_tile<3>(stage, t, points, tables, seed, source, result, fill, normals, pairs, tile);
    } else {
      perturb_tile<4>(stage, t, points, tables, seed, source, result, fill, normals, pairs, tile);
    }
  }
}

#endif  // DIVA_RUN_TIME_KERNELS

}  // namespace diva

#if !defined(__CUDACC_RTC__)
extern "C" int diva_perturb_images_cuda(const uint8_t* pixels, const diva::Stage* stages, const diva::Point* points,
                                        const int32_t* tables, const int32_t* tiles, const int64_t* launches,
                                        int64_t num_launches, uint64_t seed, uint8_t* scratch, int64_t scratch_bytes,
                                        uint32_t* fills, uint8_t* output, void* stream) {
  int device = 0, processors = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  if (error != cudaSuccess) return error;
  const diva::Buffers buffers{pixels, scratch, scratch_bytes / 2, output};
  for (int64_t n = 0; n < num_launches; ++n) {
    const int64_t rotations = launches[2 * n], num_tiles = launches[2 * n + 1];
    if (rotations > 0) {
      DIVA_LAUNCH(diva::edge_mean_kernel, dim3(static_cast<unsigned>(rotations)), dim3(diva::kTileThreads), 0, stream,
                  stages, tiles, buffers, fills);
    }
    const int64_t most = int64_t{processors} * diva::kBlocksAProcessor;
    const dim3 grid(static_cast<unsigned>(num_tiles < most ? num_tiles : most));
    DIVA_LAUNCH(diva::perturb_kernel, grid, dim3(diva::kTileThreads), 0, stream, stages, points, tables,
                tiles + rotations, num_tiles, seed, buffers, fills);
    tiles += rotations + num_tiles;
  }
  return cudaGetLastError();
}
#endif
