#pragma once
// Gathers a tile of a stage's result, pixels first..first+2047 of the image, into shared memory.
#include "perturb_images/blur_cuda.cuh"

namespace diva {

// A pixel whose four neighbours lie inside, by words; the others by rotated_pixel.
template <int C>
__device__ __forceinline__ void gather_rotated(const Stage& stage, const uint8_t* source, uint32_t fill,
                                               Position position, uint8_t* pixel) {
  const int qx = static_cast<int>(position.x >> kPositionShift), qy = static_cast<int>(position.y >> kPositionShift);
  const uint32_t x0 = static_cast<uint32_t>(qx >> kWeightBits), y0 = static_cast<uint32_t>(qy >> kWeightBits);
  const uint32_t width = static_cast<uint32_t>(stage.src_width), height = static_cast<uint32_t>(stage.src_height);
  if (x0 >= width - 1 || y0 >= height - 1) {  // negative ones are large here
    rotated_pixel(stage, source, fill, position, pixel);
    return;
  }
  const uint8_t* at = source + (y0 * width + x0) * C;
  uint32_t top_left, top_right, bottom_left, bottom_right;
  load_two_pixels<C>(at, top_left, top_right);
  load_two_pixels<C>(at + width * C, bottom_left, bottom_right);
  const uint32_t weight_x = qx & (kOne - 1), weight_y = qy & (kOne - 1);
#pragma unroll
  for (int c = 0; c < C; ++c) {
    const uint32_t top = mix(get_byte(&top_left, c), get_byte(&top_right, c), weight_x);
    const uint32_t bottom = mix(get_byte(&bottom_left, c), get_byte(&bottom_right, c), weight_x);
    pixel[c] = static_cast<uint8_t>(round_mixed(mix(top, bottom, weight_y)));
  }
}

// Thread beside thread a pixel beside a pixel; each thread strides on by a block's width.
template <int C>
__device__ __forceinline__ void gather_pixels(const Stage& stage, const int32_t* tables, const uint8_t* source,
                                              uint32_t fill, int64_t first, int64_t count, uint8_t* tile) {
  const uint32_t width = static_cast<uint32_t>(stage.dst_width);
  const uint32_t p = static_cast<uint32_t>(first) + threadIdx.x;
  uint32_t y = p / width, x = p - y * width;
  const bool rotates = stage.kind == kRotate;
  const int64_t step_x = 2 * stage.a * kTileThreads, step_y = 2 * stage.b * kTileThreads;
  Position position = source_position(stage, y, x);
  for (int i = threadIdx.x; i < kTilePixels && first + i < count; i += kTileThreads) {
    if (rotates) {
      gather_rotated<C>(stage, source, fill, position, tile + i * C);
    } else {
      for (int c = 0; c < C; ++c) tile[i * C + c] = resampled(stage, source, tables, y, x, c);
    }
    x += kTileThreads;
    position.x += step_x;
    position.y += step_y;
    if (x >= width) {
      y += x / width;
      x %= width;
      position = source_position(stage, y, x);
    }
  }
}

template <int C>
__device__ __forceinline__ void gather_tile(const Stage& stage, const int32_t* tables, const uint8_t* source,
                                            uint32_t fill, int64_t first, int64_t count, const uint32_t* pairs,
                                            uint8_t* tile) {
  uint32_t* words = reinterpret_cast<uint32_t*>(tile);
  if (stage.kind == kBlurRows) {
    gather_blur_rows<C>(stage, tables, source, first, count, pairs, words);
  } else if (stage.kind == kBlurColumns) {
    gather_blur_columns<C>(stage, tables, source, first, count, pairs, words);
  } else {
    gather_pixels<C>(stage, tables, source, fill, first, count, tile);
  }
}

}  // namespace diva
