#pragma once
// Gathers a tile of a stage's result, pixels first..first+2047 of the image, into shared memory.
#include "perturb_images/points_cuda.cuh"

namespace diva {

constexpr uint32_t kEvenBytesOfWord = 0x00ff00ffu;

// Four bytes from any address. Aligned words that hold one of them never leave the allocation.
__device__ __forceinline__ uint32_t load_word(const uint8_t* at) {
  const uint64_t address = reinterpret_cast<uint64_t>(at);
  const uint32_t* aligned = reinterpret_cast<const uint32_t*>(address & ~uint64_t{3});
  const uint32_t shift = 8 * static_cast<uint32_t>(address & 3);
  if (shift == 0) return aligned[0];
  return aligned[0] >> shift | aligned[1] << (32 - shift);
}

// Adds weight * (bytes of `before` + bytes of `after`): two 16-bit sums in a word, then 32-bit products.
__device__ __forceinline__ void add_weighted_words(uint32_t before, uint32_t after, uint32_t weight, uint32_t* sums) {
  const uint32_t even = (before & kEvenBytesOfWord) + (after & kEvenBytesOfWord);
  const uint32_t odd = (before >> 8 & kEvenBytesOfWord) + (after >> 8 & kEvenBytesOfWord);
  sums[0] += (even & 0xffffu) * weight;
  sums[1] += (odd & 0xffffu) * weight;
  sums[2] += (even >> 16) * weight;
  sums[3] += (odd >> 16) * weight;
}

// Elements e..e+3 of a blur, none of whose neighbours is beyond the border; `step` bytes lie between neighbours.
__device__ __forceinline__ uint32_t blurred_word(const Stage& stage, const int32_t* tables, const uint8_t* source,
                                                 int64_t e, int64_t step) {
  const int32_t* weights = tables + stage.b;
  uint32_t sums[4] = {0, 0, 0, 0};
  add_weighted_words(load_word(source + e), 0, static_cast<uint32_t>(weights[0]), sums);
  const uint8_t *before = source + e, *after = source + e;
  for (int64_t k = 1; k <= stage.a; ++k) {
    before -= step;
    after += step;
    add_weighted_words(load_word(before), load_word(after), static_cast<uint32_t>(weights[k]), sums);
  }
  return round_blurred(sums[0]) | round_blurred(sums[1]) << 8 | round_blurred(sums[2]) << 16 |
         static_cast<uint32_t>(round_blurred(sums[3])) << 24;
}

// Four elements a thread and step: a word of the tile.
template <int C>
__device__ __forceinline__ void gather_blur(const Stage& stage, const int32_t* tables, const uint8_t* source,
                                            int64_t first, int64_t count, uint8_t* tile) {
  const int64_t pitch = stage.src_width * C, total = count * C;
  const int64_t step = stage.kind == kBlurRows ? C : pitch, reach = stage.a * step;
  for (int word = threadIdx.x; word < kTilePixels * C / 4; word += kTileThreads) {
    const int64_t e = first * C + 4 * word;
    if (e >= total) break;
    const int64_t y = e / pitch, column = e - y * pitch;
    // Rows: all four in one row, whose ends are out of reach. Columns: in the image, whose ends are.
    const int64_t from = stage.kind == kBlurRows ? column : e, room = stage.kind == kBlurRows ? pitch : total;
    uint32_t packed = 0;
    if (from >= reach && from + 3 + reach < room) {
      packed = blurred_word(stage, tables, source, e, step);
    } else {
      for (int i = 0; i < 4 && e + i < total; ++i) {
        const int64_t row = (e + i) / pitch;
        packed |= static_cast<uint32_t>(blurred(stage, source, tables, row, e + i - row * pitch)) << (8 * i);
      }
    }
    reinterpret_cast<uint32_t*>(tile)[word] = packed;
  }
}

template <int C>
__device__ __forceinline__ void gather_tile(const Stage& stage, const int32_t* tables, const uint8_t* source,
                                            uint32_t fill, int64_t first, int64_t count, uint8_t* tile) {
  if (stage.kind == kBlurRows || stage.kind == kBlurColumns) {
    gather_blur<C>(stage, tables, source, first, count, tile);
    return;
  }
  const uint32_t width = static_cast<uint32_t>(stage.dst_width);
  for (int i = threadIdx.x; i < kTilePixels && first + i < count; i += kTileThreads) {
    const uint32_t p = static_cast<uint32_t>(first + i), y = p / width, x = p - y * width;
    if (stage.kind == kRotate) {
      rotated_pixel(stage, source, fill, source_position(stage, y, x), tile + i * C);
    } else {
      for (int c = 0; c < C; ++c) tile[i * C + c] = resampled(stage, source, tables, y, x, c);
    }
  }
}

}  // namespace diva
