#pragma once
// Shannon entropy, in nats, of the grey levels of an image. The histogram is exact; the logarithm is a fixed sequence
// of correctly rounded float64 operations, so the CPU and CUDA give the same bits.
#include "common/macros.h"

namespace diva {

constexpr int kGreyLevels = 256;
constexpr int kImageFields = 4;  // of a row of `images`: first byte, height, width, channels

// Rec. 601 luma, as every image library has it.
HOST_DEVICE uint32_t grey_level(uint32_t red, uint32_t green, uint32_t blue) {
  return (77 * red + 150 * green + 29 * blue + 128) >> 8;
}

#if defined(__CUDA_ARCH__)
HOST_DEVICE double add_exact(double a, double b) { return __dadd_rn(a, b); }
HOST_DEVICE double multiply_exact(double a, double b) { return __dmul_rn(a, b); }
HOST_DEVICE double divide_exact(double a, double b) { return __ddiv_rn(a, b); }
#else  // built with -ffp-contract=off
HOST_DEVICE double add_exact(double a, double b) { return a + b; }
HOST_DEVICE double multiply_exact(double a, double b) { return a * b; }
HOST_DEVICE double divide_exact(double a, double b) { return a / b; }
#endif

// ln(x) for x >= 1: x = m 2^e with m in [0.75, 1.5), ln m = 2 artanh((m - 1) / (m + 1)), whose series is cut below
// 1e-16.
HOST_DEVICE double natural_log(int64_t x) {
  double m = static_cast<double>(x);
  int exponent = 0;
  while (m >= 1.5) {
    m = multiply_exact(m, 0.5);
    ++exponent;
  }
  const double s = divide_exact(add_exact(m, -1.0), add_exact(m, 1.0)), square = multiply_exact(s, s);
  double series = 0.0;
  for (int n = 21; n >= 1; n -= 2) {
    series = add_exact(divide_exact(1.0, static_cast<double>(n)), multiply_exact(series, square));
  }
  const double mantissa = multiply_exact(2.0, multiply_exact(s, series));
  return add_exact(multiply_exact(static_cast<double>(exponent), 0.69314718055994530942), mantissa);
}

// What a level that `count` pixels have takes from the entropy, times the number of pixels.
HOST_DEVICE double level_term(int64_t count) {
  return count == 0 ? 0.0 : multiply_exact(static_cast<double>(count), natural_log(count));
}

// ln n - sum(count ln count) / n, from terms [256]. One level alone gives exactly 0.
HOST_DEVICE float entropy_of(const double* terms, int64_t num_pixels) {
  double sum = 0.0;
  for (int level = 0; level < kGreyLevels; ++level) sum = add_exact(sum, terms[level]);
  const double whole = level_term(num_pixels);
  const double entropy = divide_exact(add_exact(whole, -sum), static_cast<double>(num_pixels));
  return static_cast<float>(entropy < 0.0 ? 0.0 : entropy);
}

#if !defined(__CUDACC_RTC__)
// pixels [height * width * channels] -> its entropy
float histogram_entropy_cpu(const uint8_t* pixels, int64_t num_pixels, int64_t channels);
#endif

}  // namespace diva

#if !defined(__CUDACC_RTC__)
// Device pointers. images [B, 4] rows of first byte, height, width, channels; histograms [B, 256] is scratch.
// Returns a cudaError_t.
extern "C" int diva_histogram_entropy_cuda(const uint8_t* pixels, const int64_t* images, int64_t num_images,
                                           uint32_t* histograms, float* entropy, void* stream);
#endif
