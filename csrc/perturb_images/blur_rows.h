#pragma once
// Rows of a blurred image on the CPU: the bits of `blurred`.
#include <algorithm>
#include <vector>

#include "common/multiversion.h"
#include "perturb_images/perturb_images.h"

namespace diva {

// Vectors by hand: GCC jams the loop over the taps into the loop over the elements and then vectorises neither. A lane
// holds four bytes, whose sums are kept apart by masks and shifts, which cost less than widening.
typedef uint32_t Quads __attribute__((vector_size(64)));
constexpr int kBlurBlock = sizeof(Quads);
constexpr uint32_t kEvenBytes = 0x00ff00ffu, kLowWord = 0xffffu;

struct QuadSums {
  Quads byte0, byte1, byte2, byte3;
};

// even: bytes 0 and 2 as two 16-bit words; odd: bytes 1 and 3.
HOST_DEVICE void add_weighted(QuadSums& sums, const Quads& even, const Quads& odd, uint32_t weight) {
  sums.byte0 += (even & kLowWord) * weight;
  sums.byte1 += (odd & kLowWord) * weight;
  sums.byte2 += (even >> 16) * weight;
  sums.byte3 += (odd >> 16) * weight;
}

// Elements first..first+63. taps[radius + k] points at the neighbours k away.
HOST_DEVICE void blur_block(const uint8_t* const* taps, const int32_t* weights, int64_t radius, int64_t first,
                            uint8_t* result) {
  constexpr uint32_t kHalf = 1u << 15;
  QuadSums sums{Quads{} + kHalf, Quads{} + kHalf, Quads{} + kHalf, Quads{} + kHalf};
  Quads centre;
  std::memcpy(&centre, taps[radius] + first, sizeof centre);
  add_weighted(sums, centre & kEvenBytes, (centre >> 8) & kEvenBytes, static_cast<uint32_t>(weights[0]));
  for (int64_t k = 1; k <= radius; ++k) {
    Quads before, after;
    std::memcpy(&before, taps[radius - k] + first, sizeof before);
    std::memcpy(&after, taps[radius + k] + first, sizeof after);
    const Quads even = (before & kEvenBytes) + (after & kEvenBytes);
    const Quads odd = ((before >> 8) & kEvenBytes) + ((after >> 8) & kEvenBytes);
    add_weighted(sums, even, odd, static_cast<uint32_t>(weights[k]));
  }
  const Quads rounded =
      sums.byte0 >> 16 | (sums.byte1 >> 16) << 8 | (sums.byte2 >> 16) << 16 | (sums.byte3 >> 16) << 24;
  std::memcpy(result + first, &rounded, sizeof rounded);
}

MULTIVERSION void blur_span(const uint8_t* const* taps, const int32_t* weights, int64_t radius, int64_t count,
                            uint8_t* result) {
  for (int64_t first = 0; first + kBlurBlock <= count; first += kBlurBlock) {
    blur_block(taps, weights, radius, first, result);
  }
  if (count >= kBlurBlock) {  // the last block overlaps the one before it
    blur_block(taps, weights, radius, count - kBlurBlock, result);
    return;
  }
  for (int64_t i = 0; i < count; ++i) {
    uint32_t sum = static_cast<uint32_t>(weights[0]) * taps[radius][i];
    for (int64_t k = 1; k <= radius; ++k) {
      sum += static_cast<uint32_t>(weights[k]) * (uint32_t{taps[radius - k][i]} + taps[radius + k][i]);
    }
    result[i] = round_blurred(sum);
  }
}

// Keeps its buffers from row to row.
class BlurredRows {
 public:
  void row(const Stage& stage, const uint8_t* source, const int32_t* tables, int64_t y, uint8_t* result) {
    const int64_t radius = stage.a, pitch = stage.src_width * stage.channels;
    taps_.resize(2 * radius + 1);
    if (stage.kind == kBlurColumns) {
      for (int64_t k = -radius; k <= radius; ++k) {
        taps_[radius + k] = source + clamp_index(y + k, stage.src_height) * pitch;
      }
    } else {
      extend_row(stage, source + y * pitch);
      for (int64_t k = 0; k <= 2 * radius; ++k) taps_[k] = extended_.data() + k * stage.channels;
    }
    blur_span(taps_.data(), tables + stage.b, radius, pitch, result);
  }

 private:
  // The row with its first and last pixel repeated `radius` times.
  void extend_row(const Stage& stage, const uint8_t* row) {
    const int64_t radius = stage.a, channels = stage.channels, pitch = stage.src_width * channels;
    extended_.resize(pitch + 2 * radius * channels);
    uint8_t* to = extended_.data();
    for (int64_t k = 0; k < radius; ++k) {
      std::memcpy(to + k * channels, row, channels);
      std::memcpy(to + (radius + k) * channels + pitch, row + pitch - channels, channels);
    }
    std::memcpy(to + radius * channels, row, pitch);
  }

  std::vector<const uint8_t*> taps_;
  std::vector<uint8_t> extended_;
};

}  // namespace diva
