"""YAML files and command lines of EasyR1, DIVA-GRPO, verl and TRL are read as they are; nothing is dropped in
silence."""

from pathlib import Path

import pytest

from diva_engine.algorithm.recipes import recipe_defaults
from diva_engine.config import Config
from diva_engine.config.foreign import FOREIGN, VALUES, Mapped
from diva_engine.config.translate import translate
from diva_engine.records import UserError
from diva_engine.settings import flatten, load_config, save_config

FILES = Path(__file__).parent / "configs"
OURS = flatten(Config())


def load(*words):
    told = []
    return flatten(load_config(words, recipe_defaults, told.append)), told


READ = {
    "easyr1.yaml": {
        "data.train_files": "someone/shapes@train",
        "data.image_dir": "",
        "data.max_pixels": 1003520,
        "data.seed": 7,
        "algorithm.disable_kl": False,
        "algorithm.kl_penalty": "k3",
        "algorithm.kl_coef": 0.02,
        "worker.actor.global_batch_size": 64,
        "worker.actor.model.freeze_vision_tower": True,
        "worker.actor.model.enable_gradient_checkpointing": True,
        "worker.actor.offload.offload_params": False,
        "worker.actor.offload.offload_optimizer": True,
        "worker.actor.model.torch_dtype": "bfloat16",
        "worker.actor.optim.weight_decay": 0.01,
        "worker.rollout.n": 6,
        "worker.reward.reward_type": "batch",
        "worker.reward.reward_function": "./rewards/shapes.py:compute_score",
        "dapo.max_draws": 1_000_000,
        "trainer.max_steps": 0,
        "trainer.experiment_name": "first_7",
        "trainer.logger": ["console", "wandb"],
        "trainer.val_freq": 0,
        "trainer.save_limit": 0,
        "trainer.save_checkpoint_path": "",
        "trainer.load_checkpoint_path": "auto",
    },
    "diva.yaml": {
        "algorithm.adv_estimator": "diva",
        "algorithm.preset": "authors",
        "data.rollout_batch_size": 100,
        "variants.num": 2,
        "difficulty.rule": "steps",
        "advantage.rrb": "threshold",
        "advantage.balance": "padded_tokens",
        "advantage.weight": "global",
        "worker.rollout.n": 5,
    },
    "verl.yaml": {
        "data.train_files": ["a.parquet", "b.parquet"],
        "data.rollout_batch_size": 128,
        "worker.actor.model.model_path": "Qwen/Qwen2.5-VL-3B-Instruct",
        "worker.actor.optim.lr": 1e-6,
        "worker.actor.global_batch_size": 32,
        "worker.actor.clip_ratio_low": 0.2,
        "worker.actor.clip_ratio_high": 0.28,
        "worker.actor.clip_ratio_dual": 3.0,
        "worker.actor.loss_avg_mode": "seq",
        "algorithm.disable_kl": False,
        "algorithm.use_kl_loss": True,
        "algorithm.kl_coef": 0.01,
        "worker.rollout.n": 5,
        "worker.rollout.engine": "vllm",
        "worker.rollout.tensor_parallel_size": 2,
        "trainer.val_freq": 5,
        "trainer.save_freq": 0,
        "trainer.save_checkpoint_path": "runs/shapes_run",
    },
}


@pytest.mark.parametrize(("name", "expected"), READ.items(), ids=READ)
def test_a_file_is_read_as_it_is(name, expected):
    config, _ = load(f"config={FILES / name}")
    assert {key: config[key] for key in expected} == expected


def test_every_name_of_a_file_is_ours_or_told():
    import yaml

    config, told = load(f"config={FILES / 'easyr1.yaml'}")
    text = "\n".join(told)
    assert "ignored (of vLLM): worker.rollout.disable_tqdm" in text
    assert "between phases; here for good): worker.actor.offload.offload_params" in text
    assert "ignored (torchrun says it): trainer.nnodes, trainer.n_gpus_per_node" in text
    assert "ignored (not among our loggers): trainer.logger: swanlab" in text
    assert "worker.actor.fsdp.torch_dtype -> worker.actor.model.torch_dtype" in text
    assert "worker.actor.clip_ratio_high=0.3 worker.actor.clip_ratio_dual=3.0 worker.actor.optim.betas=" in text
    assert "algorithm.disable_kl" not in text.split("EasyR1's are:")[1], "the file says that one"

    def names(tree, prefix=""):
        for key, value in tree.items():
            yield from names(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]

    for name, value in names(yaml.safe_load((FILES / "easyr1.yaml").read_text())):
        assert name in config or name in text or value is None or value in (False, 0, 1, 0.0), name


def test_the_saved_settings_are_ours_alone_and_tell_nothing(tmp_path):
    config = load_config([f"config={FILES / 'diva.yaml'}"], recipe_defaults)
    save_config(config, tmp_path / "config.yaml")
    told = []
    assert load_config([f"config={tmp_path / 'config.yaml'}"], recipe_defaults, told.append) == config
    assert told == []


DIVA_WORDS = {
    "v0, as its script": (
        ["algorithm.weight_mode=weightafter1-5_zscore_norm", "trainer.Varient_Num=1"],
        {"data.rollout_batch_size": 150, "variants.num": 1},
    ),
    "v1, by the script's name": (
        [
            "trainer.Difficulty_Adaptation=null",
            "trainer.DIVA_GRPO=true",
            "trainer.Varient_Num=null",
            "trainer.Variant_Num=3",
            "trainer.score_ranges=[[0.0,0.05],[0.05,0.3]]",
            "trainer.difficulty_changes=[2,1]",
            "trainer.weighted_advantage_k=0.2",
            "trainer.Dataset_Mode=None",
            "data.rollout_batch_size=128",
            "algorithm.weight_mode=MINMAXNORM_WAN_RRBLOCAL_RRBGLOBAL_5000_k=0.1",
        ],
        {
            "data.rollout_batch_size": 32,
            "advantage.balance": "minmax",
            "advantage.k": 0.2,
            "advantage.rrb": "threshold",
        },
    ),
    "without rescaling": (
        ["algorithm.Adjust_Low_Reward_Local=false", "algorithm.Adjust_Low_Reward_Global=false"],
        {"advantage.rrb": "none"},
    ),
    "without weights": (["algorithm.weight_mode=ZSCORENORM"], {"advantage.weight": "none"}),
    "levels that stay": (["trainer.Difficulty_Change=false"], {"difficulty.eta": 0.0, "difficulty.rule": "continuous"}),
    "the paper's settings instead": (
        ["preset=paper"],
        {"difficulty.rule": "continuous", "advantage.rrb": "range", "advantage.balance": "sequences"},
    ),
    "switched off": (
        ["trainer.Difficulty_Adaptation=false"],
        {"algorithm.adv_estimator": "grpo", "data.rollout_batch_size": 300, "advantage.rrb": "none"},
    ),
}


@pytest.mark.parametrize(("words", "expected"), DIVA_WORDS.values(), ids=DIVA_WORDS)
def test_divas_switches_are_read_together(words, expected):
    config, told = load(f"config={FILES / 'diva.yaml'}", *words)
    assert {key: config[key] for key in expected} == expected
    assert any("DIVA" in line for line in told)


def test_trls_names_are_read():
    words = [
        "num_generations=4",
        "beta=0.0",
        "epsilon=0.1",
        "epsilon_high=0.3",
        "max_completion_length=99",
        "max_steps=-1",
    ]
    config, _ = load(*words)
    assert (config["worker.rollout.n"], config["data.max_response_length"]) == (4, 99)
    assert (config["worker.actor.clip_ratio_low"], config["worker.actor.clip_ratio_high"]) == (0.1, 0.3)
    assert (config["algorithm.disable_kl"], config["trainer.max_steps"]) == (True, 0)
    assert load("beta=0.04")[0]["algorithm.disable_kl"] is False


def test_verls_hybrid_sharding_is_ours():
    config, told = load("actor_rollout_ref.actor.fsdp_config.fsdp_size=4", "worker.actor.fsdp.enable_full_shard=true")
    assert config["worker.actor.fsdp.fsdp_size"] == 4
    assert any("sharding needs no setting but fsdp_size" in line for line in told)


def test_our_own_names_and_later_layers_win(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text(
        "trainer: {total_episodes: 9, total_epochs: 2, max_steps: 5}\nworker: {actor: {padding_free: true}}\n"
    )
    config, _ = load(f"config={path}")
    assert config["trainer.total_epochs"] == 2
    config, _ = load(f"config={path}", "trainer.total_episodes=4", "trainer.max_steps=null")
    assert config["trainer.total_epochs"] == 4
    assert config["trainer.max_steps"] == 0, "null is the default again"


def test_interpolation_follows_the_command_line(tmp_path, monkeypatch):
    path = tmp_path / "a.yaml"
    text = 'data: {max_prompt_length: "${data.max_response_length}", image_dir: "${oc.env:PICTURES}/${oc.env:SUB,x}"}\n'
    path.write_text(text + 'worker: {reward: {reward_function_kwargs: {n: ["${worker.rollout.n}"]}}}\n')
    monkeypatch.setenv("PICTURES", "/pictures")
    monkeypatch.delenv("SUB", raising=False)
    config, _ = load(f"config={path}", "data.max_response_length=77", "worker.rollout.n=3")
    assert config["data.max_prompt_length"] == 77
    assert config["data.image_dir"] == "/pictures/x"
    assert config["worker.reward.reward_function_kwargs"] == {"n": [3]}


REFUSED = {
    "unknown": ("trainer.n_gpus_per_nod=8", "did you mean trainer.n_gpus_per_node?"),
    "unknown in ours": ("worker.rolout.n=8", "did you mean worker.rollout.n?"),
    "adapters to go on from": ("worker.actor.model.lora.path=somewhere", "adapters start from nothing"),
    "filtering": ("algorithm.online_filtering=true", "take algorithm=dapo"),
    "loss": ("worker.actor.loss_type=gspo", "take algorithm=gspo"),
    "top_k": ("worker.rollout.top_k=50", "worker.rollout.top_k=50 is not offered here"),
    "critic's recipe": ("algorithm.adv_estimator=gae", None),
    "weights per batch": ("trainer.DIVA_GRPO=true algorithm.weight_mode=WBN_ZSCORENORM", "WBN is not offered"),
    "half a rule": (
        "trainer.DIVA_GRPO=true algorithm.Adjust_Low_Reward_Local=true",
        "rescales both advantages or none",
    ),
    "fraction of a variant": ("trainer.DIVA_GRPO=true trainer.Variant_Num=1.5", "must be whole numbers"),
    "interpolation of nothing": ("data.image_dir=${data.folder}", "${data.folder} is set nowhere"),
    "interpolation in a circle": ("data.image_dir=${data.font} data.font=${data.image_dir}", "leads back to itself"),
    "no such variable": ("data.image_dir=${oc.env:NOT_THERE}", "the environment has no NOT_THERE"),
    "files that are none": ("data.train_files=[1, {a: 1}]", "data.train_files"),
}


@pytest.mark.parametrize(("words", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_meant_is_refused(words, message):
    with pytest.raises(UserError) as error:
        load(*([words] if "[" in words else words.split()))
    assert (message or "did you mean") in str(error.value)
    assert "\n" not in str(error.value)


def test_the_table_leads_to_settings_that_exist():
    """Every mapped name ends at a setting of ours."""
    for name, rule in FOREIGN.items():
        if isinstance(rule, Mapped):
            files, _, _ = translate({name: 1}, {}, OURS)
            assert set(files) <= set(OURS), name
    assert set(VALUES) <= set(OURS)
