#pragma once
// Rows of a resampled image on the CPU: the bits of `resampled`.
#include <algorithm>
#include <vector>

#include "common/multiversion.h"
#include "perturb_images/perturb_images.h"

namespace diva {

// Four 32-bit lanes, one a channel: a whole pixel in one register.
typedef uint32_t Lanes __attribute__((vector_size(16)));
typedef uint8_t Bytes __attribute__((vector_size(16)));
constexpr int64_t kPixelRead = 4;  // bytes that load_pixel reads, whatever the channels

// Shuffles, because GCC makes one instruction of each; of a conversion it makes a dozen.
HOST_DEVICE Lanes load_pixel(const uint8_t* at) {
  uint32_t bytes;
  std::memcpy(&bytes, at, kPixelRead);
  const Lanes first{bytes};
  return reinterpret_cast<Lanes>(__builtin_shuffle(reinterpret_cast<Bytes>(first), Bytes{},
                                                   Bytes{0, 16, 16, 16, 1, 16, 16, 16, 2, 16, 16, 16, 3, 16, 16, 16}));
}

HOST_DEVICE Lanes load_sums(const uint32_t* at) {
  Lanes lanes;
  std::memcpy(&lanes, at, sizeof lanes);
  return lanes;
}

// Source row of bytes -> sums [width * C] across, in 2^-11. Reads past the last pixel, writes one lane past it.
template <int C>
HOST_DEVICE void bytes_across(const uint8_t* row, const int32_t* table, int64_t taps, int64_t width, uint32_t* sums) {
  for (int64_t x = 0; x < width; ++x, table += taps + 1) {
    const uint8_t* at = row + int64_t{table[0]} * C;
    Lanes sum{};
    for (int64_t i = 0; i < taps; ++i) sum += load_pixel(at + i * C) * static_cast<uint32_t>(table[1 + i]);
    std::memcpy(sums + x * C, &sum, sizeof sum);
  }
}

// The same from a row of sums in 2^-11 to the rounded pixels.
template <int C>
HOST_DEVICE void sums_across(const uint32_t* row, const int32_t* table, int64_t taps, int64_t width, uint8_t* result) {
  for (int64_t x = 0; x < width; ++x, table += taps + 1) {
    const uint32_t* at = row + int64_t{table[0]} * C;
    Lanes sum = Lanes{} + (1u << (2 * kWeightBits - 1));
    for (int64_t i = 0; i < taps; ++i) sum += load_sums(at + i * C) * static_cast<uint32_t>(table[1 + i]);
    const Lanes pixel = sum >> (2 * kWeightBits);
    for (int c = 0; c < C; ++c) result[x * C + c] = static_cast<uint8_t>(pixel[c]);
  }
}

MULTIVERSION void row_across(const uint8_t* row, const int32_t* table, int64_t taps, int64_t width, int64_t channels,
                             uint32_t* sums) {
  if (channels == 1) bytes_across<1>(row, table, taps, width, sums);
  if (channels == 3) bytes_across<3>(row, table, taps, width, sums);
  if (channels == 4) bytes_across<4>(row, table, taps, width, sums);
}

MULTIVERSION void sums_row_across(const uint32_t* row, const int32_t* table, int64_t taps, int64_t width,
                                  int64_t channels, uint8_t* result) {
  if (channels == 1) sums_across<1>(row, table, taps, width, result);
  if (channels == 3) sums_across<3>(row, table, taps, width, result);
  if (channels == 4) sums_across<4>(row, table, taps, width, result);
}

MULTIVERSION void add_row(const uint8_t* __restrict__ row, uint32_t weight, int64_t count,
                          uint32_t* __restrict__ sums) {
  for (int64_t i = 0; i < count; ++i) sums[i] += weight * row[i];
}

MULTIVERSION void mix_rows(const uint32_t* __restrict__ a, uint32_t weight_a, const uint32_t* __restrict__ b,
                           uint32_t weight_b, int64_t count, uint8_t* __restrict__ result) {
  for (int64_t i = 0; i < count; ++i) result[i] = static_cast<uint8_t>(round_mixed(weight_a * a[i] + weight_b * b[i]));
}

// The order of the two directions is free, since nothing is rounded in between: first the one that leaves less to do.
class ResampledRows {
 public:
  void row(const Stage& stage, const uint8_t* source, const int32_t* tables, int64_t y, uint8_t* result) {
    if (stage.dst_height > stage.src_height) {
      enlarged_row(stage, source, tables, y, result);
    } else {
      reduced_row(stage, source, tables, y, result);
    }
  }

 private:
  // Down, then across.
  void reduced_row(const Stage& stage, const uint8_t* source, const int32_t* tables, int64_t y, uint8_t* result) {
    const int64_t pitch = stage.src_width * stage.channels;
    const int32_t* row = tables + stage.d + y * (stage.c + 1);
    sums_.assign(pitch + kPixelRead, 0);
    for (int64_t j = 0; j < stage.c; ++j) {
      add_row(source + (row[0] + j) * pitch, static_cast<uint32_t>(row[1 + j]), pitch, sums_.data());
    }
    sums_row_across(sums_.data(), tables + stage.b, stage.a, stage.dst_width, stage.channels, result);
  }

  // Across, then down: neighbouring rows of the result share the source rows, which are kept.
  void enlarged_row(const Stage& stage, const uint8_t* source, const int32_t* tables, int64_t y, uint8_t* result) {
    const int32_t* row = tables + stage.d + y * (stage.c + 1);
    const uint32_t* first = across(stage, source, tables, row[0]);
    const bool has_second = stage.c > 1;  // not where the source has one row
    const uint32_t* second = has_second ? across(stage, source, tables, row[0] + 1) : first;
    mix_rows(first, static_cast<uint32_t>(row[1]), second, has_second ? static_cast<uint32_t>(row[2]) : 0,
             stage.dst_width * stage.channels, result);
  }

  const uint32_t* across(const Stage& stage, const uint8_t* source, const int32_t* tables, int64_t y) {
    Line& line = lines_[y % 2];
    if (line.y == y) return line.sums.data();
    const int64_t pitch = stage.src_width * stage.channels;
    line.y = y;
    line.sums.resize(stage.dst_width * stage.channels + kPixelRead);
    bytes_.resize(pitch + kPixelRead);
    std::memcpy(bytes_.data(), source + y * pitch, pitch);
    row_across(bytes_.data(), tables + stage.b, stage.a, stage.dst_width, stage.channels, line.sums.data());
    return line.sums.data();
  }

  struct Line {
    int64_t y = -1;
    std::vector<uint32_t> sums;
  };

  Line lines_[2];
  std::vector<uint32_t> sums_;
  std::vector<uint8_t> bytes_;
};

}  // namespace diva
