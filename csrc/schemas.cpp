// All ops of the engine: the table of contents. Each is implemented in csrc/<op>/ and explained in
// diva_engine/ops/<op>.py.
#include <torch/csrc/stable/library.h>

// Loss and gradient are divided by the divisor.
#define POLICY_LOSS                                                                                             \
  "(Tensor logprob, Tensor old_logprob, Tensor advantage, Tensor offsets, Tensor? ref_logprob, "                \
  "Tensor? sampler_logprob, str loss, bool sequence_ratio, float clip_low, float clip_high, float? clip_dual, " \
  "float tau_positive, float tau_negative, str kl, float kl_coef, float truncation, bool sequence_mean, float " \
  "divisor=1.0) "                                                                                               \
  "-> (Tensor loss, Tensor gradient, Tensor totals)"

namespace {

constexpr const char* kSchemas[] = {
    "group_stats(Tensor values, Tensor offsets) -> (Tensor mean, Tensor std, Tensor min, Tensor max)",
    "diva_advantage(Tensor rewards, Tensor prompt_offsets, Tensor question_offsets, Tensor difficulty, float k, "
    "int weight, int rrb, float r_max, bool sample_std, float eps, int balance, Tensor? lengths, int max_length, "
    "float w_local, float w_global) -> (Tensor advantage, Tensor local, Tensor global_)",
    "shared_std_advantage(Tensor rewards, Tensor prompt_offsets, Tensor bin_of_prompt, int num_bins, float eps) -> "
    "Tensor",
    "update_difficulty(Tensor(a!) table, Tensor index, Tensor accuracy, float eta, float low, float high, int rule) "
    "-> Tensor",
    "policy_loss" POLICY_LOSS,
    "policy_loss_forward" POLICY_LOSS,  // without a gradient of its own: torch's way to that one takes longer
    "token_logprob(Tensor logits, Tensor targets, float temperature) -> (Tensor logprob, Tensor entropy, "
    "Tensor log_norm)",
    "token_logprob_backward(Tensor logits, Tensor targets, Tensor logprob, Tensor entropy, Tensor log_norm, "
    "Tensor? logprob_gradient, Tensor? entropy_gradient, float temperature) -> Tensor",
    "token_logprob_backward_(Tensor(a!) logits, Tensor targets, Tensor logprob, Tensor entropy, Tensor log_norm, "
    "Tensor? logprob_gradient, Tensor? entropy_gradient, float temperature) -> ()",
    "perturb_images(Tensor pixels, Tensor stages, Tensor points, Tensor tables, Tensor tiles, int[] launches, "
    "int seed, SymInt scratch_bytes, SymInt output_bytes) -> Tensor",
    "spectral_entropy(Tensor features, Tensor offsets, int? max_patches) -> Tensor",
    "histogram_entropy(Tensor pixels, Tensor images) -> Tensor",
};

}  // namespace

STABLE_TORCH_LIBRARY(diva_engine, m) {
  for (const char* schema : kSchemas) m.def(schema);
}
