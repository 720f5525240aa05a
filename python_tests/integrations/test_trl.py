"""TRL's trainer trains with this project's advantages: they are what compute_advantage says of its own batches."""

import diva_engine  # isort: skip - before trl: it lets torchvision be imported beside a CPU torch

import pytest
import torch

pytest.importorskip("trl", reason="trl is not installed: pip install 'diva-engine[trl]'", exc_type=ImportError)

from datasets import Dataset
from trl import GRPOConfig

from diva_engine.integrations.trl import DivaGRPOTrainer, QuestionSampler
from diva_engine.records import UserError
from python_tests.models import build_tiny_model

NUM_GENERATIONS, MAX_TOKENS = 4, 12


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return build_tiny_model("qwen2", tmp_path_factory.mktemp("model"))


def questions(num=6, variants=2, **without):
    rows = [
        {
            "prompt": f"{number} plus {variant}?",
            "question_id": f"q{number}",
            "difficulty": 5.0 + variant * (1 + number % 3),
            "visual_entropy": None if number == 0 else float(number),
        }
        for variant in range(variants)
        for number in range(num)
    ]
    return Dataset.from_list([{k: v for k, v in row.items() if k not in without} for row in rows])


class Recorded(DivaGRPOTrainer):
    """Keeps what each generation batch held and was given."""

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        lengths = [len(token_ids) for token_ids in RECORDS["completion_ids"].pop()]
        rewards = RECORDS["rewards"].pop()
        self.batches = [*getattr(self, "batches", []), (inputs, rewards, lengths, output["advantages"])]
        return output


RECORDS = {"completion_ids": [], "rewards": []}


def number_of_kinds(completion_ids, **columns):
    """Rewards that differ among random answers; every seventh token kind leaves its answer without one."""
    rewards = [None if ids[0] % 7 == 0 else len(set(ids)) / len(ids) + ids[0] % 2 for ids in completion_ids]
    RECORDS["completion_ids"].append(completion_ids)
    RECORDS["rewards"].append(rewards)
    return rewards


def make_trainer(model_folder, folder, dataset=None, **arguments):
    args = GRPOConfig(
        output_dir=str(folder),
        max_steps=2,
        per_device_train_batch_size=16,
        num_generations=NUM_GENERATIONS,
        max_completion_length=MAX_TOKENS,
        learning_rate=1e-2,
        use_cpu=True,
        bf16=False,
        report_to=[],
        logging_steps=1,
        save_strategy="no",
        gradient_checkpointing=False,
    )
    return Recorded(str(model_folder), number_of_kinds, args=args, train_dataset=dataset or questions(), **arguments)


ALGORITHMS = {
    "diva": {},
    "diva as the authors": {"preset": "authors"},
    "diva with settings": {"advantage_settings": {"k": 0.5, "rrb": "none", "balance": "none"}},
    "rloo": {"algorithm": "rloo"},
    "durian by sight": {"algorithm": "durian", "advantage_settings": {"w_reasoning": 0, "w_perceptual": 0.4}},
}


@pytest.mark.slow
@pytest.mark.parametrize("arguments", ALGORITHMS.values(), ids=ALGORITHMS)
def test_two_steps_train_with_the_advantages_of_their_own_batches(model_folder, tmp_path, arguments):
    trainer = make_trainer(model_folder, tmp_path, **arguments)
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    trainer.train()
    assert trainer.state.global_step == 2
    assert len(trainer.batches) == 2
    for rows, rewards, lengths, advantages in trainer.batches:
        torch.testing.assert_close(advantages, expected_advantages(rows, rewards, lengths, arguments))
        assert advantages.abs().max() > 0.1
        assert all(advantages[i] == 0 for i, reward in enumerate(rewards) if reward is None)
    changed = [name for name, value in trainer.model.named_parameters() if not torch.equal(value, before[name])]
    assert len(changed) == len(before)
    assert all(value.isfinite().all() for value in trainer.model.parameters())
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["prompts_per_question"] for entry in logged] == [2.0, 2.0], "a question's rows come together"
    assert list(trainer._logs["advantages"]) == pytest.approx(trainer.batches[-1][3].tolist())


def expected_advantages(rows, rewards, lengths, arguments):
    kept = [place for place, reward in enumerate(rewards) if reward is not None]
    advantage = diva_engine.compute_advantage(
        arguments.get("algorithm", "diva"),
        [rewards[place] for place in kept],
        [rows[place]["prompt"] for place in kept],
        [rows[place]["question_id"] for place in kept],
        [rows[place]["difficulty"] for place in kept],
        arguments.get("preset", "paper"),
        lengths=[lengths[place] for place in kept],
        max_length=MAX_TOKENS,
        visual_entropy=[float(rows[place]["visual_entropy"] or "nan") for place in kept],
        **arguments.get("advantage_settings", {}),
    )
    expected = torch.zeros(len(rewards))
    expected[kept] = advantage
    return expected


@pytest.mark.slow
def test_what_the_data_lack_is_said_in_words(model_folder, tmp_path):
    with pytest.raises(UserError, match="no column question_id, which algorithm='diva' groups rows by"):
        make_trainer(model_folder, tmp_path, questions(question_id=None))
    trainer = make_trainer(model_folder, tmp_path, questions(difficulty=None))
    with pytest.raises(UserError, match="diva needs difficulty"):
        trainer.train()
    trainer = make_trainer(model_folder, tmp_path, algorithm="durian")
    with pytest.raises(UserError, match="durian needs logprobs"):
        trainer.train()


@pytest.mark.slow
@pytest.mark.parametrize("shuffle", [True, False])
def test_questions_are_drawn_whole_and_every_row_once(model_folder, tmp_path, shuffle):
    trainer = make_trainer(model_folder, tmp_path)
    trainer.shuffle_dataset = shuffle
    ids = trainer.train_dataset["question_id"]
    sampler = trainer._get_train_sampler()
    assert isinstance(sampler, QuestionSampler)
    first, second = list(sampler), list(sampler)
    assert len(first) == len(sampler) == NUM_GENERATIONS * len(ids)
    assert sorted(first) == sorted(list(range(len(ids))) * NUM_GENERATIONS)
    for start in range(0, len(first), 16):
        batch = set(first[start : start + 16])
        assert len({ids[row] for row in batch}) == 2, "four prompts are two whole questions"
    assert (first != second) == shuffle
