"""Every metric by name: its unit and what it says in one line. Console, docs and `describe` read this table."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """`unit` is "share" for 0..1, "" for a plain number."""

    unit: str
    meaning: str


METRICS: dict[str, Metric] = {
    "reward/mean": Metric("", "mean reward of the step's rollouts: 0.9 * accuracy + 0.1 * format unless set otherwise"),
    "reward/accuracy": Metric("share", "rollouts with the right answer, over all prompts, variants included"),
    "reward/format": Metric("share", "rollouts of the demanded form"),
    "reward/algebra": Metric("answers", "answers that only math-verify could judge"),
    "reward/refused": Metric(
        "answers", "answers too costly for algebra (power towers, giant factorials), counted wrong"
    ),
    "reward/timeouts": Metric("answers", "answers whose scoring exceeded its time limit, counted wrong"),
    "reward/errors": Metric("answers", "answers on which the scoring failed"),
    "reward/kl": Metric("nats", "mean divergence of an answer from the starting weights, taken off its reward"),
    "accuracy/original": Metric("share", "right rollouts of questions as they stand"),
    "accuracy/paraphrase": Metric("share", "right rollouts of reworded questions"),
    "accuracy/hint": Metric("share", "right rollouts of prompts that show solution steps"),
    "accuracy/perturbation": Metric("share", "right rollouts of prompts with a perturbed image"),
    "accuracy/text_in_image": Metric("share", "right rollouts of prompts whose question is drawn into the image"),
    "groups/dead": Metric("share", "groups without a single right rollout: they teach a group-relative method nothing"),
    "groups/solved": Metric("share", "groups with right rollouts only: nothing is left to learn from them"),
    "originals/dead": Metric("share", "questions, asked as they stand, without a single right rollout"),
    "questions/utilisation": Metric("share", "questions whose rewards are not all equal: data utilisation"),
    "difficulty/mean": Metric("level", "mean difficulty (1 easy to 9 hard) of the step's questions, before the update"),
    "response/length": Metric("tokens", "mean length of a sampled answer"),
    "response/truncated": Metric("share", "rollouts cut off at max_response_length"),
    "variants/fallbacks": Metric("prompts", "variants that fell back to another kind for lack of material"),
    "variants/hint_steps": Metric("steps", "mean number of solution steps shown by a hint"),
    "dapo/draws": Metric("draws", "times that questions were drawn in search of live groups"),
    "dapo/questions_asked": Metric("questions", "questions asked over all draws"),
    "dapo/live_groups": Metric("groups", "groups found whose rewards are not all equal"),
    "dapo/short_of_live_groups": Metric(
        "groups",
        "live groups missing when the draws ended (dapo.max_draws, or no question left): the step trains on fewer; "
        "raise dapo.max_draws, or take questions nearer to what the model can do",
    ),
    "durian/visual_entropy": Metric("nats", "mean perceptual score of the questions trained on"),
    "durian/questions_looked_at": Metric("questions", "questions whose pictures were scored in the step"),
    "hint_grpo/live_groups": Metric("groups", "groups trained on whose rewards are not all equal"),
    "hint_grpo/tokens_per_live_group": Metric("tokens", "tokens sampled in the step for each such group"),
    "hint_grpo/rollout_share": Metric("share", "rollouts generated, of those that all hint groups would have cost"),
    "hint_grpo/hint_steps": Metric("steps", "mean number of solution steps shown in the groups trained on"),
    "rescue/dead_questions": Metric("share", "questions whose probes were all wrong"),
    "rescue/hinted_questions": Metric("share", "questions whose answers were forced to begin with reference steps"),
    "rescue/resting_questions": Metric("share", "dead questions left without a hint after repeated failure"),
    "rescue/rescued": Metric("share", "hinted questions of which at least one answer was right"),
    "rescue/prefix_gain": Metric("standard deviations", "mean gain of the prefixes that helped, over plain answers"),
    "step/rollouts": Metric("rollouts", "answers generated in the step"),
    "step/tokens": Metric("tokens", "tokens sampled in the step"),
    "actor/loss": Metric("", "policy loss, KL term included"),
    "actor/entropy": Metric("nats", "mean entropy of the policy's next-token distribution"),
    "actor/grad_norm": Metric("", "gradient norm before clipping"),
    "actor/lr": Metric("", "learning rate"),
    "actor/skipped_steps": Metric("steps", "optimizer steps skipped for a loss or gradient that was not finite"),
    "actor/memory_retries": Metric(
        "times", "passes done again at half worker.actor.micro_batch_tokens for lack of memory"
    ),
    "rollout/engine_restarts": Metric("times", "restarts of a rollout engine that had failed"),
    "actor/trained_rollouts": Metric("rollouts", "rollouts with credit: those that cost a forward and backward"),
    "actor/ratio": Metric("", "mean probability ratio of a trained token, policy over policy before the step"),
    "actor/ratio_max": Metric("", "largest probability ratio of a trained token"),
    "actor/clip_low": Metric("share", "trained tokens whose ratio was held by the lower bound"),
    "actor/clip_high": Metric("share", "trained tokens whose ratio was held by the upper bound"),
    "actor/clip_dual": Metric("share", "trained tokens whose loss was held by the dual clip"),
    "actor/kl_old": Metric("nats", "how far the policy has moved within the step: half the mean squared log-ratio"),
    "actor/kl_ref": Metric("nats", "mean divergence from the starting weights, by algorithm.kl_penalty, a token"),
    "actor/sampler_weight": Metric("", "mean truncated importance weight, trainer over sampler"),
    "actor/sampler_truncated": Metric("share", "trained tokens whose importance weight was truncated"),
    "actor/sampler_gap": Metric("nats", "mean |log-probability in the trainer - in the sampler| of a trained token"),
    "actor/sampler_ess": Metric("share", "effective sample size of the importance weights before truncation"),
    "step/skipped_prompts": Metric(
        "prompts", "prompts of the step that could not be posed; skipped_prompts.txt says why"
    ),
    "sync/logprob_gap_mean": Metric(
        "nats", "mean |log-probability in the trainer - in the sampler|; near 0 is healthy"
    ),
    "sync/logprob_gap_max": Metric("nats", "largest |log-probability in the trainer - in the sampler| of a token"),
    "sync/validation_gap_max": Metric(
        "nats", "the same over a few tokens of validation, where the engine has a copy of the weights"
    ),
    "mismatch/ratio_mean": Metric("", "mean probability ratio of a trained token, trainer over sampler; near 1"),
    "mismatch/ratio_max": Metric("", "largest probability ratio of a trained token, trainer over sampler"),
    "mismatch/ess": Metric("share", "effective sample size of those ratios: 1 where the two agree"),
    "mismatch/kl_k1": Metric("nats", "divergence of the trainer from the sampler, a token: mean negative log-ratio"),
    "mismatch/kl_k3": Metric("nats", "the same by the k3 estimator, never negative"),
    "throughput/tokens_per_s": Metric("tokens/s", "tokens sampled per second of the whole step"),
    "throughput/rollout_tokens_per_cpu_s": Metric("tokens/s", "tokens sampled per CPU second of generation"),
    "throughput/prefetched": Metric("share", "prompts of the step that were encoded during the one before"),
    "time/step_s": Metric("s", "the whole step, wall clock"),
    "time/prompts_s": Metric("s", "posing variants: images and token ids"),
    "time/rollout_s": Metric("s", "generation"),
    "time/reward_s": Metric("s", "scoring, as far as it did not run while answers were generated"),
    "time/prepare_s": Metric("s", "what the credit reads beside rewards: divergence, perceptual scores"),
    "time/credit_s": Metric("s", "advantages"),
    "time/update_s": Metric("s", "forward, backward and optimizer"),
    "time/sync_s": Metric("s", "the new weights into the rollout engine"),
    "time/save_s": Metric("s", "how long the run waited for the checkpoint before this step"),
    "checkpoint/failed": Metric("checkpoints", "checkpoints that could not be written since the run was started"),
    "val/accuracy": Metric("share", "held-out questions answered right, greedily"),
    "val/format": Metric("share", "held-out answers of the demanded form"),
    "val/truncated": Metric("share", "held-out answers cut off at max_response_length"),
    "val/skipped_prompts": Metric(
        "prompts", "held-out questions that could not be posed and are in no number; skipped_prompts.txt says why"
    ),
    "val/response_length": Metric("tokens", "mean length of a held-out answer"),
}

FAMILIES: dict[str, Metric] = {
    "val/accuracy/": Metric("share", "held-out accuracy of the questions with this value of a column"),
    "accuracy/": Metric("share", "right rollouts of prompts of this kind"),
    "actor/": Metric("", "mean over the trained tokens of a number that the loss reports"),
    "time/": Metric("s", "time in this phase of the step, wall clock"),
    "reward/": Metric("", "mean of a number that the custom reward function returned"),
}


def describe(name: str) -> Metric | None:
    """The metric of a name, by itself or by its family; None for a name that the table does not know."""
    if name in METRICS:
        return METRICS[name]
    return next((metric for prefix, metric in FAMILIES.items() if name.startswith(prefix)), None)


def markdown() -> str:
    """The table as docs/metrics.md shows it: `python -m diva_engine.trainer.metric_names > docs/metrics.md`."""
    lines = [
        "# Metrics",
        "",
        "What `metrics.jsonl`, TensorBoard and W&B hold for every step. A share lies between 0 and 1.",
        "",
        "| metric | unit | meaning |",
        "| --- | --- | --- |",
    ]
    rows = [*METRICS.items(), *((f"{prefix}*", metric) for prefix, metric in FAMILIES.items())]
    lines += [
        f"| `{name}` | {metric.unit or '-'} | {metric.meaning.replace('|', chr(92) + '|')} |" for name, metric in rows
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    print(markdown())
