#pragma once
// Perturbations of a ragged batch of images, uint8, H x W x C. The mathematics that both devices share: integers only,
// so that the CPU and CUDA give the same bits by construction.
//
// A plan (diva_engine/ops/perturbation_plan.py makes it) holds one row a stage and one row a pointwise operation. A
// stage gathers every pixel of its result from its source (copy, rotate, blur, resample) and then applies its pointwise
// operations, in order, before the pixel is stored.
#include "common/philox.h"

namespace diva {

enum StageKind : int64_t { kCopy = 0, kRotate = 1, kBlurRows = 2, kBlurColumns = 3, kResample = 4 };
enum PointKind : int64_t { kGaussian = 0, kSpeckle = 1, kSaltPepper = 2, kOcclusion = 3 };
enum Buffer : int64_t { kInput = 0, kPing = 1, kPong = 2, kOutput = 3 };

struct Stage {
  int64_t kind;
  int64_t image;  // stages of one image stand together, in order
  int64_t key;    // of the image: what its noise is a function of, beside the seed
  int64_t channels, src_height, src_width, dst_height, dst_width;
  int64_t src_buffer, src_offset, dst_buffer, dst_offset;  // bytes
  int64_t first_point, num_points;
  // rotate: cosine, sine in units of 2^-32    blur: radius, its weights in `tables`
  // resample: taps a column, column table, taps a row, row table
  int64_t a, b, c, d;
  int64_t first_tile;  // number of its first tile within its launch
};
constexpr int kStageFields = 19;
static_assert(sizeof(Stage) == kStageFields * sizeof(int64_t), "a stage is a row of int64");

struct Point {
  int64_t kind;
  int64_t slot;  // position in the image's list: two equal operations draw different noise
  // gaussian: std in 2^-8 grey levels    speckle: relative std in 2^-12
  // salt_pepper: share of the pixels in 2^-16    occlusion: height, width of the rectangle
  int64_t a, b;
};
constexpr int kPointFields = 4;
static_assert(sizeof(Point) == kPointFields * sizeof(int64_t), "a point is a row of int64");

constexpr int kNormalBits = 12;                   // `tables` begins with 2^12 quantiles of the normal distribution,
constexpr int kNormalEntries = 1 << kNormalBits;  // in units of 2^-11
constexpr int kWeightBits = 11;                   // bilinear and resample weights, positions
constexpr int kOne = 1 << kWeightBits;
constexpr int64_t kRoundPosition = int64_t{1} << 21;  // from 2^-33 pixels to 2^-11
constexpr int kPositionShift = 22;
constexpr int kDrawsABlock = 8;  // 16-bit draws in one Philox block
constexpr uint8_t kOcclusionGrey = 128;
constexpr int kTileThreads = 128;                         // of a block on CUDA
constexpr int kChunkPixels = 16;                          // of one of its threads
constexpr int kTilePixels = kTileThreads * kChunkPixels;  // TILE_PIXELS in diva_engine/ops/perturbation_plan.py
constexpr int64_t kAlignment = 16;  // of every image in ping, pong and output; the gap behind an image is zero

HOST_DEVICE int64_t padded(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

HOST_DEVICE int64_t clamp_index(int64_t i, int64_t count) { return i < 0 ? 0 : (i >= count ? count - 1 : i); }

HOST_DEVICE uint8_t clamp_byte(int32_t value) {
  return static_cast<uint8_t>(value < 0 ? 0 : (value > 255 ? 255 : value));
}

// ---- noise ----

HOST_DEVICE Random4 noise_block(uint64_t seed, int64_t key, int64_t slot, int64_t block) {
  return random4(seed, static_cast<uint64_t>(key), static_cast<uint64_t>(slot) << 32 | static_cast<uint32_t>(block));
}

// Draw `lane` (0..7) of a block: 16 bits.
HOST_DEVICE uint32_t draw16(const Random4& block, int lane) {
  const uint32_t word = lane < 4 ? (lane < 2 ? block.x : block.y) : (lane < 6 ? block.z : block.w);
  return (word >> (16 * (lane & 1))) & 0xffffu;
}

HOST_DEVICE uint8_t gaussian_pixel(uint8_t pixel, int32_t normal, int32_t scale) {
  return clamp_byte(pixel + ((normal * scale + (1 << 18)) >> 19));
}

HOST_DEVICE uint8_t speckle_pixel(uint8_t pixel, int32_t normal, int32_t scale) {
  const int32_t gain = (normal * scale + (1 << 10)) >> 11;  // 2^-12
  return clamp_byte(pixel + ((pixel * gain + (1 << 11)) >> 12));
}

HOST_DEVICE uint8_t salt_pepper_pixel(uint8_t pixel, uint32_t draw, uint32_t threshold) {
  return draw >= threshold ? pixel : (draw < threshold / 2 ? 0 : 255);
}

struct Rectangle {
  int64_t top, left, bottom, right;
};

HOST_DEVICE Rectangle occluded(const Stage& stage, const Point& point, uint64_t seed) {
  const Random4 draw = noise_block(seed, stage.key, point.slot, 0);
  const uint64_t free_rows = static_cast<uint64_t>(stage.dst_height - point.a + 1);
  const uint64_t free_columns = static_cast<uint64_t>(stage.dst_width - point.b + 1);
  const int64_t top = static_cast<int64_t>((draw.x * free_rows) >> 32);
  const int64_t left = static_cast<int64_t>((draw.y * free_columns) >> 32);
  return {top, left, top + point.a, left + point.b};
}

// ---- rotation ----

// Where pixel (y, x) of the result comes from, in 2^-33 source pixels, with half a 2^-11 pixel added for rounding.
// Positive angles turn counter-clockwise, the centre of the result shows the centre of the source.
struct Position {
  int64_t x, y;
};

HOST_DEVICE Position source_position(const Stage& stage, int64_t y, int64_t x) {
  const int64_t dx = 2 * x - (stage.dst_width - 1), dy = 2 * y - (stage.dst_height - 1);
  return {stage.a * dx - stage.b * dy + ((stage.src_width - 1) << 32) + kRoundPosition,
          stage.b * dx + stage.a * dy + ((stage.src_height - 1) << 32) + kRoundPosition};
}

// (1 - weight) a + weight b, in 2^-11 of their unit; the difference may wrap, the sum does not.
HOST_DEVICE uint32_t mix(uint32_t a, uint32_t b, uint32_t weight) { return a * kOne + (b - a) * weight; }

HOST_DEVICE uint32_t round_mixed(uint32_t value) {
  return (value + (1u << (2 * kWeightBits - 1))) >> (2 * kWeightBits);
}

// Bilinear; what lies outside the source has the fill colour (one byte a channel).
HOST_DEVICE void rotated_pixel(const Stage& stage, const uint8_t* source, uint32_t fill, Position position,
                               uint8_t* pixel) {
  const int64_t qx = position.x >> kPositionShift, qy = position.y >> kPositionShift;
  const int64_t x0 = qx >> kWeightBits, y0 = qy >> kWeightBits;
  const bool left = x0 >= 0 && x0 < stage.src_width, right = x0 >= -1 && x0 + 1 < stage.src_width;
  const bool top = y0 >= 0 && y0 < stage.src_height, bottom = y0 >= -1 && y0 + 1 < stage.src_height;
  const uint32_t weight_x = qx & (kOne - 1), weight_y = qy & (kOne - 1);
  const int64_t pitch = stage.src_width * stage.channels;
  const int64_t at = y0 * pitch + x0 * stage.channels;  // may lie outside; read only where the flags allow
  for (int64_t c = 0; c < stage.channels; ++c) {
    const uint32_t outside = (fill >> (8 * c)) & 0xffu;
    const uint32_t p00 = top && left ? source[at + c] : outside;
    const uint32_t p01 = top && right ? source[at + stage.channels + c] : outside;
    const uint32_t p10 = bottom && left ? source[at + pitch + c] : outside;
    const uint32_t p11 = bottom && right ? source[at + pitch + stage.channels + c] : outside;
    pixel[c] = static_cast<uint8_t>(round_mixed(mix(mix(p00, p01, weight_x), mix(p10, p11, weight_x), weight_y)));
  }
}

// Number of pixels on the border, and pixel i of them (row by row; the inner rows have two).
HOST_DEVICE int64_t border_count(int64_t height, int64_t width) {
  return height <= 2 || width <= 2 ? height * width : 2 * (height + width) - 4;
}

HOST_DEVICE int64_t border_pixel(int64_t height, int64_t width, int64_t i) {
  if (height <= 2 || width <= 2 || i < width) return i;
  if (i >= 2 * (height - 2) + width) return i - (2 * (height - 2) + width) + (height - 1) * width;
  const int64_t row = 1 + (i - width) / 2;
  return row * width + ((i - width) % 2) * (width - 1);
}

HOST_DEVICE uint32_t rounded_mean(uint64_t sum, uint64_t count) {
  return static_cast<uint32_t>((2 * sum + count) / (2 * count));
}

// ---- blur: weights [radius + 1] in 2^-16, the centre first, symmetric, sum exactly 1 ----

HOST_DEVICE uint8_t round_blurred(uint32_t sum) { return static_cast<uint8_t>((sum + (1u << 15)) >> 16); }

// Element (y, e) of the result; beyond the border the border's own pixel counts again.
HOST_DEVICE uint8_t blurred(const Stage& stage, const uint8_t* source, const int32_t* tables, int64_t y, int64_t e) {
  const int32_t* weights = tables + stage.b;
  const int64_t pitch = stage.src_width * stage.channels;
  const uint32_t channels = static_cast<uint32_t>(stage.channels),
                 place = static_cast<uint32_t>(e);  // on a GPU a 64-bit division is a call
  const int64_t x = place / channels, c = place % channels;
  uint32_t sum = static_cast<uint32_t>(weights[0]) * source[y * pitch + e];
  for (int64_t k = 1; k <= stage.a; ++k) {
    int64_t before, after;
    if (stage.kind == kBlurRows) {
      before = y * pitch + clamp_index(x - k, stage.src_width) * stage.channels + c;
      after = y * pitch + clamp_index(x + k, stage.src_width) * stage.channels + c;
    } else {
      before = clamp_index(y - k, stage.src_height) * pitch + e;
      after = clamp_index(y + k, stage.src_height) * pitch + e;
    }
    sum += static_cast<uint32_t>(weights[k]) * (uint32_t{source[before]} + source[after]);
  }
  return round_blurred(sum);
}

// ---- resample: a table has one row for each result coordinate: first source coordinate, then the weights ----

HOST_DEVICE uint8_t resampled(const Stage& stage, const uint8_t* source, const int32_t* tables, int64_t y, int64_t x,
                              int64_t c) {
  const int32_t* column = tables + stage.b + x * (stage.a + 1);
  const int32_t* row = tables + stage.d + y * (stage.c + 1);
  uint32_t sum = 0;
  for (int64_t j = 0; j < stage.c; ++j) {
    const uint8_t* line = source + ((row[0] + j) * stage.src_width + column[0]) * stage.channels + c;
    uint32_t across = 0;
    for (int64_t i = 0; i < stage.a; ++i) across += static_cast<uint32_t>(column[1 + i]) * line[i * stage.channels];
    sum += static_cast<uint32_t>(row[1 + j]) * across;
  }
  return static_cast<uint8_t>(round_mixed(sum));
}

#if !defined(__CUDACC_RTC__)
struct Plan {
  const Stage* stages;
  const Point* points;
  const int32_t* tables;
  uint64_t seed;
};

// What a rotation shows beyond its source: the mean colour of the border, one byte a channel.
uint32_t edge_mean_cpu(const Stage& stage, const uint8_t* source);

// Rows first..last-1 of a stage's result. `source` and `result` are whole images.
void perturb_rows_cpu(const Plan& plan, const Stage& stage, const uint8_t* source, uint8_t* result, uint32_t fill,
                      int64_t first, int64_t last);
#endif

}  // namespace diva

#if !defined(__CUDACC_RTC__)
// Device pointers, except for `launches` [2 * num_launches]: rotations and tiles of each. `fills` has a word a stage.
// Returns a cudaError_t.
extern "C" int diva_perturb_images_cuda(const uint8_t* pixels, const diva::Stage* stages, const diva::Point* points,
                                        const int32_t* tables, const int32_t* tiles, const int64_t* launches,
                                        int64_t num_launches, uint64_t seed, uint8_t* scratch, int64_t scratch_bytes,
                                        uint32_t* fills, uint8_t* output, void* stream);
#endif
