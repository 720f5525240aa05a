#pragma once
// Pointwise operations on 16 pixels in the registers of one thread. Chunks begin at a multiple of 16 pixels, so they
// begin at a whole Philox block for elements as for pixels.
#include "perturb_images/words_cuda.cuh"

namespace diva {

// 16 pixels of `image` from pixel `first` on; zeros past the end.
template <int C>
__device__ __forceinline__ void load_chunk(const uint8_t* image, int64_t first, int64_t count, uint32_t* words) {
  const uint8_t* from = image + first * C;
  if (first + kChunkPixels <= count && reinterpret_cast<uint64_t>(from) % 16 == 0) {
#pragma unroll
    for (int v = 0; v < C; ++v) unpack(reinterpret_cast<const uint4*>(from)[v], words + 4 * v);
    return;
  }
#pragma unroll
  for (int i = 0; i < 4 * C; ++i) words[i] = 0;
#pragma unroll
  for (int i = 0; i < kChunkPixels * C; ++i) {
    if (first + i / C < count) set_byte(words, i, from[i]);
  }
}

// The same back; the gap behind the image becomes zero.
template <int C>
__device__ __forceinline__ void store_chunk(uint8_t* image, int64_t first, int64_t count, uint32_t* words) {
  if (first + kChunkPixels > count) {
#pragma unroll
    for (int i = 0; i < kChunkPixels * C; ++i) {
      if (first + i / C >= count) set_byte(words, i, 0);
    }
  }
  uint4* to = reinterpret_cast<uint4*>(image + first * C);
  const int64_t end = padded(count * C);
#pragma unroll
  for (int v = 0; v < C; ++v) {
    if (first * C + 16 * v >= end) break;
    to[v] = make_uint4(words[4 * v], words[4 * v + 1], words[4 * v + 2], words[4 * v + 3]);
  }
}

template <int C>
__device__ __forceinline__ void normal_noise_chunk(const Stage& stage, const Point& point, uint64_t seed,
                                                   const int16_t* normals, int64_t first, uint32_t* words) {
  const int32_t scale = static_cast<int32_t>(point.a);
  const bool is_gaussian = point.kind == kGaussian;
#pragma unroll
  for (int b = 0; b < kChunkPixels * C / kDrawsABlock; ++b) {
    const Random4 block = noise_block(seed, stage.key, point.slot, first * C / kDrawsABlock + b);
#pragma unroll
    for (int lane = 0; lane < kDrawsABlock; ++lane) {
      const int i = b * kDrawsABlock + lane;
      if (C == 4 && i % 4 == 3) continue;  // alpha
      const int32_t normal = normals[draw16(block, lane) >> (16 - kNormalBits)];
      const uint8_t pixel = get_byte(words, i);
      set_byte(words, i, is_gaussian ? gaussian_pixel(pixel, normal, scale) : speckle_pixel(pixel, normal, scale));
    }
  }
}

template <int C>
__device__ __forceinline__ void salt_pepper_chunk(const Stage& stage, const Point& point, uint64_t seed, int64_t first,
                                                  uint32_t* words) {
  const uint32_t threshold = static_cast<uint32_t>(point.a);
#pragma unroll
  for (int b = 0; b < kChunkPixels / kDrawsABlock; ++b) {
    const Random4 block = noise_block(seed, stage.key, point.slot, first / kDrawsABlock + b);
#pragma unroll
    for (int lane = 0; lane < kDrawsABlock; ++lane) {
      const uint32_t draw = draw16(block, lane);
#pragma unroll
      for (int c = 0; c < (C == 4 ? 3 : C); ++c) {
        const int i = (b * kDrawsABlock + lane) * C + c;
        set_byte(words, i, salt_pepper_pixel(get_byte(words, i), draw, threshold));
      }
    }
  }
}

template <int C>
__device__ __forceinline__ void occlude_chunk(const Stage& stage, const Point& point, uint64_t seed, int64_t first,
                                              uint32_t* words) {
  const Rectangle hidden = occluded(stage, point, seed);
  const uint32_t width = static_cast<uint32_t>(stage.dst_width);
  uint32_t y = static_cast<uint32_t>(first) / width, x = static_cast<uint32_t>(first) - y * width;
#pragma unroll
  for (int p = 0; p < kChunkPixels; ++p) {
    const bool inside = y >= hidden.top && y < hidden.bottom && x >= hidden.left && x < hidden.right;
#pragma unroll
    for (int c = 0; c < (C == 4 ? 3 : C); ++c) {
      if (inside) set_byte(words, p * C + c, kOcclusionGrey);
    }
    if (++x == width) {
      x = 0;
      ++y;
    }
  }
}

template <int C>
__device__ __forceinline__ void apply_point(const Stage& stage, const Point& point, uint64_t seed,
                                            const int16_t* normals, int64_t first, uint32_t* words) {
  if (point.kind == kOcclusion) {
    occlude_chunk<C>(stage, point, seed, first, words);
  } else if (point.kind == kSaltPepper) {
    salt_pepper_chunk<C>(stage, point, seed, first, words);
  } else {
    normal_noise_chunk<C>(stage, point, seed, normals, first, words);
  }
}

}  // namespace diva
