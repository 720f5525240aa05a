#include "perturb_images/perturb_images.h"

#include <algorithm>

#include "perturb_images/blur_rows.h"
#include "perturb_images/point_rows.h"
#include "perturb_images/resample_rows.h"
#include "perturb_images/rotate_rows.h"

namespace diva {

namespace {

constexpr int64_t kBytesAtOnce = 12288;  // rows gathered before the pointwise operations run over them: they stay in L1

struct GatheredRows {  // what neighbouring rows share
  BlurredRows blurred;
  ResampledRows resampled;
};

void gather_rows(const Plan& plan, const Stage& stage, const uint8_t* source, uint8_t* result, uint32_t fill,
                 int64_t first, int64_t last, GatheredRows& rows) {
  const int64_t pitch = stage.dst_width * stage.channels;
  if (stage.kind == kCopy) {
    std::memcpy(result + first * pitch, source + first * pitch, (last - first) * pitch);
    return;
  }
  for (int64_t y = first; y < last; ++y) {
    uint8_t* row = result + y * pitch;
    if (stage.kind == kRotate) {
      rotate_row(stage, source, fill, y, row);
    } else if (stage.kind == kResample) {
      rows.resampled.row(stage, source, plan.tables, y, row);
    } else {
      rows.blurred.row(stage, source, plan.tables, y, row);
    }
  }
}

void apply_points(const Plan& plan, const Stage& stage, uint8_t* result, int64_t first, int64_t last) {
  const int64_t pitch = stage.dst_width * stage.channels;
  for (int64_t i = 0; i < stage.num_points; ++i) {
    const Point& point = plan.points[stage.first_point + i];
    if (point.kind == kOcclusion) {
      occlude_rows(stage, point, plan.seed, result, first, last);
    } else if (point.kind == kSaltPepper) {
      salt_pepper_span(stage, point, plan.seed, result, first * stage.dst_width, last * stage.dst_width);
    } else {
      normal_noise_span(stage, point, plan.seed, plan.tables, result, first * pitch, last * pitch);
    }
  }
}

}  // namespace

uint32_t edge_mean_cpu(const Stage& stage, const uint8_t* source) {
  const int64_t count = border_count(stage.src_height, stage.src_width);
  uint64_t sums[4] = {};
  for (int64_t i = 0; i < count; ++i) {
    const uint8_t* pixel = source + border_pixel(stage.src_height, stage.src_width, i) * stage.channels;
    for (int64_t c = 0; c < stage.channels; ++c) sums[c] += pixel[c];
  }
  uint32_t mean = 0;
  for (int64_t c = 0; c < stage.channels; ++c) mean |= rounded_mean(sums[c], count) << (8 * c);
  return mean;
}

void perturb_rows_cpu(const Plan& plan, const Stage& stage, const uint8_t* source, uint8_t* result, uint32_t fill,
                      int64_t first, int64_t last) {
  const int64_t pitch = stage.dst_width * stage.channels;
  const int64_t rows_at_once = std::max<int64_t>(1, kBytesAtOnce / pitch);
  GatheredRows rows;
  for (int64_t y = first; y < last; y += rows_at_once) {
    const int64_t end = std::min(last, y + rows_at_once);
    gather_rows(plan, stage, source, result, fill, y, end, rows);
    apply_points(plan, stage, result, y, end);
  }
}

}  // namespace diva
