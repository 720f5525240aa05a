"""Settings of the workers: the policy and its optimizer, the rollouts, the rewards."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from diva_engine.config.setting import setting
from diva_engine.records import UserError


@dataclass(frozen=True)
class LoraConfig:
    rank: int = setting(
        0, "train adapters of this rank in place of the weights (needs peft); 0 trains the weights", low=0
    )
    alpha: float = setting(64, "an adapter's part is scaled by alpha / rank", low=0)
    target_modules: list[str] = setting(
        ["all-linear"], "names of the layers that get an adapter; all-linear: every one"
    )


@dataclass(frozen=True)
class ModelConfig:
    model_path: str = setting("", "Hugging Face folder or hub name of the policy")
    torch_dtype: Literal["float32", "bfloat16"] = setting(
        "float32", "type in which the policy computes; of bfloat16 weights the optimizer moves float32 masters"
    )
    attn_implementation: Literal["sdpa", "flash_attention_2", "flex"] = setting(
        "sdpa",
        "attention kernels of the packed training forward; flash_attention_2 and flex need a GPU (docs/scaling.md)",
    )
    trust_remote_code: bool = setting(False, "run Python code that the model folder brings along")
    freeze_vision_tower: bool = setting(False, "train the language model only")
    lora: LoraConfig = field(default_factory=LoraConfig)
    enable_gradient_checkpointing: bool = setting(
        False, "compute a layer's activations again in the backward pass: less memory, a third more time"
    )


@dataclass(frozen=True)
class OptimConfig:
    lr: float = setting(1e-6, "learning rate of AdamW", low=0)
    betas: list[float] = setting([0.9, 0.95], "moment decays of AdamW")
    weight_decay: float = setting(0.0, "decoupled weight decay", low=0)
    lr_warmup_steps: int = setting(0, "steps over which the learning rate rises linearly", low=0)
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = setting("constant", "schedule after the warm-up")


@dataclass(frozen=True)
class FsdpConfig:
    fsdp_size: int = setting(
        -1,
        "ranks that hold one copy of the weights between them, a divisor of the number of ranks; -1: all of them; "
        "less: groups of so many, a copy in each",
        low=-1,
    )

    def ranks_a_copy(self, num_ranks: int) -> int:
        """Over how many of `num_ranks` ranks the weights are cut. Raises UserError where groups of so many would leave
        ranks over."""
        if self.fsdp_size < 1:
            return num_ranks
        if num_ranks % self.fsdp_size:
            divisors = [str(size) for size in range(1, num_ranks + 1) if num_ranks % size == 0]
            raise UserError(
                f"worker.actor.fsdp.fsdp_size={self.fsdp_size} does not divide the number of ranks, {num_ranks}; "
                f"take {' or '.join(divisors)}, or -1 to cut the weights over all ranks"
            )
        return self.fsdp_size


@dataclass(frozen=True)
class OffloadConfig:
    offload_params: bool = setting(
        False, "keep weights, gradients and optimizer states in CPU memory; a block's weights come to the GPU in turn"
    )
    offload_optimizer: bool = setting(
        False, "keep AdamW's moments in CPU memory, and on the GPU while it moves the weights; nothing on a CPU"
    )


@dataclass(frozen=True)
class ActorConfig:
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    fsdp: FsdpConfig = field(default_factory=FsdpConfig)
    offload: OffloadConfig = field(default_factory=OffloadConfig)
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
        -1.0,
        "weight tokens by min(trainer / sampler probability, this); 0: only measure the mismatch; "
        "-1: 2 with vllm, 0 with the native engine",
        low=-1,
    )
    loss_avg_mode: Literal["token", "seq", "constant"] = setting(
        "token", "mean over all tokens, over answers of their means, or the sum over a constant length"
    )


@dataclass(frozen=True)
class RolloutConfig:
    engine: Literal["native", "vllm"] = setting(
        "native", "who generates: `native` samples on the policy's own weights; `vllm` on a copy of them"
    )
    n: int = setting(8, "answers sampled a prompt", low=1)
    temperature: float = setting(1.0, "sampling temperature; validation is greedy", low=0.01)
    top_p: float = setting(1.0, "nucleus sampling; 1 is off", low=0.01, high=1)
    stop: list[str] = setting(
        [],
        "strings that end an answer, which keeps them; in validation too, not in forced beginnings",
    )
    max_batch_rows: int = setting(512, "answers decoded side by side (vLLM's max_num_seqs)", low=1)
    tensor_parallel_size: int = setting(1, "vllm: ranks that hold one engine together; under torchrun", low=1)
    gpu_memory_utilization: float = setting(
        0.6, "vllm: share of a GPU's memory for its weights and KV cache", low=0.01, high=1
    )
    kv_cache_memory_bytes: int = setting(
        0, "vllm: size of the KV cache; 0: by gpu_memory_utilization, and 512 MiB on the CPU", low=0
    )
    max_model_len: int = setting(
        0, "vllm: longest prompt and answer, in tokens; 0: max_prompt_length + 2 * max_response_length", low=0
    )
    max_num_batched_tokens: int = setting(8192, "vllm: tokens of one scheduler step", low=1)
    enforce_eager: bool = setting(False, "vllm: neither compile nor capture CUDA graphs; the CPU never does")
    limit_images: int = setting(0, "vllm: most images of a prompt; 0: any number", low=0)
    free_cache_engine: bool = setting(True, "vllm: give its GPU memory to the trainer while that trains")
    sleep_level: Literal[1, 2] = setting(
        2, "vllm, where free_cache_engine: 2 drops its weights, 1 moves them to the host's memory"
    )
    max_logprob_gap: float = setting(
        -1.0,
        "largest |log-probability in the trainer - in the engine| of a trained token; above it the run stops before "
        "the step; 0: no bound; -1: 0.01 in float32, 5 in bfloat16",
        low=-1,
    )


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
    overlap: bool = setting(
        True, "score answers while later ones are generated; not where your own reward scores a batch (docs/rewards.md)"
    )
    on_failure: Literal["stop", "score"] = setting("stop", "when your own reward fails: stop, or give failed_score")
    failed_score: float = setting(0.0, "score of an answer on which your own reward fails")


@dataclass(frozen=True)
class WorkerConfig:
    actor: ActorConfig = field(default_factory=ActorConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)

    @property
    def importance_truncation(self) -> float:
        """Of the actor's setting, what -1 stands for: an engine with weights and kernels of its own is corrected."""
        chosen = self.actor.importance_truncation
        return chosen if chosen >= 0 else {"native": 0.0, "vllm": 2.0}[self.rollout.engine]

    @property
    def max_logprob_gap(self) -> float:
        """Of the rollout's setting, what -1 stands for. Rounding makes some 1e-5 in float32; in bfloat16 rare tokens
        are off by tenths, so that only gross errors can be told from it."""
        chosen = self.rollout.max_logprob_gap
        return chosen if chosen >= 0 else {"float32": 0.01, "bfloat16": 5.0}[self.actor.model.torch_dtype]
