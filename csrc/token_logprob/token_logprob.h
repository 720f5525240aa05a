#pragma once
// Log-probability of one token and entropy of its distribution, from one pass over the logits.
//
// Everything is in powers of two: u = logit * scale with scale = log2(e) / temperature, so that p = 2^(u - log_norm).
#include "common/exponential.h"
#include "common/float16.h"

namespace diva {

// What a pass has seen of a row: the largest u, and sums relative to it, so that nothing overflows.
template <typename T>
struct RowSums {
  T max;
  T sum;       // of 2^(u - max)
  T weighted;  // of 2^(u - max) * (u - max)
};

constexpr float kLowest = -3.0e38f;  // stands below every finite u
constexpr double kLn2 = 0.693147180559945309;
constexpr double kLog2E = 1.44269504088896341;

template <typename T>
HOST_DEVICE RowSums<T> no_sums() {
  return {T(kLowest), T(0), T(0)};
}

// Keeps NaN, and makes 0 * (u - max) a zero where u is -infinity.
HOST_DEVICE float at_least(float value, float bound) {
#if defined(__CUDA_ARCH__)
  float result;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(value), "f"(bound));
  return result;
#else
  return value < bound ? bound : value;
#endif
}
HOST_DEVICE double at_least(double value, double bound) { return value < bound ? bound : value; }

template <typename T>
HOST_DEVICE T vanishing() {
  return T(sizeof(T) == sizeof(double) ? -1080 : -127);  // 2 to this power is 0
}

template <typename T>
HOST_DEVICE RowSums<T> relative_to(RowSums<T> row, T max) {
  const T gap = at_least(row.max - max, vanishing<T>()), factor = power_of_two(gap);
  return {max, row.sum * factor, (row.weighted + gap * row.sum) * factor};
}

template <typename T>
HOST_DEVICE RowSums<T> joined(RowSums<T> a, RowSums<T> b) {
  const T max = a.max > b.max ? a.max : b.max;
  a = relative_to(a, max);
  b = relative_to(b, max);
  return {max, a.sum + b.sum, a.weighted + b.weighted};
}

template <typename T>
struct RowResult {
  T logprob;
  T entropy;
  T log_norm;  // in powers of two
};

template <typename T>
HOST_DEVICE RowResult<T> row_result(RowSums<T> row, T target) {
  const T log_sum = log2(row.sum);
  return {T(kLn2) * ((target - row.max) - log_sum), T(kLn2) * (log_sum - row.weighted / row.sum), row.max + log_sum};
}

// How the gradients of a row's two results reach its logits: p * (constant + linear * log2(p)), plus `target` where the
// logit is the token's own.
template <typename T>
struct RowGradient {
  T constant;
  T linear;
  T target;
};

template <typename T>
HOST_DEVICE RowGradient<T> row_gradient(T logprob_gradient, T entropy_gradient, T entropy, T temperature) {
  return {-(logprob_gradient + entropy_gradient * entropy) / temperature, -entropy_gradient * T(kLn2) / temperature,
          logprob_gradient / temperature};
}

template <typename T>
HOST_DEVICE T logit_gradient(RowGradient<T> gradient, T log_p) {
  log_p = at_least(log_p, vanishing<T>());
  return power_of_two(log_p) * (gradient.constant + gradient.linear * log_p);
}

// T tokens of V logits each. A row's logits lie side by side; rows are row_stride logits apart.
template <typename Stored>
struct Logits {
  Stored* values;
  int64_t row_stride;
  int64_t num_rows;
  int64_t num_columns;
};

template <typename T>
struct TokenResults {  // [num_rows] each
  T* logprob;
  T* entropy;
  T* log_norm;
};

template <typename T>
struct TokenGradients {  // [num_rows] each; null where there is none
  const T* logprob;
  const T* entropy;
};

#if !defined(__CUDACC_RTC__)
// Rows first..last-1. Targets must be in range.
template <typename Stored, typename T>
void token_logprob_cpu(Logits<const Stored> logits, const int64_t* targets, T temperature, int64_t first, int64_t last,
                       TokenResults<T> results);

// Writes the gradient of rows first..last-1 to `gradient`, which may be the logits themselves.
template <typename Stored, typename T>
void token_logprob_backward_cpu(Logits<const Stored> logits, const int64_t* targets, T temperature, int64_t first,
                                int64_t last, TokenResults<const T> results, TokenGradients<T> gradients,
                                Logits<Stored> gradient);
#endif

}  // namespace diva

#if !defined(__CUDACC_RTC__)
enum class DivaLogitType : int { kFloat, kBFloat16, kFloat16 };

// Both return a cudaError_t. A target out of range gives NaN and passes no gradient to any target logit.
extern "C" int diva_token_logprob_cuda(DivaLogitType type, diva::Logits<const void> logits, const int64_t* targets,
                                       float temperature, diva::TokenResults<float> results, void* stream);
extern "C" int diva_token_logprob_backward_cuda(DivaLogitType type, diva::Logits<const void> logits,
                                                const int64_t* targets, float temperature,
                                                diva::TokenResults<const float> results,
                                                diva::TokenGradients<float> gradients, diva::Logits<void> gradient,
                                                void* stream);
#endif
