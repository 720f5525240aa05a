#include "policy_loss/policy_loss.h"

#include <cmath>

#include "common/glue.h"
#include "common/segment.h"

namespace diva {

namespace {

constexpr const char* kOp = "policy_loss";
constexpr int64_t kTokensAChunk = 8192;  // sums are joined chunk by chunk, so that any number of threads gives the same

using ThreeTensors = std::tuple<Tensor, Tensor, Tensor>;  // loss [], gradient [T], totals [kNumTotals]

LossKind loss_kind(const std::string& name) {
  if (name == "ppo") return LossKind::kPpo;
  if (name == "cispo") return LossKind::kCispo;
  STD_TORCH_CHECK(name == "sapo", kOp, ": loss must be ppo, cispo or sapo, not ", name);
  return LossKind::kSapo;
}

KlKind kl_kind(const std::string& name) {
  if (name == "k1") return KlKind::kK1;
  if (name == "k2") return KlKind::kK2;
  STD_TORCH_CHECK(name == "k3", kOp, ": kl must be k1, k2 or k3, not ", name);
  return KlKind::kK3;
}

struct Arguments {
  Tensor logprob, old_logprob, advantage, offsets;
  std::optional<Tensor> ref_logprob, sampler_logprob;

  Tensor like_logprob(const Tensor& tensor, const char* name) const {
    const Tensor vector = real_vector_argument(tensor, kOp, name);
    check_length(vector, logprob.numel(), kOp, name);
    check_same_type(vector, logprob, kOp, name);
    check_same_device(vector, logprob, kOp, name);
    return vector;
  }

  void check() {
    logprob = real_vector_argument(logprob, kOp, "logprob");
    old_logprob = like_logprob(old_logprob, "old_logprob");
    advantage = like_logprob(advantage, "advantage");
    if (ref_logprob) ref_logprob = like_logprob(*ref_logprob, "ref_logprob");
    if (sampler_logprob) sampler_logprob = like_logprob(*sampler_logprob, "sampler_logprob");
    offsets = offsets_argument(offsets, kOp, "offsets");
    check_same_device(offsets, logprob, kOp, "offsets");
  }

  template <typename T>
  PolicyLossInput<T> pointers() const {
    return {logprob.const_data_ptr<T>(),
            old_logprob.const_data_ptr<T>(),
            advantage.const_data_ptr<T>(),
            ref_logprob ? ref_logprob->const_data_ptr<T>() : nullptr,
            sampler_logprob ? sampler_logprob->const_data_ptr<T>() : nullptr,
            offsets.const_data_ptr<int64_t>(),
            logprob.numel(),
            offsets.numel() - 1};
  }

  ThreeTensors new_outputs() const {
    return {torch::stable::new_empty(logprob, {}), torch::stable::new_empty(logprob, {logprob.numel()}),
            torch::stable::new_empty(logprob, {kNumTotals}, ScalarType::Double)};
  }
};

using Settings = PolicyLossSettings<double>;

template <typename T>
PolicyLossSettings<T> cast_settings(const Settings& s) {
  return {s.loss,
          s.kl,
          s.sequence_ratio,
          s.sequence_mean,
          static_cast<T>(s.low),
          static_cast<T>(s.high),
          static_cast<T>(s.dual),
          static_cast<T>(s.tau_positive),
          static_cast<T>(s.tau_negative),
          static_cast<T>(s.kl_coef),
          static_cast<T>(s.truncation),
          static_cast<T>(s.scale)};
}

template <typename T>
void run_cpu(const PolicyLossInput<T>& input, const PolicyLossSettings<T>& settings, const ThreeTensors& outputs) {
  std::vector<T> mean(settings.sequence_ratio ? input.num_sequences : 0);
  if (settings.sequence_ratio) {
    parallel_ranges(input.num_sequences, 64,
                    [&](int64_t first, int64_t last) { mean_log_ratio_cpu(input, first, last, mean.data()); });
  }
  const int64_t num_chunks = (input.num_tokens + kTokensAChunk - 1) / kTokensAChunk;
  struct Sums {
    double loss = 0, totals[kNumTotals] = {};
  };
  std::vector<Sums> chunks(num_chunks + 1);  // the last one takes the sum of all
  const auto& [loss, gradient, totals] = outputs;
  T* gradient_data = gradient.template mutable_data_ptr<T>();
  parallel_ranges(num_chunks, 1, [&](int64_t first, int64_t last) {
    for (int64_t c = first; c < last; ++c) {
      const int64_t end = std::min(input.num_tokens, (c + 1) * kTokensAChunk);
      chunks[c].loss =
          policy_loss_cpu(input, settings, mean.data(), c * kTokensAChunk, end, gradient_data, chunks[c].totals);
    }
  });
  Sums& sum = chunks[num_chunks];
  for (int64_t c = 0; c < num_chunks; ++c) {
    sum.loss += chunks[c].loss;
    const double highest = larger(sum.totals[kTotalRatioMax], chunks[c].totals[kTotalRatioMax]);
    for (int total = 0; total < kNumTotals; ++total) sum.totals[total] += chunks[c].totals[total];
    sum.totals[kTotalRatioMax] = highest;
  }
  *loss.template mutable_data_ptr<T>() = static_cast<T>(sum.loss);
  std::copy(sum.totals, sum.totals + kNumTotals, totals.template mutable_data_ptr<double>());
}

ThreeTensors on_cpu(Arguments arguments, const Settings& settings) {
  arguments.check();
  check_offsets_cpu(arguments.offsets, arguments.logprob.numel(), kOp, "offsets");
  const ThreeTensors outputs = arguments.new_outputs();
  if (arguments.logprob.scalar_type() == ScalarType::Float) {
    run_cpu(arguments.pointers<float>(), cast_settings<float>(settings), outputs);
  } else {
    run_cpu(arguments.pointers<double>(), settings, outputs);
  }
  return outputs;
}

ThreeTensors on_cuda(Arguments arguments, const Settings& settings) {
  arguments.check();
  const Tensor& logprob = arguments.logprob;
  const CudaGuard guard(logprob, kOp);
  const ThreeTensors outputs = arguments.new_outputs();
  const auto& [loss, gradient, totals] = outputs;
  const PolicyLossInput<float> input = arguments.pointers<float>();
  const PolicyLossSettings<float> cast = cast_settings<float>(settings);
  const Tensor workspace =
      torch::stable::new_empty(logprob, {diva_policy_loss_workspace(input.num_tokens)}, ScalarType::Double);
  const Tensor mean = torch::stable::new_empty(logprob, {cast.sequence_ratio ? input.num_sequences : 0});
  check_cuda(diva_policy_loss_cuda(&input, &cast, mean.mutable_data_ptr<float>(), workspace.mutable_data_ptr<double>(),
                                   loss.mutable_data_ptr<float>(), gradient.mutable_data_ptr<float>(),
                                   totals.mutable_data_ptr<double>(), current_stream(logprob)),
             kOp);
  return outputs;
}

template <ThreeTensors (*Run)(Arguments, const Settings&)>
ThreeTensors policy_loss(Tensor logprob, Tensor old_logprob, Tensor advantage, Tensor offsets,
                         std::optional<Tensor> ref_logprob, std::optional<Tensor> sampler_logprob, std::string loss,
                         bool sequence_ratio, double clip_low, double clip_high, std::optional<double> clip_dual,
                         double tau_positive, double tau_negative, std::string kl, double kl_coef, double truncation,
                         bool sequence_mean, double divisor) {
  const Settings settings{loss_kind(loss),
                          kl_kind(kl),
                          sequence_ratio,
                          sequence_mean,
                          1 - clip_low,
                          1 + clip_high,
                          clip_dual.value_or(INFINITY),
                          tau_positive,
                          tau_negative,
                          kl_coef,
                          truncation,
                          1 / divisor};
  return Run({logprob, old_logprob, advantage, offsets, ref_logprob, sampler_logprob}, settings);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(diva_engine, CPU, m) {
  m.impl("policy_loss", TORCH_BOX(&policy_loss<on_cpu>));
  m.impl("policy_loss_forward", TORCH_BOX(&policy_loss<on_cpu>));
}
STABLE_TORCH_LIBRARY_IMPL(diva_engine, CUDA, m) {
  m.impl("policy_loss", TORCH_BOX(&policy_loss<on_cuda>));
  m.impl("policy_loss_forward", TORCH_BOX(&policy_loss<on_cuda>));
}

}  // namespace diva
