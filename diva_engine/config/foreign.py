"""The settings of other trainers by their names: what each is here. The one table of them; translate.py reads it.

EasyR1 (and DIVA-GRPO and R1-ShareVL, which grew out of it), verl, TRL's GRPOConfig. A name that both have means the
same here and does not stand in this table; where only its values are written otherwise, VALUES has it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Mapped:
    """Is set here under other names."""

    settings: Callable[[Any], Mapping[str, Any]]  # from the value to ours


@dataclass(frozen=True)
class Ignored:
    """Makes no difference here, or does not exist; why, in a word."""

    why: str


@dataclass(frozen=True)
class Only:
    """Goes without saying at some values (null is always one); any other would change the training and is refused."""

    values: tuple[Any, ...]
    mend: str


Rule = Mapped | Ignored | Only


def renamed(*names: str, values: Mapping[Any, Any] | None = None) -> Mapped:
    """The same value under our names; `values` says how some are written here."""
    return Mapped(lambda value: dict.fromkeys(names, _written(value, values or {})))


def _written(value: Any, values: Mapping[Any, Any]) -> Any:
    return values.get(value, value) if isinstance(value, (str, int, float)) else value


def _kl_of_trl(beta: Any) -> dict[str, Any]:
    return {"algorithm.kl_coef": beta, "algorithm.disable_kl": beta == 0}


def _kl_loss_of_verl(is_used: Any) -> dict[str, Any]:
    return {"algorithm.disable_kl": not is_used, "algorithm.use_kl_loss": is_used}


DTYPES = {"bf16": "bfloat16", "fp32": "float32", "bfloat16": "bfloat16", "float32": "float32"}
KL_PENALTIES = {"kl": "k1", "mse": "k2", "low_var_kl": "k3"}
LOSS_MODES = {"token-mean": "token", "seq-mean-token-mean": "seq", "seq-mean-token-sum-norm": "constant"}
NO_CRITIC, VIDEOS, VLLM = Ignored("no critic"), Ignored("videos are not read"), Ignored("of vLLM")
ALWAYS, TORCHRUN = Ignored("always so"), Ignored("torchrun says it")
SHARDING = Ignored("sharding needs no setting but fsdp_size")
EASYR1_SHARDING = (  # of worker.actor.fsdp
    "enable_full_shard", "enable_cpu_offload", "enable_rank0_init", "use_orig_params",
    "mp_param_dtype", "mp_reduce_dtype", "mp_buffer_dtype",
)  # fmt: skip
BY_TOKENS = Ignored("worker.actor.micro_batch_tokens cuts batches by tokens")
KEPT = Ignored("rollouts.jsonl, the checkpoints and diva_engine.report have it")

# Names that are ours too; how others write some of their values.
VALUES: Mapping[str, Mapping[Any, Any]] = {
    "algorithm.kl_penalty": KL_PENALTIES,
    "worker.reward.reward_type": {"function": "auto"},
    "trainer.save_freq": {-1: 0},
    "trainer.save_limit": {-1: 0},
    "trainer.val_freq": {-1: 0},
    "trainer.max_steps": {-1: 0},
}

EASYR1: Mapping[str, Rule] = {
    **dict.fromkeys((f"worker.actor.fsdp.{name}" for name in EASYR1_SHARDING), SHARDING),
    "data.video_key": VIDEOS,
    "data.video_fps": VIDEOS,
    "data.format_prompt_path": renamed("data.format_prompt"),
    "data.mini_rollout_batch_size": Ignored("questions are drawn as they are needed"),
    "data.val_batch_size": Ignored("worker.rollout.max_batch_rows bounds it"),
    "data.override_chat_template": Only((), "the model folder's own template is used"),
    "data.filter_overlong_prompts": Ignored("rows too long are always left out"),
    "data.filter_overlong_prompts_workers": Ignored("rows too long are always left out"),
    "algorithm.gamma": NO_CRITIC,
    "algorithm.lam": NO_CRITIC,
    "algorithm.kl_type": Only(("fixed",), "take a fixed algorithm.kl_coef"),
    "algorithm.kl_horizon": Ignored("algorithm.kl_coef is fixed"),
    "algorithm.kl_target": Ignored("algorithm.kl_coef is fixed"),
    "algorithm.online_filtering": Only((False,), "take algorithm=dapo, which draws until groups are live"),
    "algorithm.filter_key": Ignored("dapo.live_by says it"),
    "algorithm.filter_low": Ignored("dapo.live_by says it"),
    "algorithm.filter_high": Ignored("dapo.live_by says it"),
    "worker.hybrid_engine": ALWAYS,
    "worker.actor.strategy": Ignored("one way only"),
    "worker.actor.micro_batch_size_per_device_for_update": BY_TOKENS,
    "worker.actor.micro_batch_size_per_device_for_experience": BY_TOKENS,
    "worker.actor.loss_type": Only(("default",), "take algorithm=gspo, cispo or sapo"),
    "worker.actor.padding_free": ALWAYS,
    "worker.actor.dynamic_batching": ALWAYS,
    "worker.actor.ulysses_size": Only((1,), "sequence parallelism is not offered"),
    "worker.actor.ulysses_sequence_parallel_size": Only((1,), "sequence parallelism is not offered"),
    "worker.actor.use_torch_compile": Ignored("the ops are compiled"),
    "worker.actor.entropy_coeff": Only((0,), "an entropy bonus is not offered"),
    "worker.actor.use_kl_loss": renamed("algorithm.use_kl_loss"),
    "worker.actor.kl_loss_coef": renamed("algorithm.kl_coef"),
    "worker.actor.kl_loss_type": renamed("algorithm.kl_penalty", values=KL_PENALTIES),
    "worker.actor.model.tokenizer_path": Only((), "the model folder's own tokenizer is used"),
    "worker.actor.model.lora.exclude_modules": Ignored("a frozen vision tower gets no adapters"),
    "worker.actor.model.lora.path": Only((), "adapters start from nothing"),
    "worker.actor.optim.strategy": Ignored("AdamW on float32 masters"),
    "worker.actor.optim.lr_warmup_ratio": Only((0,), "give worker.actor.optim.lr_warmup_steps"),
    "worker.actor.optim.warmup_style": renamed("worker.actor.optim.lr_scheduler_type"),
    "worker.actor.optim.min_lr_ratio": Only((0,), "a schedule falls to 0"),
    "worker.actor.fsdp.torch_dtype": renamed("worker.actor.model.torch_dtype", values=DTYPES),
    "worker.rollout.name": renamed("worker.rollout.engine", values={"hf": "native"}),
    "worker.rollout.top_k": Only((-1, 0), "sampling is by temperature and top_p"),
    "worker.rollout.ignore_eos": Only((False,), "answers end at the end token"),
    "worker.rollout.seed": Ignored("data.seed is the one seed"),
    "worker.rollout.question_num": Only((1,), "algorithm=diva with variants.num poses several wordings"),
    "worker.rollout.dtype": VLLM,
    "worker.rollout.enable_chunked_prefill": VLLM,
    "worker.rollout.max_num_seqs": Ignored("worker.rollout.max_batch_rows says it"),
    "worker.rollout.disable_log_stats": VLLM,
    "worker.rollout.disable_tqdm": VLLM,
    "worker.reward.score_function": renamed("worker.reward.reward_function"),
    "worker.reward.score_function_kwargs": renamed("worker.reward.reward_function_kwargs"),
    "worker.reward.skip_special_tokens": Only((True,), "rewards read the text without special tokens"),
    "worker.reward.num_cpus": renamed("worker.reward.num_workers"),
    "worker.reward.reward_save_path": KEPT,
    "trainer.total_episodes": renamed("trainer.total_epochs"),
    "trainer.nnodes": TORCHRUN,
    "trainer.n_gpus_per_node": TORCHRUN,
    "trainer.max_try_make_batch": renamed("dapo.max_draws", values={-1: 1_000_000}),
    "trainer.critic_warmup": NO_CRITIC,
    "trainer.val_only": Only((False,), "python -m diva_engine.evaluate measures without training"),
    "trainer.val_generations_to_log": Ignored("trainer.rollouts_to_log logs training answers"),
    "trainer.save_model_only": Ignored("checkpoints are whole"),
    "trainer.find_last_checkpoint": renamed("trainer.load_checkpoint_path", values={True: "auto", False: ""}),
    "trainer.ray_timeline": Ignored("no Ray"),
}

# DIVA-GRPO's own, beside those that translate.py reads together (`trainer.DIVA_GRPO`, `algorithm.weight_mode`, ...).
DIVA: Mapping[str, Rule] = {
    "trainer.weighted_advantage_k": renamed("advantage.k"),
    "trainer.min_diff": renamed("difficulty.low"),
    "trainer.max_diff": renamed("difficulty.high"),
    "trainer.score_ranges": Ignored("difficulty.rule has its own table"),
    "trainer.difficulty_changes": Ignored("difficulty.rule has its own table"),
    "trainer.Dataset_Mode": Only(("only_text_thinking", "None"), "variants are drawn as by only_text_thinking"),
    "trainer.Share_VL": Only((False,), "algorithm=diva with variants.num poses several wordings"),
    "trainer.DIVA_warmup": Only((False,), "start from a ledger instead: difficulty.warm_start"),
    "trainer.Full_Vector_Data_Path": KEPT,
    "trainer.Diffculty_Updates_Path": KEPT,
    "trainer.All_Log_Path": KEPT,
    "trainer.Save_Data": KEPT,
    "algorithm.Curriculum_Reward": Only((False,), "advantage.weight weighs by difficulty"),
}

_VERL = "actor_rollout_ref"
VERL: Mapping[str, Rule] = {
    "data.train_batch_size": renamed("data.rollout_batch_size"),
    "data.gen_batch_size": Ignored("questions are drawn as they are needed"),
    "data.return_raw_chat": ALWAYS,
    "data.truncation": Ignored("rows too long are always left out"),
    "data.dataloader_num_workers": Ignored("data.prefetch says it"),
    "algorithm.use_kl_in_reward": Only((False,), "say algorithm.disable_kl=false algorithm.use_kl_loss=false"),
    "algorithm.norm_adv_by_std_in_grpo": Only((True,), "take algorithm=dr_grpo"),
    f"{_VERL}.hybrid_engine": ALWAYS,
    f"{_VERL}.model.path": renamed("worker.actor.model.model_path"),
    f"{_VERL}.model.trust_remote_code": renamed("worker.actor.model.trust_remote_code"),
    f"{_VERL}.model.use_remove_padding": ALWAYS,
    f"{_VERL}.model.enable_gradient_checkpointing": renamed("worker.actor.model.enable_gradient_checkpointing"),
    f"{_VERL}.model.lora_rank": renamed("worker.actor.model.lora.rank"),
    f"{_VERL}.model.lora_alpha": renamed("worker.actor.model.lora.alpha"),
    f"{_VERL}.model.target_modules": renamed("worker.actor.model.lora.target_modules"),
    f"{_VERL}.actor.fsdp_config.fsdp_size": renamed("worker.actor.fsdp.fsdp_size"),
    f"{_VERL}.actor.fsdp_config.param_offload": renamed("worker.actor.offload.offload_params"),
    f"{_VERL}.actor.fsdp_config.optimizer_offload": renamed("worker.actor.offload.offload_optimizer"),
    f"{_VERL}.actor.strategy": Ignored("one way only"),
    f"{_VERL}.actor.freeze_vision_tower": renamed("worker.actor.model.freeze_vision_tower"),
    f"{_VERL}.actor.optim.lr": renamed("worker.actor.optim.lr"),
    f"{_VERL}.actor.optim.weight_decay": renamed("worker.actor.optim.weight_decay"),
    f"{_VERL}.actor.optim.lr_warmup_steps": renamed("worker.actor.optim.lr_warmup_steps", values={-1: 0}),
    f"{_VERL}.actor.optim.lr_warmup_steps_ratio": Only((0,), "give worker.actor.optim.lr_warmup_steps"),
    f"{_VERL}.actor.ppo_mini_batch_size": renamed("worker.actor.global_batch_size"),
    f"{_VERL}.actor.ppo_micro_batch_size_per_gpu": BY_TOKENS,
    f"{_VERL}.actor.ppo_max_token_len_per_gpu": renamed("worker.actor.micro_batch_tokens"),
    f"{_VERL}.actor.use_dynamic_bsz": ALWAYS,
    f"{_VERL}.actor.ppo_epochs": renamed("worker.actor.ppo_epochs"),
    f"{_VERL}.actor.grad_clip": renamed("worker.actor.max_grad_norm"),
    f"{_VERL}.actor.clip_ratio": renamed("worker.actor.clip_ratio_low", "worker.actor.clip_ratio_high"),
    f"{_VERL}.actor.clip_ratio_low": renamed("worker.actor.clip_ratio_low"),
    f"{_VERL}.actor.clip_ratio_high": renamed("worker.actor.clip_ratio_high"),
    f"{_VERL}.actor.clip_ratio_c": renamed("worker.actor.clip_ratio_dual"),
    f"{_VERL}.actor.loss_agg_mode": renamed("worker.actor.loss_avg_mode", values=LOSS_MODES),
    f"{_VERL}.actor.entropy_coeff": Only((0,), "an entropy bonus is not offered"),
    f"{_VERL}.actor.use_kl_loss": Mapped(_kl_loss_of_verl),
    f"{_VERL}.actor.kl_loss_coef": renamed("algorithm.kl_coef"),
    f"{_VERL}.actor.kl_loss_type": renamed("algorithm.kl_penalty", values=KL_PENALTIES),
    f"{_VERL}.rollout.n": renamed("worker.rollout.n"),
    f"{_VERL}.rollout.temperature": renamed("worker.rollout.temperature"),
    f"{_VERL}.rollout.top_p": renamed("worker.rollout.top_p"),
    f"{_VERL}.rollout.top_k": Only((-1, 0), "sampling is by temperature and top_p"),
    f"{_VERL}.rollout.name": renamed("worker.rollout.engine", values={"hf": "native"}),
    f"{_VERL}.rollout.log_prob_micro_batch_size_per_gpu": BY_TOKENS,
    f"{_VERL}.rollout.tensor_model_parallel_size": renamed("worker.rollout.tensor_parallel_size"),
    f"{_VERL}.rollout.gpu_memory_utilization": renamed("worker.rollout.gpu_memory_utilization"),
    f"{_VERL}.rollout.enforce_eager": renamed("worker.rollout.enforce_eager"),
    f"{_VERL}.rollout.free_cache_engine": VLLM,
    f"{_VERL}.rollout.enable_chunked_prefill": VLLM,
    "custom_reward_function.path": Only((), "say worker.reward.reward_function=path.py:function"),
    "trainer.total_training_steps": renamed("trainer.max_steps"),
    "trainer.test_freq": renamed("trainer.val_freq", values={-1: 0}),
    "trainer.default_local_dir": renamed("trainer.save_checkpoint_path"),
    "trainer.resume_mode": Only(("disable",), "say trainer.load_checkpoint_path=auto"),
    "trainer.balance_batch": ALWAYS,
    "trainer.log_val_generations": Ignored("trainer.rollouts_to_log logs training answers"),
}

TRL: Mapping[str, Rule] = {
    "model_name_or_path": renamed("worker.actor.model.model_path"),
    "dataset_name": renamed("data.train_files"),
    "output_dir": renamed("trainer.save_checkpoint_path"),
    "num_generations": renamed("worker.rollout.n"),
    "max_completion_length": renamed("data.max_response_length"),
    "max_prompt_length": renamed("data.max_prompt_length"),
    "learning_rate": renamed("worker.actor.optim.lr"),
    "lr_scheduler_type": renamed("worker.actor.optim.lr_scheduler_type"),
    "warmup_steps": renamed("worker.actor.optim.lr_warmup_steps"),
    "weight_decay": renamed("worker.actor.optim.weight_decay"),
    "max_grad_norm": renamed("worker.actor.max_grad_norm"),
    "num_iterations": renamed("worker.actor.ppo_epochs"),
    "epsilon": renamed("worker.actor.clip_ratio_low", "worker.actor.clip_ratio_high"),
    "epsilon_high": renamed("worker.actor.clip_ratio_high"),
    "beta": Mapped(_kl_of_trl),
    "temperature": renamed("worker.rollout.temperature"),
    "top_p": renamed("worker.rollout.top_p"),
    "num_train_epochs": renamed("trainer.total_epochs"),
    "max_steps": renamed("trainer.max_steps", values={-1: 0}),
    "save_steps": renamed("trainer.save_freq"),
    "save_total_limit": renamed("trainer.save_limit"),
    "eval_steps": renamed("trainer.val_freq"),
    "run_name": renamed("trainer.experiment_name"),
    "per_device_train_batch_size": BY_TOKENS,
    "gradient_accumulation_steps": BY_TOKENS,
    "gradient_checkpointing": renamed("worker.actor.model.enable_gradient_checkpointing"),
    "logging_steps": ALWAYS,
    "use_vllm": Ignored("worker.rollout.engine says it"),
}

FOREIGN: Mapping[str, Rule] = {**EASYR1, **DIVA, **VERL, **TRL}
# Whole sections, where the table above has no name of theirs.
SECTIONS: Mapping[str, Rule] = {
    "worker.ref.": Ignored("the reference is the starting model"),
    "worker.critic.": NO_CRITIC,
    "worker.actor.model.override_config.": Only((), "the model folder's own configuration is used"),
    "worker.rollout.val_override_config.": Ignored("validation is greedy, one answer a question"),
    f"{_VERL}.ref.": Ignored("the reference is the starting model"),
    f"{_VERL}.actor.fsdp_config.": SHARDING,
    f"{_VERL}.rollout.val_kwargs.": Ignored("validation is greedy, one answer a question"),
    "critic.": NO_CRITIC,
}

# What EasyR1 takes where its file says nothing and we take something else.
EASYR1_DEFAULTS: Mapping[str, Any] = {
    "worker.actor.clip_ratio_high": 0.3,
    "worker.actor.clip_ratio_dual": 3.0,
    "worker.actor.optim.betas": [0.9, 0.999],
    "worker.actor.optim.weight_decay": 0.01,
    "algorithm.disable_kl": False,
    "algorithm.use_kl_loss": False,
    "data.prompt_key": "prompt",
}
# Names of both that mean different things; in a file of EasyR1's they are ignored.
EASYR1_MEANS_OTHERWISE: Mapping[str, str] = {
    "worker.actor.offload.offload_params": "there weights leave the GPU between phases; here for good"
}
EASYR1_MARKS = ("worker.actor.padding_free", "worker.actor.micro_batch_size_per_device_for_update")
