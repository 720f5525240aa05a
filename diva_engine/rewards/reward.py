"""The reward of an answer: 0.9 for being right and 0.1 for its form, or a function of the user's own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from diva_engine.records import Problem, Score, UserError
from diva_engine.rewards.answers import compare
from diva_engine.rewards.custom import CustomReward, OnFailure, RewardType
from diva_engine.rewards.extraction import AnswerTag, extract_answer
from diva_engine.rewards.format import DEFAULT_FORMAT_PATTERN, FormatPattern, tighten_tags
from diva_engine.rewards.normalization import read_answer
from diva_engine.rewards.pool import Outcome, WorkerPool

MAX_REMEMBERED = 200_000  # verdicts of algebra kept, so that no pair is asked twice


class AnswerReward:
    """Accuracy of the final answer and form of the response, each 0 or 1, weighted.

    Ordinary answers are judged here; only what needs algebra (and a format pattern of one's own) goes to the worker
    processes, which start when first needed. An answer that exceeds its time counts as wrong.
    """

    scores_alone = True

    def __init__(
        self,
        pool: WorkerPool,
        *,
        accuracy_weight: float,
        format_weight: float,
        format_pattern: FormatPattern,
        answer_tag: AnswerTag,
    ) -> None:
        self._pool = pool
        self._accuracy_weight = accuracy_weight
        self._format_weight = format_weight
        self._format = format_pattern
        self._tag: AnswerTag = answer_tag
        self._remembered: dict[tuple[str, str], Outcome] = {}
        self._counts: Counter[str] = Counter()

    def __call__(
        self, responses: Sequence[str], problems: Sequence[Problem], response_lengths: Sequence[int] | None = None
    ) -> list[Score]:
        """Score `responses[i]` against `problems[i].answer`. Lengths are not needed here."""
        accuracies = self._accuracies(responses, problems)
        formats = self._formats([tighten_tags(response) for response in responses])
        return [
            Score(
                reward=self._accuracy_weight * accuracy + self._format_weight * form,
                accuracy=float(accuracy),
                format=float(form),
            )
            for accuracy, form in zip(accuracies, formats, strict=True)
        ]

    def take_counters(self) -> dict[str, int]:
        """Since the last call: answers that only algebra could judge, refused as too costly, out of time, failed.

        An answer counts whether or not its verdict was remembered: a resumed run remembers none.
        """
        counts, self._counts = self._counts, Counter()
        return {"algebra": counts["algebra"], "refused": counts["refused"], "timeouts": counts["timeout"],
                "errors": counts["raised"] + counts["died"]}  # fmt: skip

    def close(self) -> None:
        self._pool.close()

    def _accuracies(self, responses: Sequence[str], problems: Sequence[Problem]) -> list[bool]:
        answers = [extract_answer(response, self._tag) for response in responses]
        pairs = [(answer or "", problem.answer) for answer, problem in zip(answers, problems, strict=True)]
        verdicts = [compare(answer, truth) for answer, truth in pairs]
        self._counts["refused"] += verdicts.count("refused")
        open_pairs = [pair for pair, verdict in zip(pairs, verdicts, strict=True) if verdict == "ask"]
        judged = self._ask_algebra(list(dict.fromkeys(open_pairs)))
        self._counts["algebra"] += len(open_pairs)
        self._counts.update(judged[pair].failure for pair in open_pairs)
        return [
            bool(judged[pair].value) if verdict == "ask" else verdict == "right"
            for pair, verdict in zip(pairs, verdicts, strict=True)
        ]

    def _ask_algebra(self, pairs: Sequence[tuple[str, str]]) -> dict[tuple[str, str], Outcome]:
        """Whether the two of each pair are equal. Verdicts are remembered; a pair that ran out of time (it may
        have stood behind costly ones) is wrong for now and asked again the next time."""
        judged = {pair: self._remembered[pair] for pair in pairs if pair in self._remembered}
        pairs = [pair for pair in pairs if pair not in judged]
        tasks = [["equal", read_answer(answer).latex, read_answer(truth).latex] for answer, truth in pairs]
        for pair, outcome in zip(pairs, self._pool.run(tasks), strict=True):
            judged[pair] = outcome
            if outcome.failure not in ("timeout", "died"):
                self._remembered[pair] = outcome
        if len(self._remembered) > MAX_REMEMBERED:
            self._remembered = {pair: self._remembered[pair] for pair in list(self._remembered)[MAX_REMEMBERED // 2 :]}
        return judged

    def _formats(self, responses: Sequence[str]) -> list[bool]:
        if not self._format.needs_worker:
            return [self._format.matches(response) for response in responses]
        outcomes = self._pool.run([["match", self._format.pattern, response] for response in responses])
        self._counts.update(outcome.failure for outcome in outcomes)
        return [bool(outcome.value) for outcome in outcomes]


def build_reward(
    *,
    accuracy_weight: float = 0.9,
    format_weight: float = 0.1,
    format_pattern: str = "",
    answer_tag: AnswerTag = "boxed",
    time_limit_s: float = 5.0,
    batch_time_limit_s: float = 30.0,
    num_workers: int = 2,
    memory_limit_mb: int = 4096,
    reward_function: str | None = None,
    reward_function_kwargs: Mapping[str, Any] | None = None,
    reward_type: RewardType = "auto",
    on_failure: OnFailure = "stop",
    failed_score: float = 0.0,
) -> AnswerReward | CustomReward:
    """A `records.RewardFunction` with `close()` and `take_counters()`.

    An empty `format_pattern` is EasyR1's: <think>...</think>...\\boxed{...}. `time_limit_s` bounds one answer,
    `batch_time_limit_s` one call; `memory_limit_mb` (0: no limit) one worker's address space. With `reward_function`
    ("path.py:function") the user's function scores; an answer on which it fails raises RewardError or, with
    `on_failure="score"`, gets `failed_score`. Raises UserError for a setting or a file that cannot be used.
    """
    _check("answer_tag", answer_tag in get_args(AnswerTag), answer_tag, "boxed, answer or any")
    _check("reward_type", reward_type in get_args(RewardType), reward_type, "auto, batch, sequential or completions")
    _check("on_failure", on_failure in get_args(OnFailure), on_failure, "stop or score")
    _check("time_limit_s", time_limit_s > 0, time_limit_s, "a number of seconds above 0")
    _check("batch_time_limit_s", batch_time_limit_s > 0, batch_time_limit_s, "a number of seconds above 0")
    _check("num_workers", num_workers >= 1, num_workers, "at least 1")
    _check("memory_limit_mb", memory_limit_mb == 0 or memory_limit_mb >= 256, memory_limit_mb, "0 or at least 256")
    pattern = FormatPattern(format_pattern or DEFAULT_FORMAT_PATTERN)
    if reward_function:
        return CustomReward(
            reward_function,
            reward_function_kwargs or {},
            reward_type=reward_type,
            failed_score=failed_score if on_failure == "score" else None,
            format_pattern=pattern,
            time_limit_s=time_limit_s,
            batch_time_limit_s=batch_time_limit_s,
            num_workers=num_workers,
            memory_limit_mb=memory_limit_mb,
        )
    pool = WorkerPool(("verifier",), time_limit_s, batch_time_limit_s, num_workers, memory_limit_mb)
    return AnswerReward(
        pool,
        accuracy_weight=accuracy_weight,
        format_weight=format_weight,
        format_pattern=pattern,
        answer_tag=answer_tag,
    )


def _check(setting: str, is_valid: bool, value: object, wanted: str) -> None:
    if not is_valid:
        raise UserError(f"worker.reward.{setting} is {value!r}; it must be {wanted}")
