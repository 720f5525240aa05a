"""The second family of questions: sums in words from reasoning-gym, their lessons, their base and their reward."""

import random
import zlib
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from bench.learn import chains, paces, sweeps
from bench.learn.bases import BASES, CHAINS, CHAINS_HURRIED
from bench.learn.chains import TOTALS, Chain, draw_chain, to_problem
from bench.learn.methods import COMMON
from bench.learn.regimes import REGIMES, held_out_problems, train_problems
from bench.learn.rewards import DerivationReward
from bench.learn.sweep import Folder
from diva_engine.algorithm.variants import hinted
from diva_engine.data.prompts import PromptEncoder
from diva_engine.demo.lessons import Lesson
from diva_engine.demo.model import make_model, make_tokenizer
from diva_engine.demo.warmup import NO_LABEL, Collator, warm_up
from diva_engine.records import Processor
from diva_engine.settings import build_config

REGIME = REGIMES["chains"]
QUESTION = "State the final answer to the following arithmetic problem: {} ="


@pytest.mark.parametrize("level", [2, 3, 5, 7, 8])
def test_a_chain_is_a_one_digit_sum_of_its_level_that_stays_within_the_totals(level):
    draw = random.Random(level)
    for _ in range(40):
        chain = draw_chain(level, draw)
        words = chain.expression.split()
        assert chain.level == level == len(words[::2])
        assert all(len(term) == 1 for term in words[::2])
        assert set(words[1::2]) <= {"+", "-"}
        assert chain.answer == str(eval(chain.expression))
        assert all(total in TOTALS for total in chain.totals)
        assert [int(step.split()[-2]) for step in chain.steps] == chain.totals[1:]


def test_steps_and_wordings_of_one_chain():
    problem = to_problem(Chain("4 + 3 - 0 - 2"), "q")
    assert problem.steps == ("4 + 3 = 7 ;", "- 0 = 7 ;", "- 2 = 5 ;")
    assert problem.extra["solution"] == "<think> 4 + 3 = 7 ; - 0 = 7 ; - 2 = 5 ; </think> \\boxed{ 5 }"
    assert (problem.text, problem.answer, problem.images) == (QUESTION.format("4 + 3 - 0 - 2"), "5", ())
    assert len(set(problem.paraphrases)) == 3
    assert all(" 4 + 3 - 0 - 2 " in text for text in problem.paraphrases)
    assert problem.difficulty is None, "the methods are not told the level"


def test_the_first_wording_is_the_packages_own():
    from reasoning_gym.factory import create_dataset

    entry = create_dataset("chain_sum", size=1, seed=1, min_terms=4, max_terms=4, min_digits=1, max_digits=1)[0]
    chain = Chain(entry["metadata"]["expression"])
    assert (chain.wordings[0], chain.answer) == (entry["question"], entry["answer"])


def test_the_regime_has_equally_many_questions_of_each_level():
    assert Counter(p.extra["level"] for p in train_problems(REGIME, seed=3)) == dict.fromkeys(range(2, 8), 16)
    assert Counter(p.extra["level"] for p in held_out_problems(REGIME)) == dict.fromkeys(range(2, 8), 32)
    assert set(REGIME.hard) == {6, 7}


def test_the_held_out_questions_are_fixed():
    """Results of another draw could not be held against those in docs/results.md."""
    texts = [problem.text for problem in held_out_problems(REGIME)]
    assert (len(texts), zlib.crc32("\n".join(texts).encode())) == (192, 69688494)


def test_no_held_out_question_is_trained_or_taught():
    held_out = {problem.text for problem in held_out_problems(REGIME)}
    seeds = [{problem.text for problem in train_problems(REGIME, seed)} for seed in range(3)]
    assert not held_out & set().union(*seeds)
    assert len(seeds[0] & seeds[1]) < 20  # only 200 chains have two terms
    draw = random.Random(0)
    taught = {CHAINS.draw(draw).question for _ in range(2000)}
    assert len(taught) > 1000
    assert not held_out & taught


def lessons(count=400, **settings):
    draw = random.Random(1)
    mixture = replace(CHAINS_HURRIED, **{"levels": {7: 1}, "begun": 0.0, "noise": 0.0, **settings})
    return [mixture.draw(draw) for _ in range(count)]


def test_a_hurried_teacher_mostly_stops_after_three_terms_unless_the_answer_was_begun():
    stops = Counter(lesson.answer.count(";") + 1 for lesson in lessons(patience=0.25))
    assert stops[3] / 400 == pytest.approx(0.75, abs=0.06)
    assert stops[4] / 400 == pytest.approx(0.75 * 0.25, abs=0.06)
    assert {lesson.answer.count(";") for lesson in lessons(levels={2: 1}, patience=0.25)} == {1}
    begun = lessons(begun=1.0, begun_levels={7: 1})
    assert {(lesson.begun.count(";"), lesson.answer.count(";")) for lesson in begun} == {(5, 1)}


def test_a_teacher_misreckons_one_total_of_four_and_never_one_that_was_begun():
    def right(lesson):
        words = f"{lesson.begun} {lesson.answer}".split()
        totals = [int(total) for total, end in pairwise(words) if end == ";"]
        assert words[-2] == str(totals[-1]), "the boxed number is the last total, right or wrong"
        expression = " ".join(word for word in lesson.question.split() if word in "+-" or word.isdigit())
        return [total == true for total, true in zip(totals, Chain(expression.split(" =")[0]).totals[1:], strict=False)]

    first = [right(lesson)[0] for lesson in lessons(2000, noise=0.25)]
    assert sum(first) / 2000 == pytest.approx(0.75 + 0.25 / len(TOTALS), abs=0.03)
    assert all(all(right(lesson)) for lesson in lessons(noise=1.0, begun=1.0, begun_levels={6: 1}))


def encoder(tokenizer):
    return PromptEncoder(Processor(tokenizer, None, None, merge_size=2, banned_ids=(), stop_ids=()))


def test_a_word_is_a_token_and_lessons_stand_as_the_trainer_poses_them():
    tokenizer = make_tokenizer(chains.vocabulary())
    assert tokenizer.convert_tokens_to_ids(chains.vocabulary()) == list(range(len(tokenizer)))
    chain = draw_chain(7, random.Random(3))
    problem = to_problem(chain, "q")
    assert tokenizer.decode(tokenizer(chain.solution)["input_ids"]) == chain.solution
    for text in (chain.solution, *chain.wordings):
        assert tokenizer.unk_token_id not in tokenizer(text)["input_ids"], text
    variant = hinted(problem, 5.0, 5, build_config(dict(COMMON)).hint)
    prompt = encoder(tokenizer).encode(variant, key=0)
    batch = Collator(tokenizer)([Lesson(problem.text, "", image=None, shown=(), begun=variant.answer_prefix)])
    assert batch.input_ids[0].tolist() == [*prompt.token_ids, *prompt.prefix_ids, tokenizer.eos_token_id]
    assert (batch.pixel_values, batch.image_grid_thw, len(batch.shown)) == (None, None, 0)


def test_the_labels_are_the_answer_and_its_end():
    tokenizer = make_tokenizer(chains.vocabulary())
    taught = lessons(8, begun=0.5)
    batch = Collator(tokenizer)(taught)
    for lesson, labels in zip(taught, batch.labels, strict=True):
        assert tokenizer.decode(labels[labels != NO_LABEL]) == f"{lesson.answer} <|im_end|>"


def test_the_base_is_taught_alike_every_time():
    torch.set_num_threads(1)
    weights = []
    for seed in (0, 0, 1):
        plan = replace(BASES["chains_trunk"].plan, steps=3, seed=seed)
        tokenizer = make_tokenizer(BASES["chains_trunk"].words)
        model = make_model(tokenizer, 0)
        warm_up(model, tokenizer, plan, lambda step, loss: None)
        weights.append(model.lm_head.weight.detach().clone())
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_rewards_of_hand_written_answers():
    problem = to_problem(Chain("4 + 3 - 2"), "q")
    answers = {
        "<think> 4 + 3 = 7 ; - 2 = 5 ; </think> \\boxed{ 5 }": [(1, 1, 1.0), (1, 1, 1.0)],
        "<think> 4 + 3 = 8 ; - 2 = 5 ; </think> \\boxed{ 5 }": [(0, 1, 0.1), (1, 1, 1.0)],
        "<think> 4 + 3 = 7 ; </think> \\boxed{ 7 }": [(0, 1, 0.1), (0, 1, 0.1)],
        "<think> 4 + 3 = 7 ; - 2 = 5 ; </think> 5": [(0, 0, 0.0), (0, 0, 0.0)],
    }
    for number, answer_only in enumerate((False, True)):
        scores = DerivationReward(answer_only)(list(answers), [problem] * 4, [9] * 4)
        assert [(s.accuracy, s.format, round(s.reward, 6)) for s in scores] == [row[number] for row in answers.values()]


def test_the_second_family_has_its_own_paces_and_stands_in_main_alone(tmp_path):
    reported = [job for job in sweeps.jobs_of("main") if job.regime == "chains"]
    assert {(job.method, job.seed) for job in reported} == {
        (method, seed) for method in paces.MAIN for seed in sweeps.REPORTED_SEEDS
    }
    assert all("chains" not in {job.regime for job in sweeps.jobs_of(name)} for name in sweeps.SWEEPS if name != "main")
    tried = [job for job in paces.choosing_jobs((*paces.MAIN, "dapo")) if job.regime == "chains"]
    assert {(job.method, paces.pace_of(job)) for job in tried} == {
        (m, pace) for m in paces.MAIN for pace in paces.PACES
    }
    folder, targets = Folder(tmp_path), sweeps.read_targets()
    for job in (job for job in tried if job.method == "grpo"):
        end = 0.9 if paces.pace_of(job) == paces.PACES[-1] else 0.1
        points = [{"rollouts": 640 * i, "all": value, "hard": value} for i, value in enumerate((0.0, end))]
        folder.write(job, {"job": vars(job), "points": points})
    chosen = paces.with_pace(reported[0], folder, targets)
    assert (chosen.method, paces.pace_of(chosen)) == ("grpo", paces.Pace(128, 2.5e-5, per_update=4))
