#include "shared_std_advantage/shared_std_advantage.h"

#include <vector>

#include "common/checks.h"

namespace diva {

template <typename T>
void shared_std_advantage_cpu(const SharedStdInput<T>& input, double eps, T* advantage) {
  std::vector<T> means(input.num_prompts);
  std::vector<BinMoments> bins(input.num_bins, BinMoments{});
  for (int64_t p = 0; p < input.num_prompts; ++p) {
    const int64_t begin = input.prompt_offsets[p];
    const auto moments = group_moments(input.rewards + begin, input.prompt_offsets[p + 1] - begin);
    means[p] = moments.mean;
    BinMoments& bin = bins[input.bin_of_prompt[p]];
    bin = join(bin, bin_moments(moments));
  }

  std::vector<T> inverse(input.num_bins);
  for (int64_t b = 0; b < input.num_bins; ++b) inverse[b] = static_cast<T>(inverse_std(bins[b], eps));

  for (int64_t p = 0; p < input.num_prompts; ++p) {
    const T scale = inverse[input.bin_of_prompt[p]];
    for (int64_t i = input.prompt_offsets[p]; i < input.prompt_offsets[p + 1]; ++i) {
      advantage[i] = (input.rewards[i] - means[p]) * scale;
    }
  }
}

void check_bins(const int64_t* bins, int64_t count, int64_t num_bins) {
  for (int64_t p = 0; p < count; ++p) {
    if (bins[p] >= 0 && bins[p] < num_bins) continue;
    check(false, "shared_std_advantage: bin_of_prompt[", p, "] is ", bins[p], ", not between 0 and ", num_bins - 1);
  }
}

template void shared_std_advantage_cpu(const SharedStdInput<float>&, double, float*);
template void shared_std_advantage_cpu(const SharedStdInput<double>&, double, double*);

}  // namespace diva
