#include "common/launch.h"
#include "common/segment.h"
#include "token_logprob/token_logprob.h"

namespace diva {

constexpr int kWideThreads = 512;    // for vocabularies of real models
constexpr int kNarrowThreads = 128;  // for small ones
constexpr int64_t kNarrowColumns = 8192;
constexpr int kMaxWarps = kWideThreads / kLanes;

template <typename Stored>
__global__ void token_logprob_kernel(Logits<const Stored> logits, const int64_t* targets, float temperature,
                                     TokenResults<float> results);
template <typename Stored>
__global__ void token_logprob_backward_kernel(Logits<const Stored> logits, const int64_t* targets, float temperature,
                                              TokenResults<const float> results, TokenGradients<float> gradients,
                                              Logits<Stored> output);

#if !defined(DIVA_RUN_TIME_KERNELS)
// 16 bytes of logits, the widest load there is.
template <typename Stored>
struct alignas(16) Pack {
  static constexpr int kCount = 16 / sizeof(Stored);
  Stored values[kCount];
};

// A row begins at any multiple of its element's size: [0, head) are single elements before the first 16-byte boundary,
// then come `packs` whole packs, then single elements again.
template <typename Stored>
struct RowLayout {
  int64_t head;
  int64_t packs;
  int64_t tail;  // index of the first element behind the packs

  HOST_DEVICE RowLayout(const Stored* row, int64_t num_columns) {
    const int64_t misaligned = static_cast<int64_t>(reinterpret_cast<uint64_t>(row) % 16 / sizeof(Stored));
    head = misaligned == 0 ? 0 : Pack<Stored>::kCount - misaligned;
    head = head < num_columns ? head : num_columns;
    packs = (num_columns - head) / Pack<Stored>::kCount;
    tail = head + packs * Pack<Stored>::kCount;
  }
};

// Takes `Count` more logits into a thread's sums: one comparison of the maximum, then one power each.
template <int Count>
HOST_DEVICE void add_logits(RowSums<float>& sums, const float* logits, float scale) {
  float highest = logits[0];
#pragma unroll
  for (int i = 1; i < Count; ++i) highest = logits[i] > highest ? logits[i] : highest;
  if (highest * scale > sums.max) sums = relative_to(sums, highest * scale);
#pragma unroll
  for (int i = 0; i < Count; ++i) {
    const float gap = at_least(logits[i] * scale - sums.max, vanishing<float>());
    const float weight = power_of_two(gap);
    sums.sum += weight;
    sums.weighted += weight * gap;
  }
}

__device__ __forceinline__ RowSums<float> warp_joined(RowSums<float> sums) {
#pragma unroll
  for (int half = kLanes / 2; half > 0; half /= 2) {
    const RowSums<float> other{__shfl_xor_sync(kWholeWarp, sums.max, half), __shfl_xor_sync(kWholeWarp, sums.sum, half),
                               __shfl_xor_sync(kWholeWarp, sums.weighted, half)};
    sums = joined(sums, other);
  }
  return sums;
}

// logits [T,V], targets [T] -> logprob, entropy, log_norm [T]. One block a row: its threads stride over the row in
// packs.
template <typename Stored>
__global__ void __launch_bounds__(kWideThreads)
    token_logprob_kernel(Logits<const Stored> logits, const int64_t* __restrict__ targets, float temperature,
                         TokenResults<float> results) {
  __shared__ RowSums<float> warp_sums[kMaxWarps];
  const Stored* row = logits.values + blockIdx.x * logits.row_stride;
  const RowLayout<Stored> layout(row, logits.num_columns);
  const float scale = static_cast<float>(kLog2E) / temperature;
  RowSums<float> sums = no_sums<float>();

  const Pack<Stored>* packs = reinterpret_cast<const Pack<Stored>*>(row + layout.head);
#pragma unroll 2
  for (int64_t i = threadIdx.x; i < layout.packs; i += blockDim.x) {
    const Pack<Stored> pack = packs[i];
    float values[Pack<Stored>::kCount];
#pragma unroll
    for (int k = 0; k < Pack<Stored>::kCount; ++k) values[k] = to_float(pack.values[k]);
    add_logits<Pack<Stored>::kCount>(sums, values, scale);
  }
  for (int64_t i = threadIdx.x; i < layout.head; i += blockDim.x) {
    const float value = to_float(row[i]);
    add_logits<1>(sums, &value, scale);
  }
  for (int64_t i = layout.tail + threadIdx.x; i < logits.num_columns; i += blockDim.x) {
    const float value = to_float(row[i]);
    add_logits<1>(sums, &value, scale);
  }

  sums = warp_joined(sums);
  if (threadIdx.x % kLanes == 0) warp_sums[threadIdx.x / kLanes] = sums;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int warp = 1; warp < static_cast<int>(blockDim.x) / kLanes; ++warp) sums = joined(sums, warp_sums[warp]);
  const int64_t target = targets[blockIdx.x];
  const bool in_range = target >= 0 && target < logits.num_columns;
  const RowResult<float> result = row_result(sums, in_range ? to_float(row[target]) * scale : nanf(""));
  results.logprob[blockIdx.x] = result.logprob;
  results.entropy[blockIdx.x] = in_range ? result.entropy : nanf("");
  results.log_norm[blockIdx.x] = result.log_norm;
}

// logits [T,V] and what the forward pass found -> gradient [T,V], which may be the logits themselves: every element is
// read and written by one thread. One block a row, as above.
template <typename Stored>
__global__ void __launch_bounds__(kWideThreads)
    token_logprob_backward_kernel(Logits<const Stored> logits, const int64_t* __restrict__ targets, float temperature,
                                  TokenResults<const float> results, TokenGradients<float> gradients,
                                  Logits<Stored> output) {
  const Stored* row = logits.values + blockIdx.x * logits.row_stride;
  Stored* row_output = output.values + blockIdx.x * output.row_stride;
  const float logprob_gradient = gradients.logprob ? gradients.logprob[blockIdx.x] : 0.0f;
  const float entropy_gradient = gradients.entropy ? gradients.entropy[blockIdx.x] : 0.0f;
  const bool has_credit = logprob_gradient != 0.0f || entropy_gradient != 0.0f;  // else the row is not read
  const float scale = static_cast<float>(kLog2E) / temperature, log_norm = results.log_norm[blockIdx.x];
  const RowGradient<float> gradient =
      row_gradient(logprob_gradient, entropy_gradient, results.entropy[blockIdx.x], temperature);
  const auto gradient_of = [&](Stored logit) {
    return from_float<Stored>(logit_gradient(gradient, to_float(logit) * scale - log_norm));
  };

  const RowLayout<Stored> layout(row, logits.num_columns), output_layout(row_output, logits.num_columns);
  const bool packed = layout.head == output_layout.head;  // else rows of the two begin at different places of 16 bytes
  const int64_t num_packs = packed ? layout.packs : 0, head = packed ? layout.head : 0, tail = packed ? layout.tail : 0;
  const Pack<Stored>* packs = reinterpret_cast<const Pack<Stored>*>(row + head);
  Pack<Stored>* output_packs = reinterpret_cast<Pack<Stored>*>(row_output + head);
#pragma unroll 2
  for (int64_t i = threadIdx.x; i < num_packs; i += blockDim.x) {
    Pack<Stored> pack{};
    if (has_credit) {
      pack = packs[i];
#pragma unroll
      for (int k = 0; k < Pack<Stored>::kCount; ++k) pack.values[k] = gradient_of(pack.values[k]);
    }
    output_packs[i] = pack;
  }
  for (int64_t i = threadIdx.x; i < head; i += blockDim.x) row_output[i] = has_credit ? gradient_of(row[i]) : Stored{};
  for (int64_t i = tail + threadIdx.x; i < logits.num_columns; i += blockDim.x) {
    row_output[i] = has_credit ? gradient_of(row[i]) : Stored{};
  }

  const int64_t target = targets[blockIdx.x];
  if (!has_credit || target < 0 || target >= logits.num_columns) return;
  __syncthreads();  // the target's element has been written by some thread
  if (threadIdx.x != 0) return;
  const float log_p = results.logprob[blockIdx.x] * static_cast<float>(kLog2E);
  row_output[target] = from_float<Stored>(logit_gradient(gradient, log_p) + gradient.target);
}

#endif  // DIVA_RUN_TIME_KERNELS

#if !defined(__CUDACC_RTC__)
static dim3 threads_for(int64_t num_columns) {
  return dim3(num_columns < kNarrowColumns ? kNarrowThreads : kWideThreads);
}

template <typename Stored>
Logits<Stored> typed(Logits<const void> logits) {
  return {static_cast<Stored*>(logits.values), logits.row_stride, logits.num_rows, logits.num_columns};
}

template <typename Stored>
Logits<Stored> typed(Logits<void> logits) {
  return {static_cast<Stored*>(logits.values), logits.row_stride, logits.num_rows, logits.num_columns};
}

template <typename Stored>
static void launch_forward(Logits<const void> logits, const int64_t* targets, float temperature,
                           TokenResults<float> results, void* stream) {
  DIVA_LAUNCH(token_logprob_kernel<Stored>, dim3(static_cast<unsigned>(logits.num_rows)),
              threads_for(logits.num_columns), 0, stream, typed<const Stored>(logits), targets, temperature, results);
}

template <typename Stored>
static void launch_backward(Logits<const void> logits, const int64_t* targets, float temperature,
                            TokenResults<const float> results, TokenGradients<float> gradients, Logits<void> gradient,
                            void* stream) {
  DIVA_LAUNCH(token_logprob_backward_kernel<Stored>, dim3(static_cast<unsigned>(logits.num_rows)),
              threads_for(logits.num_columns), 0, stream, typed<const Stored>(logits), targets, temperature, results,
              gradients, typed<Stored>(gradient));
}
#endif

}  // namespace diva

#if !defined(__CUDACC_RTC__)
extern "C" int diva_token_logprob_cuda(DivaLogitType type, diva::Logits<const void> logits, const int64_t* targets,
                                       float temperature, diva::TokenResults<float> results, void* stream) {
  if (logits.num_rows == 0) return cudaSuccess;
  switch (type) {
    case DivaLogitType::kFloat:
      diva::launch_forward<float>(logits, targets, temperature, results, stream);
      break;
    case DivaLogitType::kBFloat16:
      diva::launch_forward<diva::BFloat16>(logits, targets, temperature, results, stream);
      break;
    case DivaLogitType::kFloat16:
      diva::launch_forward<diva::Float16>(logits, targets, temperature, results, stream);
      break;
  }
  return cudaGetLastError();
}

extern "C" int diva_token_logprob_backward_cuda(DivaLogitType type, diva::Logits<const void> logits,
                                                const int64_t* targets, float temperature,
                                                diva::TokenResults<const float> results,
                                                diva::TokenGradients<float> gradients, diva::Logits<void> gradient,
                                                void* stream) {
  if (logits.num_rows == 0) return cudaSuccess;
  switch (type) {
    case DivaLogitType::kFloat:
      diva::launch_backward<float>(logits, targets, temperature, results, gradients, gradient, stream);
      break;
    case DivaLogitType::kBFloat16:
      diva::launch_backward<diva::BFloat16>(logits, targets, temperature, results, gradients, gradient, stream);
      break;
    case DivaLogitType::kFloat16:
      diva::launch_backward<diva::Float16>(logits, targets, temperature, results, gradients, gradient, stream);
      break;
  }
  return cudaGetLastError();
}
#endif
