#pragma once
// Rows of a rotated image on the CPU: the bits of rotated_pixel.
#include <algorithm>
#include <vector>

#include "common/multiversion.h"
#include "perturb_images/perturb_images.h"

namespace diva {

struct Span {
  int64_t begin, end;
};

// Smallest x with x * step >= distance, for step > 0.
inline int64_t steps_to_reach(int64_t distance, int64_t step) {
  return distance >= 0 ? (distance + step - 1) / step : -(-distance / step);
}

// The x in [0, count) with low <= start + x * step < high.
inline Span span_within(int64_t start, int64_t step, int64_t low, int64_t high, int64_t count) {
  if (step == 0) return start >= low && start < high ? Span{0, count} : Span{0, 0};
  if (step < 0) return span_within(-start, -step, 1 - high, 1 - low, count);
  const int64_t begin = std::clamp<int64_t>(steps_to_reach(low - start, step), 0, count);
  return {begin, std::clamp<int64_t>(steps_to_reach(high - start, step), begin, count)};
}

// The x whose source position has low <= x0 < high_x and low <= y0 < high_y.
inline Span span_of_sources(const Stage& stage, Position start, int64_t low, int64_t high_x, int64_t high_y) {
  constexpr int64_t kPixel = int64_t{1} << (kPositionShift + kWeightBits);
  const Span x = span_within(start.x, 2 * stage.a, low * kPixel, high_x * kPixel, stage.dst_width);
  const Span y = span_within(start.y, 2 * stage.b, low * kPixel, high_y * kPixel, stage.dst_width);
  const int64_t begin = std::max(x.begin, y.begin);
  return {begin, std::max(begin, std::min(x.end, y.end))};
}

constexpr int kPixelsAtOnce = 64;
constexpr int64_t kRowsAhead = 8;

struct Neighbours {  // of 64 pixels: four bytes each, of which the first C are channels, and the weights of the right
  uint32_t top_left[kPixelsAtOnce], top_right[kPixelsAtOnce];  // and of the lower ones
  uint32_t bottom_left[kPixelsAtOnce], bottom_right[kPixelsAtOnce];
  uint32_t weight_x[kPixelsAtOnce], weight_y[kPixelsAtOnce];
};

constexpr int64_t kBytesRead = 4;

HOST_DEVICE uint32_t four_bytes(const uint8_t* at) {
  uint32_t bytes;
  std::memcpy(&bytes, at, sizeof bytes);
  return bytes;
}

template <int C>
HOST_DEVICE void load_neighbours(const Stage& stage, const uint8_t* source, Position start, int count, Neighbours& n) {
  const uint32_t pitch = static_cast<uint32_t>(stage.src_width) * C;
  uint32_t offsets[kPixelsAtOnce];
  for (int i = 0; i < kPixelsAtOnce; ++i) {
    const uint32_t qx = static_cast<uint32_t>(static_cast<uint64_t>(start.x + 2 * stage.a * i) >> kPositionShift);
    const uint32_t qy = static_cast<uint32_t>(static_cast<uint64_t>(start.y + 2 * stage.b * i) >> kPositionShift);
    offsets[i] = (qy >> kWeightBits) * pitch + (qx >> kWeightBits) * C;
    n.weight_x[i] = qx % kOne;
    n.weight_y[i] = qy % kOne;
  }
  // What the eighth row from here will read: the slanted walk defeats the hardware's own guess.
  const int64_t ahead = ((kRowsAhead * stage.a) >> 32) * int64_t{pitch} - ((kRowsAhead * stage.b) >> 32) * C;
  for (int i = 0; i < count; ++i) {
    const uint8_t* at = source + offsets[i];
    if (i % 8 == 0) __builtin_prefetch(at + ahead);
    n.top_left[i] = four_bytes(at);
    n.top_right[i] = four_bytes(at + C);
    n.bottom_left[i] = four_bytes(at + pitch);
    n.bottom_right[i] = four_bytes(at + pitch + C);
  }
}

// Pixels all of whose neighbours lie inside, and not in the last row: four_bytes reads past the pixel.
template <int C>
HOST_DEVICE void rotate_inside(const Stage& stage, const uint8_t* source, Position start, Span span, uint8_t* row) {
  Neighbours n;
  uint32_t pixels[kPixelsAtOnce];
  for (int64_t first = span.begin; first < span.end; first += kPixelsAtOnce) {
    const int count = static_cast<int>(std::min<int64_t>(kPixelsAtOnce, span.end - first));
    load_neighbours<C>(stage, source, {start.x + 2 * stage.a * first, start.y + 2 * stage.b * first}, count, n);
    for (int i = 0; i < count; ++i) {
      uint32_t pixel = 0;
      for (int shift = 0; shift < 8 * C; shift += 8) {
        const uint32_t top = mix((n.top_left[i] >> shift) & 0xffu, (n.top_right[i] >> shift) & 0xffu, n.weight_x[i]);
        const uint32_t bottom =
            mix((n.bottom_left[i] >> shift) & 0xffu, (n.bottom_right[i] >> shift) & 0xffu, n.weight_x[i]);
        pixel |= round_mixed(mix(top, bottom, n.weight_y[i])) << shift;
      }
      pixels[i] = pixel;
    }
    uint8_t* to = row + first * C;
    for (int i = 0; i < count; ++i) std::memcpy(to + i * C, &pixels[i], C);
  }
}

MULTIVERSION void rotate_row_inside(const Stage& stage, const uint8_t* source, Position start, Span span,
                                    uint8_t* row) {
  if (stage.channels == 1) rotate_inside<1>(stage, source, start, span, row);
  if (stage.channels == 3) rotate_inside<3>(stage, source, start, span, row);
  if (stage.channels == 4) rotate_inside<4>(stage, source, start, span, row);
}

inline void fill_pixels(uint8_t* row, Span span, int64_t channels, uint32_t fill) {
  for (int64_t x = span.begin; x < span.end; ++x) {
    for (int64_t c = 0; c < channels; ++c) row[x * channels + c] = static_cast<uint8_t>(fill >> (8 * c));
  }
}

inline void rotate_row(const Stage& stage, const uint8_t* source, uint32_t fill, int64_t y, uint8_t* row) {
  const Position start = source_position(stage, y, 0);
  const Span touched = span_of_sources(stage, start, -1, stage.src_width, stage.src_height);
  Span inside = span_of_sources(stage, start, 0, stage.src_width - 1, stage.src_height - 2);
  if (inside.begin == inside.end || stage.src_width * stage.channels < kBytesRead) inside = {touched.end, touched.end};

  fill_pixels(row, {0, touched.begin}, stage.channels, fill);
  for (int64_t x = touched.begin; x < touched.end; ++x) {
    if (x == inside.begin) x = inside.end;
    if (x == touched.end) break;
    const Position position{start.x + 2 * stage.a * x, start.y + 2 * stage.b * x};
    rotated_pixel(stage, source, fill, position, row + x * stage.channels);
  }
  rotate_row_inside(stage, source, start, inside, row);
  fill_pixels(row, {touched.end, stage.dst_width}, stage.channels, fill);
}

}  // namespace diva
