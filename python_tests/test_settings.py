"""Settings are typed, explained, and refused at the door."""

import pytest

from diva_engine.algorithm.recipes import recipe_defaults
from diva_engine.config import Config
from diva_engine.records import UserError
from diva_engine.settings import build_config, describe_settings, flatten, load_config, save_config

REFUSED = {
    "misspelt name": ("worker.actor.clip_ratio_hihg=1", "did you mean worker.actor.clip_ratio_high?"),
    "name below a setting": ("algorithm.adv_estimator.foo=1", "did you mean algorithm.adv_estimator?"),
    "below the range": ("data.seed=-1", "data.seed=-1 is out of range: it must be at least 0"),
    "above the range": ("worker.rollout.top_p=2", "it must be at least 0.01 and at most 1"),
    "infinite": ("worker.actor.optim.lr=.inf", "worker.actor.optim.lr=inf is out of range"),
    "fraction for a whole number": ("worker.rollout.n=2.5", "it takes a whole number"),
    "number for a truth value": ("data.shuffle=3", "it takes true or false"),
    "text for a list": ("trainer.logger=console", "it takes a list like [a, b]"),
    "number for a mapping": ("worker.reward.reward_function_kwargs=1", "it takes a mapping"),
    "unknown choice": ("advantage.rrb=foo", "take one of range, threshold, none"),
    "one beta": ("worker.actor.optim.betas=[0.9]", "must be two numbers of at least 0 and below 1"),
    "beta out of range": ("worker.actor.optim.betas=[0.9, 1]", "must be two numbers of at least 0 and below 1"),
    "levels upside down": ("difficulty.low=9.5", "difficulty.low=9.5 is above difficulty.high=9"),
    "template without steps": ("hint.question_template={question}", "must hold {question} and {steps}"),
    "template with another name": ("hint.answer_template={steps} {foo}", "must hold {steps}"),
    "template with an open brace": ("hint.answer_template={steps", "write every other brace twice"),
    "unknown operation": ("variants.operations=[rotate, gausian]", "gausian is none; did you mean gaussian?"),
    "no operation": ("variants.operations=[]", "must name at least one operation"),
    "an operation twice": ("variants.operations=[blur, blur]", "and none twice"),
    "no equals sign": ("train", "write section.name=value"),
    "missing file": ("config=nowhere.yaml", "config=nowhere.yaml cannot be read"),
}


@pytest.mark.parametrize(("word", "message"), REFUSED.values(), ids=REFUSED)
def test_a_bad_setting_is_refused_by_name(word, message):
    with pytest.raises(UserError) as error:
        load_config([word])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_later_layers_win(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("variants: {num: 3}\nworker: {rollout: {n: 6}, actor: {optim: {lr: 1e-5}}}\nalgorithm: diva\n")
    presets = {"variants.num": 1, "advantage.k": 0.5}
    config = load_config([f"config={path}", "worker.rollout.n=7"], lambda name, preset: presets)
    assert config.algorithm.adv_estimator == "diva"
    assert config.variants.num == 3, "the file beats the recipe"
    assert config.advantage.k == 0.5, "the recipe beats the default"
    assert config.worker.rollout.n == 7, "the command line beats the file"
    assert config.worker.actor.optim.lr == 1e-5
    config = load_config(["worker.rollout.n=7", "worker.rollout.n=8", f"config={path}"])
    assert config.worker.rollout.n == 8, "also where the file is named behind it"


def test_a_section_with_nothing_in_it_sets_nothing(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("variants:\n  # num: 3\nworker: {actor: }\ndata: {seed: 3}\n")
    config = load_config([f"config={path}"])
    assert config.data.seed == 3
    assert config.variants == Config().variants


def test_the_saved_file_reads_back_as_the_same_config(tmp_path):
    config = load_config(["seed=7", "worker.reward.reward_function_kwargs={a: {b: 1}}", "trainer.logger=[file]"])
    save_config(config, tmp_path / "config.yaml")
    assert load_config([f"config={tmp_path / 'config.yaml'}"]) == config


@pytest.mark.parametrize(("text", "message"), [("a: [1", "not valid YAML"), ("- 1", "must hold settings by section")])
def test_a_broken_file_is_named(tmp_path, text, message):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as error:
        load_config([f"config={path}"])
    assert str(path) in str(error.value)
    path.write_bytes(b"PAR1\xc0")
    with pytest.raises(UserError, match="is no text"):
        load_config([f"config={path}"])


def test_every_setting_has_a_meaning_and_its_default_is_valid():
    for name, default, meaning in describe_settings():
        assert meaning, name
        assert flatten(build_config({name: default}))[name] == default
    assert build_config({}) == Config()


def test_text_is_taken_as_it_stands():
    config = load_config(["trainer.experiment_name=007", "data.train_files=a: b", "data.system_prompt=yes"])
    assert config.trainer.experiment_name == "007"
    assert config.data.train_files == "a: b"
    assert config.data.system_prompt == "yes"


def test_another_algorithm_brings_its_own_presets_over_a_saved_file(tmp_path):
    def presets(name, preset):
        return {} if name == "grpo" else {"worker.actor.clip_ratio_low": 3e-4, "worker.actor.loss_avg_mode": "seq"}

    saved = load_config(["algorithm=gspo", "worker.rollout.n=5", "data.max_prompt_length=77"], presets)
    save_config(saved, tmp_path / "config.yaml")
    file = f"config={tmp_path / 'config.yaml'}"
    assert load_config([file], presets) == saved
    other = load_config([file, "algorithm=grpo"], presets)
    assert other.worker.actor.clip_ratio_low == 0.2, "what gspo preset does not outlive it"
    assert (other.worker.rollout.n, other.data.max_prompt_length) == (5, 77), "what the user chose does"
    save_config(other, tmp_path / "config.yaml")
    again = load_config([file, "algorithm=gspo"], presets)
    assert (again.worker.actor.clip_ratio_low, again.worker.actor.loss_avg_mode) == (3e-4, "seq")


def test_a_preset_chooses_the_recipes_defaults_and_settings_beat_it():
    config = load_config(["algorithm=diva", "preset=authors", "difficulty.rule=continuous"], recipe_defaults)
    assert (config.advantage.rrb, config.advantage.balance) == ("threshold", "padded_tokens")
    assert config.difficulty.rule == "continuous"
    assert config.variants.num == 1, "what the two have in common"
    assert load_config(["algorithm=diva", "preset=paper"], recipe_defaults) == load_config(
        ["algorithm=diva"], recipe_defaults
    )
    for words, message in (
        (["algorithm=grpo", "preset=authors"], "preset=authors is not known for algorithm=grpo, only for diva"),
        (["algorithm=diva", "preset=foo"], "preset=foo is not a choice; take one of paper, authors"),
    ):
        with pytest.raises(UserError, match=message):
            load_config(words, recipe_defaults)


def test_a_preset_and_its_settings_do_not_outlive_a_change_over_a_saved_file(tmp_path):
    saved = load_config(["algorithm=diva", "preset=authors", "advantage.k=0.3"], recipe_defaults)
    save_config(saved, tmp_path / "config.yaml")
    file = f"config={tmp_path / 'config.yaml'}"
    assert load_config([file], recipe_defaults) == saved
    assert load_config([file, "preset=paper"], recipe_defaults) == load_config(
        ["algorithm=diva", "advantage.k=0.3"], recipe_defaults
    )
    other = load_config([file, "algorithm=grpo"], recipe_defaults)
    assert (other.algorithm.preset, other.advantage.rrb, other.advantage.k) == ("paper", "none", 0.3)


def test_a_file_may_name_the_preset_and_the_command_line_the_recipe(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("preset: authors\nadvantage: {rrb: none}\n")
    config = load_config([f"config={path}", "algorithm=diva"], recipe_defaults)
    assert (config.algorithm.preset, config.difficulty.rule, config.advantage.rrb) == ("authors", "steps", "none")
