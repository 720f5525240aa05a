"""Every setting of a run: its name, type, default, meaning and range, in one place. settings.py reads and checks them.

Names follow EasyR1 where EasyR1 has the setting.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


def setting(default: Any, meaning: str, *, low: float | None = None, high: float | None = None) -> Any:
    """A field with its meaning and, for numbers, its closed range."""
    metadata = {"meaning": meaning, "low": low, "high": high}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class DataConfig:
    train_files: str = setting(
        "", "training questions: a parquet, jsonl or json file, a folder, a hub name, or path@split"
    )
    val_files: str = setting("", "held-out questions, read the same way; empty for none")
    prompt_key: str = setting("", "column of the question; empty: found by its usual names")
    answer_key: str = setting("", "column of the answer; empty: found by its usual names")
    image_key: str = setting("", "column of the images; empty: found by its usual names")
    id_key: str = setting("", "column of the ids; empty: found by its usual names; none: ids are file and row")
    image_dir: str = setting("", "folder that relative image paths start from")
    format_prompt: str = setting("", "Jinja file that receives the question as `content` and renders the user message")
    system_prompt: str = setting("", "system message put before every question")
    max_prompt_length: int = setting(2048, "longest prompt in tokens; longer rows count as bad", low=1)
    max_response_length: int = setting(2048, "longest answer in tokens", low=1)
    rollout_batch_size: int = setting(512, "questions posed a step", low=1)
    shuffle: bool = setting(True, "draw the questions of an epoch in random order")
    seed: int = setting(1, "seed of everything random: order of questions, variants, sampling", low=0)
    min_pixels: int = setting(0, "images below this area are enlarged to it; 0 leaves it to the image processor", low=0)
    max_pixels: int = setting(0, "images above this area are shrunk to it; 0 leaves it to the image processor", low=0)
    on_bad_row: Literal["skip", "stop"] = setting("skip", "what to do with a row that cannot be used")
    font: str = setting("", "TrueType or OpenType file for questions drawn into images; empty: DejaVu Sans")


@dataclass(frozen=True)
class AlgorithmConfig:
    adv_estimator: str = setting("grpo", "name of the recipe; `python -m diva_engine.train --list` prints them")
    preset: Literal["paper", "authors"] = setting(
        "paper", "what the recipe presets: its paper's settings, or those of the authors' code where it differs (diva)"
    )
    disable_kl: bool = setting(True, "leave out the divergence from the starting weights, and the model that it needs")
    use_kl_loss: bool = setting(True, "the divergence is a term of the loss; false: it is taken off the reward")
    kl_penalty: Literal["k1", "k2", "k3"] = setting(
        "k3",
        "estimator of the divergence, d = logp_reference - logp: -d, d^2 / 2, exp(d) - d - 1 (EasyR1: low_var_kl)",
    )
    kl_coef: float = setting(0.01, "weight of the divergence", low=0)


@dataclass(frozen=True)
class AdvantageConfig:
    std: Literal["sample", "population"] = setting("sample", "standard deviation over n - 1 or over n")
    eps: float = setting(1e-6, "added to every standard deviation", low=0)
    balance: Literal["sequences", "padded_tokens", "minmax", "none"] = setting(
        "sequences", "batch normalisation of the local and the global advantage"
    )
    weight: Literal["global", "both", "none"] = setting("global", "which advantage is weighted by difficulty")
    k: float = setting(0.1, "strength of the difficulty weight exp(k * (D_i - mean D) * sign A)", low=0)
    rrb: Literal["range", "threshold", "none"] = setting(
        "none", "reward-range rescaling of each advantage, on top of any recipe; diva presets `range`"
    )
    r_max: float = setting(1.0, "largest possible reward", low=1e-9)
    w_local: float = setting(1.0, "weight of the local advantage in the sum", low=0)
    w_global: float = setting(1.0, "weight of the global advantage in the sum", low=0)


@dataclass(frozen=True)
class DifficultyConfig:
    rule: Literal["continuous", "steps"] = setting("continuous", "D + eta * (0.5 - accuracy), or the stepped table")
    initial: float = setting(5.0, "level of a question whose record has none", low=1, high=9)
    eta: float = setting(4.0, "step of the continuous rule", low=0)
    low: float = setting(1.0, "lowest level", low=1)
    high: float = setting(9.0, "highest level", high=9)
    accuracy_over: Literal["all", "originals", "variants"] = setting("all", "whose accuracy drives the difficulty")


@dataclass(frozen=True)
class VariantsConfig:
    num: int = setting(1, "variants posed beside the original question", low=0)
    rotation_degrees_per_strength: float = setting(
        100.0, "largest angle of a rotation, in degrees per unit of strength", low=0
    )


@dataclass(frozen=True)
class HintConfig:
    inject: Literal["question", "answer"] = setting("question", "hints are told in the question, or begin the answer")
    question_template: str = setting(
        "{question}\nHint: the first steps are: {steps}\nReason from the start.",
        "wording of a hint told in the question",
    )
    answer_template: str = setting("<think>\n{steps}\n", "forced beginning of the answer")
    separator: str = setting("\n", "what stands between two steps")


@dataclass(frozen=True)
class DapoConfig:
    max_draws: int = setting(10, "most draws of questions in one step, in search of live groups", low=1)
    live_by: Literal["reward", "accuracy"] = setting("reward", "a group is live where these are not all equal")
    overlong_share: float = setting(
        0.2, "last share of max_response_length over which the penalty of a long answer rises; 0 is off", low=0, high=1
    )
    overlong_penalty: float = setting(1.0, "taken off the reward of an answer of max_response_length", low=0)


@dataclass(frozen=True)
class DurianConfig:
    base: Literal["grpo", "dapo"] = setting("grpo", "which questions are asked, and how answers are rewarded")
    w_original: float = setting(0.6, "weight of the advantage by the prompt's own std", low=0)
    w_perceptual: float = setting(0.2, "weight of the one by the std of questions as hard to see; 0 is off", low=0)
    w_reasoning: float = setting(0.2, "weight of the one by the std of questions as hard to reason; 0 is off", low=0)
    num_reasoning_groups: int = setting(12, "quantile groups of the reasoning score", low=1)
    entropy: Literal["spectral", "histogram"] = setting(
        "spectral", "perceptual score: spectrum of the vision tower's patch features, or histogram of grey levels"
    )
    refresh_steps: int = setting(0, "steps after which a question's pictures are looked at anew; 0: once", low=0)


@dataclass(frozen=True)
class HintGrpoConfig:
    groups: int = setting(3, "hint groups of a question; group i is shown the first i / groups of its steps", low=1)
    ladder: Literal["all", "lazy"] = setting(
        "all", "generate every group, or a longer hint only for questions without a positive rollout so far"
    )
    select: Literal["first_positive", "fewest_unequal"] = setting(
        "first_positive", "train on the shortest hint with a positive rollout (the authors), or with unequal rewards"
    )
    positive_by: Literal["accuracy", "reward"] = setting(
        "accuracy", "a rollout is positive where this is above 0; by reward (the authors) form alone is enough"
    )


@dataclass(frozen=True)
class RescueConfig:
    probe: int = setting(4, "plain rollouts of every question, before the rest of the step's is shared out", low=1)
    dead_by: Literal["probe", "last_visit"] = setting(
        "probe", "who is hinted: who fails the probe, or, in one stage, whose last visit had no right rollout"
    )
    max_rollouts: int = setting(12, "most rollouts that the second stage gives one question", low=1)
    beta: float = setting(1.0, "weight of the forced prefix in the loss; 0 trains no prefix", low=0)
    normalize_prefix: bool = setting(False, "divide a prefix's weight by its tokens, for long solutions")
    shorten_above: float = setting(0.7, "a hint that succeeds more often than this gets shorter", low=0, high=1)
    patience: int = setting(3, "failures of the longest hint in a row after which a question gets none", low=1)
    rest: int = setting(4, "visits for which such a question is left to plain rollouts", low=1)
    shared_std: bool = setting(False, "advantages as in durian: their std shared among questions as hard")
    hints: bool = setting(True, "force the beginning of dead questions' answers; false: they get plain rollouts")
    perturb_solved: bool = setting(False, "solved questions get rollouts of a perturbed variant in the second stage")


@dataclass(frozen=True)
class ModelConfig:
    model_path: str = setting("", "Hugging Face folder or hub name of the policy")
    torch_dtype: Literal["float32", "bfloat16"] = setting(
        "float32", "type of the policy's weights; of bfloat16 ones the optimizer moves float32 masters"
    )
    attn_implementation: Literal["sdpa"] = setting("sdpa", "attention kernels of the packed training forward")
    trust_remote_code: bool = setting(False, "run Python code that the model folder brings along")
    freeze_vision_tower: bool = setting(False, "train the language model only")


@dataclass(frozen=True)
class OptimConfig:
    lr: float = setting(1e-6, "learning rate of AdamW", low=0)
    betas: list[float] = setting([0.9, 0.95], "moment decays of AdamW")
    weight_decay: float = setting(0.0, "decoupled weight decay", low=0)
    lr_warmup_steps: int = setting(0, "steps over which the learning rate rises linearly", low=0)
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = setting("constant", "schedule after the warm-up")


@dataclass(frozen=True)
class ActorConfig:
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    global_batch_size: int = setting(0, "prompts in one optimizer step; 0 takes all prompts of the rollout step", low=0)
    ppo_epochs: int = setting(1, "passes over the rollouts of a step", low=1)
    micro_batch_tokens: int = setting(
        16384, "tokens, prompts included, in one forward and backward pass; a longer single answer has its own", low=1
    )
    max_grad_norm: float = setting(1.0, "gradients are clipped to this norm", low=0)
    clip_ratio_low: float = setting(0.2, "the ratio is clipped below 1 - this", low=0)
    clip_ratio_high: float = setting(0.2, "the ratio is clipped above 1 + this", low=0)
    clip_ratio_dual: float = setting(0.0, "dual clip for negative advantages; 0 is off", low=0)
    tau_positive: float = setting(1.0, "sharpness of SAPO's gate where the advantage is not negative", low=1e-6)
    tau_negative: float = setting(1.05, "sharpness of SAPO's gate where the advantage is negative", low=1e-6)
    importance_truncation: float = setting(
        0.0, "weight tokens by min(trainer / sampler probability, this); 0 only measures the mismatch", low=0
    )
    loss_avg_mode: Literal["token", "seq", "constant"] = setting(
        "token", "mean over all tokens, over answers of their means, or the sum over a constant length"
    )


@dataclass(frozen=True)
class RolloutConfig:
    engine: Literal["native"] = setting("native", "who generates: `native` samples on the policy's own weights")
    n: int = setting(8, "answers sampled a prompt", low=1)
    temperature: float = setting(1.0, "sampling temperature; validation is greedy", low=0.01)
    top_p: float = setting(1.0, "nucleus sampling; 1 is off", low=0.01, high=1)
    max_batch_rows: int = setting(512, "answers decoded side by side", low=1)


@dataclass(frozen=True)
class RewardConfig:
    reward_function: str = setting("", "your own reward as path.py:function; empty: math-verify accuracy and format")
    reward_function_kwargs: dict[str, Any] = setting({}, "keyword arguments handed to your reward")
    accuracy_weight: float = setting(0.9, "share of accuracy in the reward", low=0)
    format_weight: float = setting(0.1, "share of format in the reward", low=0)
    format_pattern: str = setting(
        "", "regular expression the whole answer must match; empty: <think>...</think>...\\boxed{...}"
    )
    answer_tag: Literal["boxed", "answer", "any"] = setting(
        "boxed", "where the final answer stands: the last \\boxed{}, <answer>...</answer>, or also in plain words"
    )
    time_limit_s: float = setting(5.0, "wall-clock limit of scoring one answer", low=0.01)
    batch_time_limit_s: float = setting(30.0, "wall-clock limit of scoring one batch", low=0.01)
    num_workers: int = setting(2, "processes that score answers", low=1)
    memory_limit_mb: int = setting(4096, "address space of one such process; 0: no limit", low=0)
    reward_type: Literal["auto", "batch", "sequential", "completions"] = setting(
        "auto", "interface of your own reward (docs/rewards.md); auto reads it from the file"
    )
    on_failure: Literal["stop", "score"] = setting("stop", "when your own reward fails: stop, or give failed_score")
    failed_score: float = setting(0.0, "score of an answer on which your own reward fails")


@dataclass(frozen=True)
class WorkerConfig:
    actor: ActorConfig = field(default_factory=ActorConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)


@dataclass(frozen=True)
class TrainerConfig:
    project_name: str = setting("diva_engine", "project in the loggers that have projects")
    experiment_name: str = setting("", "name of the run; empty: <algorithm>_seed<seed>")
    save_checkpoint_path: str = setting("", "folder of the run; empty: runs/<experiment_name>")
    load_checkpoint_path: str = setting("", "checkpoint to go on from; `latest` takes the newest of the run's folder")
    logger: list[str] = setting(
        ["console", "file", "tensorboard"], "where metrics go: console, file, tensorboard, wandb"
    )
    total_epochs: int = setting(1, "passes over the training questions", low=1)
    max_steps: int = setting(0, "stop after this many steps; 0: after total_epochs", low=0)
    val_before_train: bool = setting(True, "measure held-out accuracy before the first step")
    val_freq: int = setting(0, "measure held-out accuracy every so many steps; 0: at the end only", low=0)
    val_by: str = setting("difficulty", "column by which held-out accuracy is broken down")
    save_freq: int = setting(0, "write a checkpoint every so many steps; 0: at the end only", low=0)
    save_limit: int = setting(2, "checkpoints kept; 0 keeps all", low=0)
    rollouts_to_log: int = setting(4, "rollouts written to rollouts.jsonl a step", low=0)
    device: str = setting("auto", "cpu, cuda, cuda:1, ...; auto takes a GPU where there is one")
    num_threads: int = setting(0, "CPU threads of torch; 0 leaves torch's default", low=0)


@dataclass(frozen=True)
class Config:
    data: DataConfig = field(default_factory=DataConfig)
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    advantage: AdvantageConfig = field(default_factory=AdvantageConfig)
    difficulty: DifficultyConfig = field(default_factory=DifficultyConfig)
    variants: VariantsConfig = field(default_factory=VariantsConfig)
    hint: HintConfig = field(default_factory=HintConfig)
    dapo: DapoConfig = field(default_factory=DapoConfig)
    durian: DurianConfig = field(default_factory=DurianConfig)
    hint_grpo: HintGrpoConfig = field(default_factory=HintGrpoConfig)
    rescue: RescueConfig = field(default_factory=RescueConfig)
    worker: WorkerConfig = field(default_factory=WorkerConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
