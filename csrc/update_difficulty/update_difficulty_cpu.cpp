#include "update_difficulty/update_difficulty.h"

#include <vector>

#include "common/checks.h"

namespace diva {

template <typename T>
void check_difficulty_entries(const int64_t* index, const T* accuracy, int64_t count, int64_t table_size) {
  std::vector<bool> is_taken(table_size);
  for (int64_t i = 0; i < count; ++i) {
    check(index[i] >= 0 && index[i] < table_size, "update_difficulty: index ", index[i], " is not between 0 and ",
          table_size - 1);
    check(!is_taken[index[i]], "update_difficulty: index ", index[i], " stands more than once");
    is_taken[index[i]] = true;
    check(accuracy[i] >= T(0) && accuracy[i] <= T(1), "update_difficulty: accuracy[", i, "] is ", accuracy[i],
          ", not between 0 and 1");
  }
}

template <typename T>
void update_difficulty_cpu(const DifficultyTable<T>& table, const int64_t* index, const T* accuracy, int64_t count,
                           const DifficultySettings<T>& settings, T* updated) {
  for (int64_t i = 0; i < count; ++i) {
    T& level = table.levels[index[i] * table.stride];
    level = updated_difficulty(level, accuracy[i], settings);
    updated[i] = level;
  }
}

template void check_difficulty_entries(const int64_t*, const float*, int64_t, int64_t);
template void check_difficulty_entries(const int64_t*, const double*, int64_t, int64_t);
template void update_difficulty_cpu(const DifficultyTable<float>&, const int64_t*, const float*, int64_t,
                                    const DifficultySettings<float>&, float*);
template void update_difficulty_cpu(const DifficultyTable<double>&, const int64_t*, const double*, int64_t,
                                    const DifficultySettings<double>&, double*);

}  // namespace diva
