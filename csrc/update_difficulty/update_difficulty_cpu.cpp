#include "update_difficulty/update_difficulty.h"

namespace diva {

template <typename T>
void update_difficulty_cpu(const DifficultyTable<T>& table, const int64_t* index, const T* accuracy, int64_t count,
                           const DifficultySettings<T>& settings, T* updated) {
  for (int64_t i = 0; i < count; ++i) {
    T& level = table.levels[index[i] * table.stride];
    level = updated_difficulty(level, accuracy[i], settings);
    updated[i] = level;
  }
}

template void update_difficulty_cpu(const DifficultyTable<float>&, const int64_t*, const float*, int64_t,
                                    const DifficultySettings<float>&, float*);
template void update_difficulty_cpu(const DifficultyTable<double>&, const int64_t*, const double*, int64_t,
                                    const DifficultySettings<double>&, double*);

}  // namespace diva
