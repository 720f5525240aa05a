#include "histogram_entropy/histogram_entropy.h"

#include <algorithm>

#include "common/multiversion.h"

namespace diva {

namespace {

constexpr int kPixelsAtOnce = 2048;
constexpr int kHistograms = 4;  // taken in turn: one would wait for itself wherever neighbours are alike

template <int C>
HOST_DEVICE void to_grey(const uint8_t* __restrict__ pixels, int count, uint8_t* __restrict__ levels) {
  for (int i = 0; i < count; ++i) {
    levels[i] = static_cast<uint8_t>(grey_level(pixels[C * i], pixels[C * i + 1], pixels[C * i + 2]));
  }
}

MULTIVERSION void grey_levels(const uint8_t* pixels, int count, int64_t channels, uint8_t* levels) {
  if (channels == 1) std::memcpy(levels, pixels, count);
  if (channels == 3) to_grey<3>(pixels, count, levels);
  if (channels == 4) to_grey<4>(pixels, count, levels);
}

}  // namespace

float histogram_entropy_cpu(const uint8_t* pixels, int64_t num_pixels, int64_t channels) {
  uint32_t histograms[kHistograms][kGreyLevels] = {};
  uint8_t levels[kPixelsAtOnce];
  for (int64_t first = 0; first < num_pixels; first += kPixelsAtOnce) {
    const int count = static_cast<int>(std::min<int64_t>(kPixelsAtOnce, num_pixels - first));
    grey_levels(pixels + first * channels, count, channels, levels);
    int i = 0;
    for (; i + kHistograms <= count; i += kHistograms) {
      for (int h = 0; h < kHistograms; ++h) ++histograms[h][levels[i + h]];
    }
    for (; i < count; ++i) ++histograms[0][levels[i]];
  }
  double terms[kGreyLevels];
  for (int level = 0; level < kGreyLevels; ++level) {
    int64_t count = 0;
    for (int h = 0; h < kHistograms; ++h) count += histograms[h][level];
    terms[level] = level_term(count);
  }
  return entropy_of(terms, num_pixels);
}

}  // namespace diva
