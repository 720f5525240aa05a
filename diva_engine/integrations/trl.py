"""TRL's GRPOTrainer with this project's advantages: `DivaGRPOTrainer`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor

from diva_engine import compute_advantage
from diva_engine.records import UserError

try:
    from trl import GRPOTrainer
    from trl.trainer.utils import RepeatSampler
except ImportError as error:
    raise ImportError("diva_engine.integrations.trl needs trl: pip install 'diva-engine[trl]'") from error

COLUMNS = QUESTION, DIFFICULTY, ENTROPY = "question_id", "difficulty", "visual_entropy"  # of the training data


class DivaGRPOTrainer(GRPOTrainer):
    """A GRPOTrainer whose advantages are `diva_engine.compute_advantage`'s; all else is TRL's.

    A row of the training data is a prompt. Rows of equal `question_id` are variants of one question, and `difficulty`
    is the level of the row's variant: diva needs both. They are drawn together, so that a generation batch holds whole
    questions where every question has as many rows and the batch's prompts are a multiple of them; the metric
    `prompts_per_question` shows it. durian reads `visual_entropy`, in nats, NaN or null without a picture.

    `scale_rewards` is without effect. Completions that no reward function scored get 0 and enter no statistic.
    Evaluation keeps TRL's own advantages.
    """

    def __init__(
        self,
        *args: Any,
        algorithm: str = "diva",
        preset: str = "paper",
        advantage_settings: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """TRL's arguments, and compute_advantage's `algorithm`, `preset` and settings."""
        super().__init__(*args, **kwargs)
        self.algorithm, self.preset = algorithm, preset
        self.advantage_settings = dict(advantage_settings or {})
        if self.multi_objective_aggregation != "sum_then_normalize":
            raise UserError("DivaGRPOTrainer sums rewards; set multi_objective_aggregation='sum_then_normalize'")
        columns = self.train_dataset.column_names
        if algorithm == "diva" and columns is not None and QUESTION not in columns:
            raise UserError(f"the training data have no column {QUESTION}, which algorithm='diva' groups rows by")

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        dataset = self.train_dataset if dataset is None else dataset
        sampler = super()._get_train_sampler(dataset)
        if QUESTION not in dataset.column_names:
            return sampler
        return QuestionSampler(dataset[QUESTION], sampler)

    def _calculate_rewards(
        self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Sequence[Sequence[int]]
    ) -> Tensor:
        rewards_per_func: Tensor = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        self._scored = _Scored(
            rewards_per_func,
            columns={name: gather_object([row.get(name) for row in inputs]) for name in COLUMNS},
            lengths=gather_object([len(token_ids) for token_ids in completion_ids_list]),
        )
        return rewards_per_func

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        if not self.model.training:
            return output
        advantages = self._advantages_of_all_processes(output)
        num_here = len(output["advantages"])
        first = self.accelerator.process_index * num_here
        output["advantages"] = advantages[first : first + num_here]

        logged = self._logs["advantages"]
        for _ in range(min(len(logged), len(advantages))):
            logged.pop()  # those that TRL computed
        logged.extend(advantages.tolist())
        return output

    def _advantages_of_all_processes(self, output: Mapping[str, Any]) -> Tensor:
        """[N] of the generation batch. Like TRL, takes `num_generations` rows in a row for one prompt."""
        scored = self._scored
        weights = self.reward_weights.to(scored.rewards_per_func.device)
        rewards = (scored.rewards_per_func * weights).nansum(dim=1)
        is_scored = ~scored.rewards_per_func.isnan().all(dim=1)
        kept = is_scored.nonzero()[:, 0].tolist()
        given: dict[str, list[Any] | None] = {
            "prompt_ids": [place // self.num_generations for place in range(len(rewards))],
            "lengths": scored.lengths,
            "logprobs": self._summed_logprobs(output),
            "question_ids": scored.column(QUESTION),
            "difficulty": scored.column(DIFFICULTY),
            "visual_entropy": scored.column(ENTROPY, otherwise=float("nan")),
        }
        advantages = torch.zeros_like(rewards)
        advantages[is_scored] = compute_advantage(
            self.algorithm,
            rewards[is_scored],
            preset=self.preset,
            max_length=self.max_completion_length,
            **{name: [values[place] for place in kept] for name, values in given.items() if values is not None},
            **self.advantage_settings,
        )
        if given["question_ids"]:
            num_prompts = len(rewards) / self.num_generations
            self._metrics["train"]["prompts_per_question"].append(num_prompts / len(set(given["question_ids"])))
        return advantages

    def _summed_logprobs(self, output: Mapping[str, Any]) -> list[float] | None:
        """[N] as sampled, where TRL has them: by vLLM, or by the policy before its update."""
        for name in ("sampling_per_token_logps", "old_per_token_logps"):
            if name in output:
                summed = (output[name] * output["completion_mask"]).sum(dim=1)
                return list(self.accelerator.gather(summed).tolist())
        return None


@dataclass(frozen=True)
class _Scored:
    """What the rewards were given for: the generation batch of all processes."""

    rewards_per_func: Tensor  # [N, number of reward functions]; NaN where one gave none
    columns: Mapping[str, list[Any]]  # [N] each; None where a row lacks it
    lengths: list[int]  # [N] tokens

    def column(self, name: str, otherwise: float | None = None) -> list[Any] | None:
        values = self.columns[name]
        if all(value is None for value in values):
            return None
        return [otherwise if value is None else value for value in values]


class QuestionSampler(RepeatSampler):
    """TRL's order of rows, with a question's rows behind each other; whole questions are shuffled."""

    def __init__(self, question_ids: Sequence[Any], like: RepeatSampler) -> None:
        super().__init__(question_ids, like.mini_repeat_count, like.batch_size, like.repeat_count, shuffle=False)
        self.generator = torch.Generator().manual_seed(like.seed or 0) if like.shuffle else None
        self.rows_of: dict[Any, list[int]] = {}
        for row, question in enumerate(question_ids):
            self.rows_of.setdefault(question, []).append(row)

    def __iter__(self) -> Iterator[int]:
        questions = list(self.rows_of.values())
        if self.generator is not None:
            order = torch.randperm(len(questions), generator=self.generator).tolist()
            questions = [questions[place] for place in order]
        rows = [row for question in questions for row in question]
        for place in super().__iter__():
            yield rows[place]
