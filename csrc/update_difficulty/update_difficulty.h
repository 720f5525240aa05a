#pragma once
// How a question's difficulty follows the accuracy of its rollouts.
#include "common/exact.h"

namespace diva {

enum class DifficultyRule : int64_t { kContinuous, kSteps };

template <typename T>
struct DifficultySettings {
  T eta;
  T low;
  T high;
  DifficultyRule rule;
};

// The authors' steps, with the last one, which their code never reaches, in force. The thresholds are rounded like the
// accuracies they are compared with, so that 3 right of 5 is exactly 0.6.
template <typename T>
HOST_DEVICE T difficulty_step(T accuracy) {
  if (accuracy > static_cast<T>(0.8)) return T(-2);
  if (accuracy > static_cast<T>(0.6)) return T(-1);
  if (accuracy < static_cast<T>(0.2)) return T(2);
  if (accuracy < static_cast<T>(0.4)) return T(1);
  return T(0);
}

template <typename T>
HOST_DEVICE T updated_difficulty(T difficulty, T accuracy, const DifficultySettings<T>& settings) {
  const T step = settings.rule == DifficultyRule::kSteps ? difficulty_step(accuracy)
                                                         : mul_rn(settings.eta, sub_rn(T(0.5), accuracy));
  const T moved = add_rn(difficulty, step);
  return moved < settings.low ? settings.low : (moved > settings.high ? settings.high : moved);
}

template <typename T>
struct DifficultyTable {
  T* levels;
  int64_t stride;
  int64_t size;
};

#if !defined(__CUDACC_RTC__)
// Indices that do not repeat and lie within the table, accuracies within [0, 1], or an error with the value.
template <typename T>
void check_difficulty_entries(const int64_t* index, const T* accuracy, int64_t count, int64_t table_size);

// Entries must have been checked.
template <typename T>
void update_difficulty_cpu(const DifficultyTable<T>& table, const int64_t* index, const T* accuracy, int64_t count,
                           const DifficultySettings<T>& settings, T* updated);
#endif

}  // namespace diva

#if !defined(__CUDACC_RTC__)
// Returns a cudaError_t. An entry whose index repeats or is out of range, or whose accuracy is not in [0, 1], changes
// nothing in the table and becomes NaN in `updated`.
extern "C" int diva_update_difficulty_cuda(const diva::DifficultyTable<float>* table, const int64_t* index,
                                           const float* accuracy, int64_t count,
                                           const diva::DifficultySettings<float>* settings, float* updated,
                                           void* stream);
#endif
