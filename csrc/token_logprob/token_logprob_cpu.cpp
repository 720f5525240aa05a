#include "token_logprob/token_logprob.h"

#include <algorithm>

#include "common/vectorize.h"

namespace diva {

namespace {

// A row is worked on in blocks that stay in the first cache, by short loops without branches: they become vector code.
constexpr int kBlock = 1024;

template <typename Stored, typename T>
HOST_DEVICE void load_block(const Stored* values, int count, T scale, T* block) {
  for (int i = 0; i < count; ++i) block[i] = to_float(values[i]) * scale;
}

template <typename T>
HOST_DEVICE T block_max(const T* block, int count) {
  T lanes[kVectorLanes];
  std::fill(lanes, lanes + kVectorLanes, T(kLowest));
  int i = 0;
  for (; i + kVectorLanes <= count; i += kVectorLanes) {
    for (int lane = 0; lane < kVectorLanes; ++lane)
      lanes[lane] = block[i + lane] > lanes[lane] ? block[i + lane] : lanes[lane];
  }
  for (int lane = 0; i + lane < count; ++lane)
    lanes[lane] = block[i + lane] > lanes[lane] ? block[i + lane] : lanes[lane];
  return *std::max_element(lanes, lanes + kVectorLanes);
}

// Sums of a block relative to `max`, in 16 lanes joined at the end.
template <typename T>
HOST_DEVICE RowSums<T> block_sums(const T* block, int count, T max) {
  T weights[kBlock], products[kBlock];
  for (int i = 0; i < count; ++i) {
    const T gap = at_least(block[i] - max, vanishing<T>());
    weights[i] = power_of_two(gap);
    products[i] = weights[i] * gap;
  }
  return {max, strided_sum(weights, count), strided_sum(products, count)};
}

template <typename Stored, typename T>
HOST_DEVICE void row_forward(const Stored* row, int64_t num_columns, T scale, int64_t target, RowResult<T>& result) {
  T block[kBlock];
  RowSums<double> sums = no_sums<double>();  // blocks are joined in double: 150,000 small terms lose digits in float
  for (int64_t start = 0; start < num_columns; start += kBlock) {
    const int count = static_cast<int>(std::min<int64_t>(kBlock, num_columns - start));
    load_block(row + start, count, scale, block);
    const double highest = block_max(block, count);
    if (highest > sums.max) sums = relative_to(sums, highest);
    const RowSums<T> part = block_sums(block, count, static_cast<T>(sums.max));
    sums.sum += part.sum;
    sums.weighted += part.weighted;
  }
  const RowResult<double> found = row_result(sums, static_cast<double>(to_float(row[target]) * scale));
  result = {static_cast<T>(found.logprob), static_cast<T>(found.entropy), static_cast<T>(found.log_norm)};
}

template <typename Stored, typename T>
HOST_DEVICE void rows_forward(Logits<const Stored> logits, const int64_t* targets, T temperature, int64_t first,
                              int64_t last, TokenResults<T> results) {
  const T scale = static_cast<T>(kLog2E) / temperature;
  for (int64_t t = first; t < last; ++t) {
    RowResult<T> result;
    row_forward(logits.values + t * logits.row_stride, logits.num_columns, scale, targets[t], result);
    results.logprob[t] = result.logprob;
    results.entropy[t] = result.entropy;
    results.log_norm[t] = result.log_norm;
  }
}

template <typename Stored, typename T>
HOST_DEVICE void row_backward(const Stored* row, int64_t num_columns, T scale, T log_norm, RowGradient<T> gradient,
                              Stored* output) {
  T block[kBlock];
  for (int64_t start = 0; start < num_columns; start += kBlock) {
    const int count = static_cast<int>(std::min<int64_t>(kBlock, num_columns - start));
    load_block(row + start, count, scale, block);
    for (int i = 0; i < count; ++i) block[i] = logit_gradient(gradient, block[i] - log_norm);
    for (int i = 0; i < count; ++i) output[start + i] = from_float<Stored>(block[i]);
  }
}

template <typename Stored, typename T>
HOST_DEVICE void rows_backward(Logits<const Stored> logits, const int64_t* targets, T temperature, int64_t first,
                               int64_t last, TokenResults<const T> results, TokenGradients<T> gradients,
                               Logits<Stored> output) {
  const T scale = static_cast<T>(kLog2E) / temperature;
  for (int64_t t = first; t < last; ++t) {
    Stored* row = output.values + t * output.row_stride;
    const T logprob_gradient = gradients.logprob ? gradients.logprob[t] : T(0);
    const T entropy_gradient = gradients.entropy ? gradients.entropy[t] : T(0);
    if (logprob_gradient == 0 && entropy_gradient == 0) {  // a token without credit costs no reading
      std::fill(row, row + output.num_columns, from_float<Stored>(T(0)));
      continue;
    }
    const RowGradient<T> gradient = row_gradient(logprob_gradient, entropy_gradient, results.entropy[t], temperature);
    row_backward(logits.values + t * logits.row_stride, logits.num_columns, scale, results.log_norm[t], gradient, row);
    const T at_target = logit_gradient(gradient, results.logprob[t] * static_cast<T>(kLog2E)) + gradient.target;
    row[targets[t]] = from_float<Stored>(at_target);
  }
}

}  // namespace

// GCC clones functions, not templates: one pair a type.
#define DIVA_TOKEN_LOGPROB_CPU(Stored, T, CLONES)                                                                  \
  template <>                                                                                                      \
  CLONES void token_logprob_cpu(Logits<const Stored> logits, const int64_t* targets, T temperature, int64_t first, \
                                int64_t last, TokenResults<T> results) {                                           \
    rows_forward(logits, targets, temperature, first, last, results);                                              \
  }                                                                                                                \
  template <>                                                                                                      \
  CLONES void token_logprob_backward_cpu(Logits<const Stored> logits, const int64_t* targets, T temperature,       \
                                         int64_t first, int64_t last, TokenResults<const T> results,               \
                                         TokenGradients<T> gradients, Logits<Stored> gradient) {                   \
    rows_backward(logits, targets, temperature, first, last, results, gradients, gradient);                        \
  }

DIVA_TOKEN_LOGPROB_CPU(float, float, CPU_CLONES)
DIVA_TOKEN_LOGPROB_CPU(BFloat16, float, CPU_CLONES)
DIVA_TOKEN_LOGPROB_CPU(Float16, float, CPU_CLONES)
DIVA_TOKEN_LOGPROB_CPU(double, double, )

}  // namespace diva
