"""An update sees each credited token once, whatever the cut into micro-batches, and divides by the whole step."""

from dataclasses import replace

import pytest
import torch

from diva_engine.algorithm.losses import clipped_policy_loss
from diva_engine.policy.model import load_policy
from diva_engine.policy.packing import row_length
from diva_engine.records import Credit, Problem, Request, Rollout, Score, ScoredGroup, Variant
from diva_engine.settings import build_config
from diva_engine.trainer.batches import make_example, split_batches, with_short_trees
from diva_engine.trainer.master_weights import MasterWeights
from diva_engine.trainer.update import Updater, learning_rate_factor
from python_tests.models import build_tiny_model
from python_tests.prompts import make_prompt, random_image
from python_tests.scored import ANY_LOGPROBS, PROMPT, gradients_in_steps, make_group


def credit_of(groups, *advantages, prefix_weight=None):
    return Credit(torch.tensor(advantages), torch.tensor(prefix_weight or [0.0] * len(groups)))


def test_rollouts_without_credit_have_no_branch_but_count_in_the_divisor():
    groups = [make_group([1.0, 0.0, 0.0], lengths=[3, 4, 5]), make_group([0.0, 0.0], "b", lengths=[6, 7])]
    (batch,) = split_batches(groups, credit_of(groups, 1.0, 0.0, -0.5, 0.0, 0.0), prompts_per_batch=2)
    (example,) = batch.examples
    assert [len(branch) for branch in example.tree.branches] == [3, 5]
    assert example.advantage.tolist() == [1.0] * 3 + [-0.5] * 5
    assert (batch.num_tokens, batch.num_rollouts) == (25, 5)
    assert batch.divisor("token", 100) == 25
    assert batch.divisor("seq", 100) == 5
    assert batch.divisor("constant", 100) == 500


def test_prompts_are_cut_into_optimizer_steps_in_order():
    groups = [make_group([1.0, 0.0], name) for name in "abc"]
    batches = split_batches(groups, credit_of(groups, *[1.0, -1.0] * 3), prompts_per_batch=2)
    assert [len(batch.examples) for batch in batches] == [2, 1]
    assert [batch.num_rollouts for batch in batches] == [4, 2]


CUTS = {
    "even": ("2222", 2, [2, 2]),
    "ragged": ("222", 2, [2, 1]),
    "a prefix goes with its question": ("20202", 1, [2, 2, 1]),
    "a prefix does not count": ("20222", 2, [3, 2]),
    "prefixes alone": ("00", 1, [2]),
    "nothing": ("", 3, [0]),
    "more than there are": ("22", 9, [2]),
}


@pytest.mark.parametrize(("rollouts", "prompts_per_batch", "sizes"), CUTS.values(), ids=CUTS)
def test_a_prefix_without_rollouts_is_never_an_optimizer_step_of_its_own(rollouts, prompts_per_batch, sizes):
    prefixed = replace(PROMPT, prefix_ids=(7, 8))
    groups = [make_group([1.0, 0.0][: int(n)], f"q{i}", prompt=prefixed) for i, n in enumerate(rollouts)]
    advantages = [1.0] * sum(map(int, rollouts))
    credit = credit_of(groups, *advantages, prefix_weight=[1.0] * len(groups))
    batches = split_batches(groups, credit, prompts_per_batch)
    assert [len(batch.examples) for batch in batches] == sizes


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    build_tiny_model("qwen2_5_vl", folder)
    return load_policy(folder)


@pytest.fixture
def groups(policy):
    """Two prompts, the second with a forced beginning of the answer; ragged answers."""
    made = []
    for number, prefix in enumerate(("", "ab")):
        image = random_image(56, 56, seed=number)
        prompt = make_prompt(policy.model, policy.processor, "How many?", [image], prefix=prefix)
        group = make_group([1.0, 0.0, 1.0], f"q{number}", lengths=[3, 5, 2], prompt=prompt)
        made.append(group)
    return made


def gradient_after(policy, groups, credit, **settings):
    config = build_config({"worker.actor.optim.lr": 0.0, "worker.actor.max_grad_norm": 1e9, **ANY_LOGPROBS, **settings})
    updater = Updater(policy, clipped_policy_loss, config, num_steps=1)
    noted = gradients_in_steps(updater)
    metrics = updater.update(groups, credit)
    assert all(p.grad is None for p in (*updater.weights.masters, *policy.model.parameters())), "memory for rollouts"
    return torch.cat([gradient.flatten() for gradient in noted[0].values()]), metrics


def test_micro_batches_add_up_to_the_whole(policy, groups):
    credit = credit_of(groups, 1.0, -0.5, 0.25, 0.5, -1.0, 0.75, prefix_weight=[0.0, 2.0])
    whole, metrics = gradient_after(policy, groups, credit)
    cut, metrics_cut = gradient_after(policy, groups, credit, **{"worker.actor.micro_batch_tokens": 1})
    torch.testing.assert_close(whole, cut, rtol=1e-5, atol=5e-7)
    for name in ("actor/loss", "actor/entropy", "actor/ratio", "actor/grad_norm"):
        assert metrics[name] == pytest.approx(metrics_cut[name], rel=1e-5, abs=1e-7), name


def test_the_loss_is_minus_advantage_over_all_sampled_tokens(policy, groups):
    """At the first update the ratio is 1, so the loss is -sum of the tokens' credit / tokens sampled in the step."""
    credit = credit_of(groups, 1.0, -0.5, 0.0, 0.0, 0.0, 0.0, prefix_weight=[0.0, 2.0])
    _, metrics = gradient_after(policy, groups, credit)
    # One group's answers have 3, 5 and 2 tokens; the trained prefix of the second has 2 tokens of weight 2.
    assert metrics["actor/loss"] == pytest.approx(-(3 * 1.0 - 5 * 0.5 + 2 * 2.0) / 20, rel=1e-5)
    assert metrics["actor/ratio"] == 1.0
    assert metrics["actor/trained_rollouts"] == 2.0


def test_a_step_without_credit_changes_nothing(policy, groups):
    before = [p.detach().clone() for p in policy.model.parameters()]
    updater = Updater(policy, clipped_policy_loss, build_config({"worker.actor.optim.lr": 0.1}), num_steps=1)
    metrics = updater.update(groups, credit_of(groups, *[0.0] * 6))
    assert (metrics["actor/loss"], metrics["actor/grad_norm"]) == (0.0, 0.0)
    assert all(torch.equal(old, new) for old, new in zip(before, policy.model.parameters(), strict=True))


def test_several_updates_take_the_ratio_against_the_weights_before_the_first(policy, groups):
    credit = credit_of(groups, 1.0, -0.5, 0.25, 0.5, -1.0, 0.75)
    settings = {"worker.actor.ppo_epochs": 2, "worker.actor.optim.lr": 1e-3}
    weights = {name: value.clone() for name, value in policy.model.state_dict().items()}
    updater = Updater(policy, clipped_policy_loss, build_config(settings | ANY_LOGPROBS), num_steps=1)
    metrics = updater.update(groups, credit)
    policy.model.load_state_dict(weights)
    # First pass: 1 exactly. Second pass: moved by the first.
    assert metrics["actor/ratio"] != 1.0
    assert 0 < metrics["actor/kl_old"] < 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_small_steps_add_up_in_any_type(dtype):
    """Ten steps of 1e-6 by AdamW, whose first steps have the size of the learning rate."""
    weight = torch.nn.Parameter(torch.full((4,), 0.02, dtype=dtype))
    start = weight.detach().float().clone()
    weights = MasterWeights([weight])
    optimizer = torch.optim.AdamW(weights.masters, lr=1e-6, weight_decay=0.0)
    for _ in range(10):
        optimizer.zero_grad()
        for half in (0.25, 0.75):  # two micro-batches
            (half * weight).sum().backward()
            weights.take_gradients()
        assert weights.masters[0].grad.tolist() == [1.0] * 4
        optimizer.step()
        weights.write_back()
    torch.testing.assert_close(start - weights.masters[0].detach(), torch.full((4,), 1e-5), rtol=2e-3, atol=0)
    assert torch.equal(weight, weights.masters[0].to(dtype))


def test_long_trees_are_split_and_no_token_is_lost(groups):
    credit = credit_of(groups, 1.0, -0.5, 0.25, 0.5, -1.0, 0.75, prefix_weight=[0.0, 2.0])
    (whole,) = split_batches(groups, credit, prompts_per_batch=2)
    longest = max(row_length(replace(e.tree, branches=(b,))) for e in whole.examples for b in e.tree.branches)
    short = with_short_trees(whole, longest)
    assert len(short.examples) > len(whole.examples) == 2
    assert all(row_length(example.tree) <= longest for example in short.examples)
    for field in ("advantage", "sampler_logprob"):
        joined = [torch.cat([getattr(example, field) for example in batch.examples]) for batch in (whole, short)]
        torch.testing.assert_close(*joined, rtol=0, atol=0, equal_nan=True)
    assert (short.num_tokens, short.num_rollouts) == (whole.num_tokens, whole.num_rollouts)


SCHEDULES = {
    "constant": ("constant", 0, [1.0, 1.0, 1.0, 1.0]),
    "warm-up": ("constant", 2, [0.5, 1.0, 1.0, 1.0]),
    "linear": ("linear", 0, [1.0, 0.75, 0.5, 0.25]),
    "cosine": ("cosine", 0, [1.0, 0.8535534, 0.5, 0.1464466]),
}


@pytest.mark.parametrize(("kind", "warmup", "expected"), SCHEDULES.values(), ids=SCHEDULES)
def test_learning_rate_schedules(kind, warmup, expected):
    optim = "worker.actor.optim"
    config = build_config({f"{optim}.lr_scheduler_type": kind, f"{optim}.lr_warmup_steps": warmup})
    factor = learning_rate_factor(config, num_steps=4)
    assert [factor(step) for step in range(4)] == pytest.approx(expected, abs=1e-6)


def test_an_empty_answer_is_never_a_branch():
    problem = Problem(id="q", text="?", answer="1")
    request = Request(Variant(problem, 0, "original", "?", 5.0), 1)
    rollout, score = Rollout((), (), "stop", "", 0), Score(1.0, 1.0, 1.0)
    group = ScoredGroup(request, make_group([0.0]).prompt, (rollout,), (score,))
    assert make_example(group, torch.tensor([1.0]), 0.0) is None
