"""From requests to scored groups, stage by stage; held-out accuracy by column; metrics of a step."""

from dataclasses import dataclass, field

import pytest

from diva_engine.algorithm.variants import original
from diva_engine.records import Problem, Request, Rollout, Sampling, Score, UserError
from diva_engine.trainer.collect import Collector
from diva_engine.trainer.step_metrics import rollout_metrics
from diva_engine.trainer.stopwatch import Stopwatch
from diva_engine.trainer.validate import validate
from python_tests.scored import PROMPT, make_group


class Encoder:
    """Poses every variant but those of question "unreadable"."""

    def encode(self, variant, key):
        if variant.problem.id == "unreadable":
            raise UserError("train.parquet:3: the image does not decode")
        return PROMPT


@dataclass
class Engine:
    """Answers with the seed it was given, so that a test can see which seeds were asked."""

    asked: list = field(default_factory=list)

    def generate(self, jobs, sampling, on_answered=None):
        self.asked.append([job.seeds for job in jobs])
        return [[Rollout((seed % 100,), (-0.5,), "stop", str(seed), 0) for seed in job.seeds] for job in jobs]

    def update_weights(self, policy_version, weights):
        pass

    def sleep(self):
        pass

    def close(self):
        pass


class Reward:
    """Right where the answer is a multiple of 3."""

    scores_alone = True

    def __call__(self, responses, problems, lengths):
        accuracies = [float(int(text) % 3 == 0) for text in responses]
        return [Score(0.9 * a + 0.1, a, 1.0, {"bonus": a}) for a in accuracies]


def collector(engine=None, **options):
    return Collector(Encoder(), engine or Engine(), Reward(), Sampling(), seed=1, **options)


def problem(name, level=None):
    return Problem(id=name, text="?", answer="1", difficulty=level)


def test_a_plan_of_two_stages_is_answered_until_it_returns():
    def plan():
        first = yield [Request(original(problem("a"), 5.0), 2), Request(original(problem("b"), 5.0), 3)]
        second = yield [Request(original(problem("a"), 5.0), 4, first_sample=2)]
        return [*first, *second]

    engine = Engine()
    collected = collector(engine).collect(plan(), step=0, stopwatch=Stopwatch())
    assert [len(group.rollouts) for group in collected.trained] == [2, 3, 4]
    assert collected.asked == collected.trained
    seeds = [seed for stage in engine.asked for job in stage for seed in job]
    assert len(set(seeds)) == 9, "a second stage draws anew"


def test_seeds_depend_on_step_question_and_sample_only():
    def seeds(names, step):
        engine = Engine()
        collector(engine).ask([Request(original(problem(name), 5.0), 2) for name in names], step, Stopwatch())
        return dict(zip(names, engine.asked[0], strict=True))

    assert seeds("ab", 0)["b"] == seeds("ba", 0)["b"] == seeds("b", 0)["b"]
    assert seeds("b", 0) != seeds("b", 1)


def test_a_prompt_that_cannot_be_posed_is_skipped_or_stops():
    requests = [Request(original(problem(name), 5.0), 1) for name in ("a", "unreadable", "b")]
    lenient = collector(on_bad_row="skip")
    groups = lenient.ask(requests, 0, Stopwatch())
    assert [group.variant.problem.id for group in groups] == ["a", "b"]
    assert lenient.skipped == ["original variant of unreadable: train.parquet:3: the image does not decode"]
    with pytest.raises(UserError, match=r"train.parquet:3"):
        collector().ask(requests, 0, Stopwatch())


def test_a_request_without_rollouts_is_posed_but_neither_generated_nor_counted():
    def plan():
        first = yield [Request(original(problem("a"), 5.0), 0), Request(original(problem("b"), 5.0), 2)]
        second = yield [Request(original(problem("c"), 5.0), 0)]
        return [*first, *second]

    engine = Engine()
    collected = collector(engine).collect(plan(), step=0, stopwatch=Stopwatch())
    assert [(g.variant.problem.id, len(g.rollouts)) for g in collected.trained] == [("a", 0), ("b", 2), ("c", 0)]
    assert [g.variant.problem.id for g in collected.asked] == ["b"]
    assert sum(len(stage) for stage in engine.asked) == 1


def test_held_out_accuracy_by_level():
    problems = [problem(str(i), level=float(i % 2)) for i in range(7)]
    result = validate(problems, collector(), batch_size=3)
    accuracies = [group.scores[0].accuracy for group in result.groups]
    assert [group.variant.problem.id for group in result.groups] == [str(i) for i in range(7)]
    assert result.accuracy == pytest.approx(sum(accuracies) / 7)
    assert result.accuracy_by("difficulty") == {"0": sum(accuracies[::2]) / 4, "1": sum(accuracies[1::2]) / 3}
    assert result.metrics("difficulty")["val/accuracy/difficulty=1"] == sum(accuracies[1::2]) / 3


def test_metrics_of_a_step():
    groups = [
        make_group([1.0, 1.0], "a", lengths=[3, 5]),
        make_group([0.1, 0.1], "b", index=0),
        make_group([0.1, 1.0], "b", index=1, kind="hint"),
        make_group([0.0, 0.1], "c"),
    ]
    metrics = rollout_metrics(groups)
    assert metrics["reward/mean"] == pytest.approx(3.4 / 8)
    assert metrics["reward/accuracy"] == pytest.approx(3 / 8)
    assert metrics["groups/dead"] == pytest.approx(2 / 4), "format alone does not make a group live"
    assert metrics["groups/solved"] == pytest.approx(1 / 4)
    assert metrics["questions/utilisation"] == pytest.approx(2 / 3), "rewards of a are equal, of b and c are not"
    assert metrics["accuracy/hint"] == 0.5
    assert metrics["response/length"] == pytest.approx((3 + 5 + 6 * 2) / 8)
    assert metrics["step/tokens"] == 20
