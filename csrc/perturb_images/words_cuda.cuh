#pragma once
// Bytes in registers: words from any address, byte by byte access, deinterleaving.
#include "perturb_images/perturb_images.h"

namespace diva {

__device__ __forceinline__ void unpack(const uint4& vector, uint32_t* words) {
  words[0] = vector.x;
  words[1] = vector.y;
  words[2] = vector.z;
  words[3] = vector.w;
}

// `i` is known at compile time once the loops are unrolled, so the bytes stay in registers.
__device__ __forceinline__ uint8_t get_byte(const uint32_t* words, int i) {
  return static_cast<uint8_t>(words[i / 4] >> (8 * (i % 4)));
}

__device__ __forceinline__ void set_byte(uint32_t* words, int i, uint32_t value) {
  words[i / 4] = (words[i / 4] & ~(0xffu << (8 * (i % 4)))) | value << (8 * (i % 4));
}

// Four bytes from any address. Aligned words that hold one of them never leave the allocation.
__device__ __forceinline__ uint32_t load_word(const uint8_t* at) {
  const uint64_t address = reinterpret_cast<uint64_t>(at);
  const uint32_t* aligned = reinterpret_cast<const uint32_t*>(address & ~uint64_t{3});
  const uint32_t misaligned = static_cast<uint32_t>(address & 3);
  if (misaligned == 0) return aligned[0];
  return __funnelshift_r(aligned[0], aligned[1], 8 * misaligned);
}

// Pixel at `at` and the one right of it; the first C bytes of each word count.
template <int C>
__device__ __forceinline__ void load_two_pixels(const uint8_t* at, uint32_t& left, uint32_t& right) {
  if (C == 1) {
    left = at[0];
    right = at[1];
  } else if (C == 4) {
    left = load_word(at);
    right = load_word(at + 4);
  } else {  // six bytes: two words, or three
    const uint64_t address = reinterpret_cast<uint64_t>(at);
    const uint32_t* aligned = reinterpret_cast<const uint32_t*>(address & ~uint64_t{3});
    const uint32_t misaligned = static_cast<uint32_t>(address & 3);
    const uint32_t middle = aligned[1], last = misaligned == 3 ? aligned[2] : 0;
    left = __funnelshift_r(aligned[0], middle, 8 * misaligned);
    right = __funnelshift_r(left, __funnelshift_r(middle, last, 8 * misaligned), 24);
  }
}

// Bytes 0, 1, 2, 3 of four words -> columns.
__device__ __forceinline__ void transpose_bytes(const uint32_t* words, uint32_t* columns) {
  const uint32_t upper_left = __byte_perm(words[0], words[1], 0x5140);
  const uint32_t lower_left = __byte_perm(words[2], words[3], 0x5140);
  const uint32_t upper_right = __byte_perm(words[0], words[1], 0x7362);
  const uint32_t lower_right = __byte_perm(words[2], words[3], 0x7362);
  columns[0] = __byte_perm(upper_left, lower_left, 0x5410);
  columns[1] = __byte_perm(upper_left, lower_left, 0x7632);
  columns[2] = __byte_perm(upper_right, lower_right, 0x5410);
  columns[3] = __byte_perm(upper_right, lower_right, 0x7632);
}

// Four pixels, words [C] -> planes [C]: one channel of the four.
template <int C>
__device__ __forceinline__ void split_channels(const uint32_t* words, uint32_t* planes) {
  if (C == 1) {
    planes[0] = words[0];
  } else if (C == 4) {
    transpose_bytes(words, planes);
  } else {  // r g b r | g b r g | b r g b
    planes[0] = __byte_perm(__byte_perm(words[0], words[1], 0x0630), words[2], 0x5210);
    planes[1] = __byte_perm(__byte_perm(words[0], words[1], 0x0741), words[2], 0x6210);
    planes[2] = __byte_perm(__byte_perm(words[0], words[1], 0x0052), words[2], 0x7410);
  }
}

}  // namespace diva
