#pragma once
// Philox4x32-10 (Salmon et al., 2011): a counter-based generator without state, the same integers on every device.
#include "common/macros.h"

namespace diva {

constexpr int kPhiloxRounds = 10;
constexpr uint32_t kPhiloxMultiplier0 = 0xD2511F53u, kPhiloxMultiplier1 = 0xCD9E8D57u;
constexpr uint32_t kPhiloxStep0 = 0x9E3779B9u, kPhiloxStep1 = 0xBB67AE85u;

struct Random4 {
  uint32_t x, y, z, w;
};

HOST_DEVICE uint32_t multiply_high(uint32_t a, uint32_t b) {
#if defined(__CUDA_ARCH__)
  return __umulhi(a, b);
#else
  return static_cast<uint32_t>((static_cast<uint64_t>(a) * b) >> 32);
#endif
}

HOST_DEVICE Random4 philox4x32_10(Random4 counter, uint32_t key0, uint32_t key1) {
#if defined(__CUDA_ARCH__)
#pragma unroll
#endif
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const uint32_t high0 = multiply_high(kPhiloxMultiplier0, counter.x), low0 = kPhiloxMultiplier0 * counter.x;
    const uint32_t high1 = multiply_high(kPhiloxMultiplier1, counter.z), low1 = kPhiloxMultiplier1 * counter.z;
    counter = Random4{high1 ^ counter.y ^ key0, low1, high0 ^ counter.w ^ key1, low0};
    key0 += kPhiloxStep0;
    key1 += kPhiloxStep1;
  }
  return counter;
}

// Four 32-bit draws for element `index` of stream `stream` under `seed`.
HOST_DEVICE Random4 random4(uint64_t seed, uint64_t stream, uint64_t index) {
  const Random4 counter{static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32), static_cast<uint32_t>(stream),
                        static_cast<uint32_t>(stream >> 32)};
  return philox4x32_10(counter, static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
}

}  // namespace diva
