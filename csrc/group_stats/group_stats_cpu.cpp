#include "group_stats/group_stats.h"

namespace diva {

template <typename T>
void group_stats_cpu(const T* values, const int64_t* offsets, int64_t first, int64_t last, GroupStatsOutput<T> output) {
  for (int64_t g = first; g < last; ++g) {
    const GroupMoments<T> group = group_moments(values + offsets[g], offsets[g + 1] - offsets[g]);
    output.mean[g] = group.mean;
    output.std[g] = sample_std(group);
    output.min[g] = group.min;
    output.max[g] = group.max;
  }
}

template void group_stats_cpu(const float*, const int64_t*, int64_t, int64_t, GroupStatsOutput<float>);
template void group_stats_cpu(const double*, const int64_t*, int64_t, int64_t, GroupStatsOutput<double>);

}  // namespace diva
