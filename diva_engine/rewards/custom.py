"""A reward of the user's own: `path.py:function`, with EasyR1's or TRL's interface, run in worker processes."""

from __future__ import annotations

import ast
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from diva_engine.records import Problem, Score, UserError
from diva_engine.rewards.format import FormatPattern, tighten_tags
from diva_engine.rewards.pool import Outcome, RewardError, WorkerPool

OnFailure = Literal["stop", "score"]
RewardType = Literal["auto", "batch", "sequential", "completions"]

RIGHT_FROM = 0.5  # an overall score from here on counts as right where the function gives no accuracy


def split_reward_function(setting: str) -> tuple[Path, str]:
    """(file, function) of `path.py:function`; the function is `main` where none is named, as in EasyR1.

    Raises UserError where the file or the function is missing. The file is read, not run.
    """
    path_text, _, function = setting.rpartition(":") if ":" in setting else (setting, "", "main")
    path = Path(path_text).expanduser()
    if not path.is_file():
        raise UserError(f"reward_function {setting!r}: there is no file {path}; write path/to/file.py:function")
    try:
        tree = ast.parse(path.read_bytes(), str(path))
    except OSError as error:
        raise UserError(f"reward_function {setting!r}: {path} cannot be read ({error.strerror})") from None
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UserError(f"reward_function {setting!r}: {path} is not valid Python: {error}") from None
    names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    names |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    names |= {alias.asname or alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)
              for alias in node.names}  # fmt: skip
    if function not in names and "*" not in names:
        defined = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
        raise UserError(f"reward_function {setting!r}: {path} has no function {function}; "
                        f"it has {', '.join(defined) or 'none'}")  # fmt: skip
    return path.resolve(), function


class CustomReward:
    """Scores with the user's function. Every failure is counted, and costs the item `failed_score` or stops the run.

    `failed_score` None: the first failure raises RewardError, naming function, item and mend.
    """

    def __init__(
        self,
        setting: str,
        kwargs: Mapping[str, Any],
        *,
        reward_type: RewardType,
        failed_score: float | None,
        format_pattern: FormatPattern,
        time_limit_s: float,
        batch_time_limit_s: float,
        num_workers: int,
        memory_limit_mb: int,
    ) -> None:
        path, function = split_reward_function(setting)
        self._name = f"{path.name}:{function}"
        self._failed_score = failed_score
        self._format = format_pattern
        self._counts: Counter[str] = Counter()
        self._batch_time_limit_s = batch_time_limit_s
        self._pool = WorkerPool(
            ("file", str(path), function, dict(kwargs), reward_type),
            time_limit_s=time_limit_s,
            batch_time_limit_s=batch_time_limit_s,
            num_workers=num_workers,
            memory_limit_mb=memory_limit_mb,
            name=f"reward function {self._name}",
        )
        self._is_sequential = self._pool.start() == "sequential"
        if not self._is_sequential:  # one call scores all answers
            self._pool.close()
            self._pool = WorkerPool(
                self._pool.load,
                time_limit_s=batch_time_limit_s,
                batch_time_limit_s=batch_time_limit_s,
                num_workers=1,
                memory_limit_mb=memory_limit_mb,
                name=self._pool.name,
            )

    @property
    def scores_alone(self) -> bool:
        """A function of one answer; one of a batch may compare its answers."""
        return self._is_sequential

    def __call__(
        self, responses: Sequence[str], problems: Sequence[Problem], response_lengths: Sequence[int] | None = None
    ) -> list[Score]:
        items = [_item(response, problem) for response, problem in zip(responses, problems, strict=True)]
        if response_lengths is not None:
            for item, length in zip(items, response_lengths, strict=True):
                item["response_length"] = int(length)
        results = self._one_by_one(items) if self._is_sequential else self._at_once(items)
        return [self._score(result, i, responses[i], problems[i]) for i, result in enumerate(results)]

    def take_counters(self) -> dict[str, int]:
        counts, self._counts = self._counts, Counter()
        return {"timeouts": counts["timeout"], "errors": counts["error"]}

    def close(self) -> None:
        self._pool.close()

    def _one_by_one(self, items: Sequence[Any]) -> list[Any]:
        return [_results_of(outcome, 1)[0] for outcome in self._pool.run([[item] for item in items])]

    def _at_once(self, items: Sequence[Any]) -> list[Any]:
        """One call for all items. Where it raises or dies, item by item, so that one bad item costs only itself."""
        if not items:
            return []
        start_s = time.monotonic()
        outcome = _checked(self._pool.run([list(items)])[0], len(items))
        if not outcome.failure:
            return list(outcome.value)
        blames_no_item = outcome.failure == "timeout" or "results for" in outcome.detail or len(items) == 1
        if blames_no_item or time.monotonic() - start_s > self._batch_time_limit_s / 2:
            return [_Failure(outcome, concerns_all=len(items) > 1)] * len(items)
        return self._one_by_one(items)

    def _score(self, result: Any, index: int, response: str, problem: Problem) -> Score:
        if isinstance(result, _Failure):
            return self._failed(result, index, problem)
        if not isinstance(result, dict):
            return self._failed(_Failure(Outcome(failure="raised", detail=str(result))), index, problem)
        overall = result["overall"]
        accuracy = result.get("accuracy", float(overall >= RIGHT_FROM))
        form = result.get("format")
        if form is None:
            form = 0.0 if self._format.needs_worker else float(self._format.matches(tighten_tags(response)))
        extra = {key: value for key, value in result.items() if key not in ("overall", "accuracy", "format")}
        return Score(reward=overall, accuracy=min(1.0, max(0.0, accuracy)), format=form, extra=extra)

    def _failed(self, failure: _Failure, index: int, problem: Problem) -> Score:
        self._counts["timeout" if failure.outcome.failure == "timeout" else "error"] += 1
        if self._failed_score is not None:
            return Score(reward=self._failed_score, accuracy=0.0, format=0.0)
        # Which answers share a call with a function of one answer depends on timing: no number in it names one.
        item = "an answer" if self._is_sequential else f"item {index}"
        place = "on the whole batch" if failure.concerns_all else f"on {item} (problem {problem.id})"
        mend = "mend the function, or set on_failure=score to give such answers failed_score and go on"
        if failure.outcome.failure == "timeout":
            mend = f"raise time_limit_s or batch_time_limit_s, {mend}"
        raise RewardError(f"reward function {self._name} failed {place}: {failure.outcome.detail}; {mend}")


class _Failure:
    """A result that is none."""

    def __init__(self, outcome: Outcome, concerns_all: bool = False) -> None:
        self.outcome = outcome
        self.concerns_all = concerns_all


def _results_of(outcome: Outcome, count: int) -> list[Any]:
    """One result an item, or its failure for each."""
    outcome = _checked(outcome, count)
    return [_Failure(outcome)] * count if outcome.failure else list(outcome.value)


def _checked(outcome: Outcome, count: int) -> Outcome:
    """The outcome, or a failure where a worker has sent what its own code never sends."""
    if outcome.failure or (
        isinstance(outcome.value, list) and len(outcome.value) == count and all(map(_is_result, outcome.value))
    ):
        return outcome
    return Outcome(failure="raised", detail="its worker process sent no scores")


def _is_result(result: object) -> bool:
    """Whether it is what worker.plain_numbers returns."""
    if not isinstance(result, dict):
        return isinstance(result, str)
    return "overall" in result and all(isinstance(v, float) and math.isfinite(v) for v in result.values())


def _item(response: str, problem: Problem) -> dict[str, Any]:
    """EasyR1's keys, and what else a function may want to know of the problem."""
    columns = {key: value for key, value in problem.extra.items() if isinstance(value, str | int | float | bool)}
    return columns | {
        "response": response,
        "ground_truth": problem.answer,
        "answer": problem.answer,
        "problem_id": problem.id,
        "question": problem.text,
        "difficulty": problem.difficulty,
    }
