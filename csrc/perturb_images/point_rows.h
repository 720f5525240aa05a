#pragma once
// Pointwise operations on the CPU, over spans of an image. Element e of an image has draw e % 8 of block e / 8.
#include "common/multiversion.h"
#include "perturb_images/perturb_images.h"

#include <algorithm>

namespace diva {

constexpr int kBlocksAtOnce = 64;
constexpr int kDrawsAtOnce = kBlocksAtOnce * kDrawsABlock;

// Draws of blocks first..first+63 -> draws [512]. The same as noise_block, in an order that the compiler vectorises.
MULTIVERSION void draw_blocks(uint64_t seed, int64_t key, int64_t slot, int64_t first, uint16_t* draws) {
  uint32_t x[kBlocksAtOnce], y[kBlocksAtOnce], z[kBlocksAtOnce], w[kBlocksAtOnce];
  for (int i = 0; i < kBlocksAtOnce; ++i) {
    x[i] = static_cast<uint32_t>(first) + i;
    y[i] = static_cast<uint32_t>(slot);
    z[i] = static_cast<uint32_t>(key);
    w[i] = static_cast<uint32_t>(static_cast<uint64_t>(key) >> 32);
  }
  uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < kPhiloxRounds; ++round) {
    for (int i = 0; i < kBlocksAtOnce; ++i) {
      const uint64_t product0 = static_cast<uint64_t>(x[i]) * kPhiloxMultiplier0;
      const uint64_t product1 = static_cast<uint64_t>(z[i]) * kPhiloxMultiplier1;
      x[i] = static_cast<uint32_t>(product1 >> 32) ^ y[i] ^ key0;
      z[i] = static_cast<uint32_t>(product0 >> 32) ^ w[i] ^ key1;
      y[i] = static_cast<uint32_t>(product1);
      w[i] = static_cast<uint32_t>(product0);
    }
    key0 += kPhiloxStep0;
    key1 += kPhiloxStep1;
  }
  for (int i = 0; i < kBlocksAtOnce; ++i) {
    draws[8 * i + 0] = static_cast<uint16_t>(x[i]);
    draws[8 * i + 1] = static_cast<uint16_t>(x[i] >> 16);
    draws[8 * i + 2] = static_cast<uint16_t>(y[i]);
    draws[8 * i + 3] = static_cast<uint16_t>(y[i] >> 16);
    draws[8 * i + 4] = static_cast<uint16_t>(z[i]);
    draws[8 * i + 5] = static_cast<uint16_t>(z[i] >> 16);
    draws[8 * i + 6] = static_cast<uint16_t>(w[i]);
    draws[8 * i + 7] = static_cast<uint16_t>(w[i] >> 16);
  }
}

// Calls f(first, count, draws) for pieces of [first, last), with the draws of elements first..first+count-1.
template <typename F>
inline void for_each_draws(const Stage& stage, const Point& point, uint64_t seed, int64_t first, int64_t last,
                           const F& f) {
  uint16_t draws[kDrawsAtOnce];
  for (int64_t block = first / kDrawsABlock; block * kDrawsABlock < last; block += kBlocksAtOnce) {
    draw_blocks(seed, stage.key, point.slot, block, draws);
    const int64_t begin = std::max(first, block * kDrawsABlock);
    const int64_t end = std::min(last, (block + kBlocksAtOnce) * kDrawsABlock);
    f(begin, static_cast<int>(end - begin), draws + (begin - block * kDrawsABlock));
  }
}

// pixels [count], in place. With `keep_alpha` every fourth one, counted from `phase`, stays.
MULTIVERSION void gaussian_span(uint8_t* __restrict__ pixels, const uint16_t* __restrict__ draws,
                                const int32_t* __restrict__ normals, int32_t scale, int count) {
  for (int i = 0; i < count; ++i) pixels[i] = gaussian_pixel(pixels[i], normals[draws[i] >> (16 - kNormalBits)], scale);
}

MULTIVERSION void speckle_span(uint8_t* __restrict__ pixels, const uint16_t* __restrict__ draws,
                               const int32_t* __restrict__ normals, int32_t scale, int count) {
  for (int i = 0; i < count; ++i) pixels[i] = speckle_pixel(pixels[i], normals[draws[i] >> (16 - kNormalBits)], scale);
}

// Elements first..last-1 of the image.
inline void normal_noise_span(const Stage& stage, const Point& point, uint64_t seed, const int32_t* tables,
                              uint8_t* image, int64_t first, int64_t last) {
  const auto noise = point.kind == kGaussian ? gaussian_span : speckle_span;
  for_each_draws(stage, point, seed, first, last, [&](int64_t begin, int count, const uint16_t* draws) {
    uint8_t* pixels = image + begin;
    if (stage.channels < 4) {
      noise(pixels, draws, tables, static_cast<int32_t>(point.a), count);
      return;
    }
    uint8_t alpha[kDrawsAtOnce];  // kept: noise is light, and alpha is none
    std::memcpy(alpha, pixels, count);
    noise(pixels, draws, tables, static_cast<int32_t>(point.a), count);
    for (int i = static_cast<int>(3 - begin % 4); i < count; i += 4) pixels[i] = alpha[i];
  });
}

template <int C>
HOST_DEVICE void salt_pepper_pixels(uint8_t* __restrict__ pixels, const uint16_t* __restrict__ draws,
                                    uint32_t threshold, int count) {
  constexpr int kColours = C == 4 ? 3 : C;
  for (int i = 0; i < count; ++i) {
    for (int c = 0; c < kColours; ++c) pixels[C * i + c] = salt_pepper_pixel(pixels[C * i + c], draws[i], threshold);
  }
}

MULTIVERSION void salt_pepper_piece(uint8_t* pixels, const uint16_t* draws, uint32_t threshold, int count,
                                    int64_t channels) {
  if (channels == 1) salt_pepper_pixels<1>(pixels, draws, threshold, count);
  if (channels == 3) salt_pepper_pixels<3>(pixels, draws, threshold, count);
  if (channels == 4) salt_pepper_pixels<4>(pixels, draws, threshold, count);
}

// Pixels first..last-1 of the image: a speck covers all colours of its pixel.
inline void salt_pepper_span(const Stage& stage, const Point& point, uint64_t seed, uint8_t* image, int64_t first,
                             int64_t last) {
  for_each_draws(stage, point, seed, first, last, [&](int64_t begin, int count, const uint16_t* draws) {
    salt_pepper_piece(image + begin * stage.channels, draws, static_cast<uint32_t>(point.a), count, stage.channels);
  });
}

inline void occlude_rows(const Stage& stage, const Point& point, uint64_t seed, uint8_t* image, int64_t first,
                         int64_t last) {
  const Rectangle hidden = occluded(stage, point, seed);
  const int64_t colours = stage.channels == 4 ? 3 : stage.channels;
  for (int64_t y = std::max(first, hidden.top); y < std::min(last, hidden.bottom); ++y) {
    for (int64_t x = hidden.left; x < hidden.right; ++x) {
      std::memset(image + (y * stage.dst_width + x) * stage.channels, kOcclusionGrey, colours);
    }
  }
}

}  // namespace diva
