#pragma once
// Gathers a tile of a blur into shared memory. Away from the borders four taps cost two dot products (dp2a) of bytes
// with 16-bit weights; they are exact, so the result has the bits of `blurred`, which does the rest.
#include "perturb_images/words_cuda.cuh"

namespace diva {

constexpr int kGroup = 4;         // taps taken together
constexpr int kFastRadius = 252;  // a larger blur is left to `blurred`
constexpr int kWeightPairs = 2 * (kFastRadius + 2 * kGroup);
constexpr int32_t kWholeWeight = 1 << 16;  // does not fit 16 bits; then the image is copied

// The radius rounded up to whole groups.
__device__ __forceinline__ int blur_reach(const Stage& stage) {
  return static_cast<int>((stage.a + kGroup - 1) / kGroup * kGroup);
}

__device__ __forceinline__ bool blurs_fast(const Stage& stage, const int32_t* tables) {
  return stage.a <= kFastRadius && tables[stage.b] < kWholeWeight;
}

__device__ __forceinline__ uint32_t blur_weight(const Stage& stage, const int32_t* tables, int k) {
  const int distance = k < 0 ? -k : k;
  return distance <= stage.a ? static_cast<uint32_t>(tables[stage.b + distance]) : 0;
}

// pairs [reach + 3 + k]: the weights of neighbours k and k + 1, for k from -reach - 3 to reach + 3.
__device__ __forceinline__ void load_weight_pairs(const Stage& stage, const int32_t* tables, uint32_t* pairs) {
  if (!blurs_fast(stage, tables)) return;
  const int first = -blur_reach(stage) - 3;
  for (int i = threadIdx.x; i <= -2 * first; i += kTileThreads) {
    pairs[i] = blur_weight(stage, tables, first + i) | blur_weight(stage, tables, first + i + 1) << 16;
  }
}

// `at` points at the four neighbours whose first one's weight begins `pair`.
__device__ __forceinline__ uint32_t add_four(const uint32_t* pair, uint32_t bytes, uint32_t sum) {
  return __dp2a_hi(pair[2], bytes, __dp2a_lo(pair[0], bytes, sum));
}

// Four pixels in a row, all of whose neighbours are in the row -> words [C].
template <int C>
__device__ __forceinline__ void blur_four_across(const uint8_t* at, int reach, const uint32_t* pairs, uint32_t* words) {
  uint32_t sums[C][kGroup] = {};
  for (int k = -reach; k <= reach; k += kGroup) {
    uint32_t loaded[C], planes[C];
#pragma unroll
    for (int w = 0; w < C; ++w) loaded[w] = load_word(at + k * C + 4 * w);
    split_channels<C>(loaded, planes);
#pragma unroll
    for (int j = 0; j < kGroup; ++j) {  // for pixel j these neighbours are j nearer
#pragma unroll
      for (int c = 0; c < C; ++c) sums[c][j] = add_four(pairs + reach + 3 + k - j, planes[c], sums[c][j]);
    }
  }
#pragma unroll
  for (int i = 0; i < C * kGroup; ++i) set_byte(words, i, round_blurred(sums[i % C][i / C]));
}

// Four bytes in a row, all of whose neighbours above and below are in the image.
__device__ __forceinline__ uint32_t blur_four_down(const uint8_t* at, int64_t pitch, int reach, const uint32_t* pairs) {
  uint32_t sums[kGroup] = {};
  const uint8_t* above = at - reach * pitch;
  for (int k = -reach; k <= reach; k += kGroup) {
    uint32_t rows[kGroup], columns[kGroup];
#pragma unroll
    for (int i = 0; i < kGroup; ++i) rows[i] = load_word(above + i * pitch);
    above += kGroup * pitch;
    transpose_bytes(rows, columns);
#pragma unroll
    for (int i = 0; i < kGroup; ++i) sums[i] = add_four(pairs + reach + 3 + k, columns[i], sums[i]);
  }
  uint32_t word = 0;
#pragma unroll
  for (int i = 0; i < kGroup; ++i) set_byte(&word, i, round_blurred(sums[i]));
  return word;
}

// Bytes e..e+3, one by one.
template <int C>
__device__ __forceinline__ uint32_t blur_word(const Stage& stage, const int32_t* tables, const uint8_t* source,
                                              uint32_t e, uint32_t total) {
  const uint32_t pitch = static_cast<uint32_t>(stage.src_width) * C;
  uint32_t word = 0;
  for (uint32_t i = 0; i < 4 && e + i < total; ++i) {
    const uint32_t y = (e + i) / pitch;
    word |= static_cast<uint32_t>(blurred(stage, source, tables, y, e + i - y * pitch)) << (8 * i);
  }
  return word;
}

template <int C>
__device__ __forceinline__ void gather_blur_rows(const Stage& stage, const int32_t* tables, const uint8_t* source,
                                                 int64_t first, int64_t count, const uint32_t* pairs, uint32_t* tile) {
  const bool fast = blurs_fast(stage, tables);
  const int reach = fast ? blur_reach(stage) : 0;
  const uint32_t width = static_cast<uint32_t>(stage.src_width), total = static_cast<uint32_t>(count) * C;
  for (int group = threadIdx.x; group < kTilePixels / kGroup; group += kTileThreads) {
    const uint32_t p = static_cast<uint32_t>(first) + group * kGroup;
    if (p >= count) break;
    const int x = static_cast<int>(p % width);
    uint32_t* words = tile + group * C;
    if (fast && x >= reach && x + reach + kGroup <= static_cast<int>(width)) {
      uint32_t blurred_words[C] = {};
      blur_four_across<C>(source + int64_t{p} * C, reach, pairs, blurred_words);
#pragma unroll
      for (int w = 0; w < C; ++w) words[w] = blurred_words[w];
    } else {
      for (int w = 0; w < C; ++w) words[w] = blur_word<C>(stage, tables, source, p * C + 4 * w, total);
    }
  }
}

template <int C>
__device__ __forceinline__ void gather_blur_columns(const Stage& stage, const int32_t* tables, const uint8_t* source,
                                                    int64_t first, int64_t count, const uint32_t* pairs,
                                                    uint32_t* tile) {
  const bool fast = blurs_fast(stage, tables);
  const int reach = fast ? blur_reach(stage) : 0, height = static_cast<int>(stage.src_height);
  const uint32_t pitch = static_cast<uint32_t>(stage.src_width) * C, total = static_cast<uint32_t>(count) * C;
  for (int word = threadIdx.x; word < kTilePixels * C / 4; word += kTileThreads) {
    const uint32_t e = static_cast<uint32_t>(first) * C + 4 * word;
    if (e >= total) break;
    const int y = static_cast<int>(e / pitch), last_y = static_cast<int>((e + 3) / pitch);
    tile[word] = fast && y >= reach && last_y + reach + kGroup <= height
                     ? blur_four_down(source + e, pitch, reach, pairs)
                     : blur_word<C>(stage, tables, source, e, total);
  }
}

}  // namespace diva
