"""An update meets numbers that are not finite and a lack of memory: nothing half done ever reaches the weights."""

import json
import math
import subprocess
import sys

import pytest
import torch

from diva_engine.algorithm.losses import clipped_policy_loss
from diva_engine.policy.model import load_policy
from diva_engine.records import Credit, UserError
from diva_engine.settings import build_config
from diva_engine.trainer.batches import split_batches
from diva_engine.trainer.faults import FaultLog, StepFailed
from diva_engine.trainer.gradient import GradientPass
from diva_engine.trainer.skipped_batches import KEPT, load_batch
from diva_engine.trainer.update import Updater
from python_tests.models import build_tiny_model
from python_tests.prompts import make_prompt, random_image
from python_tests.scored import ANY_LOGPROBS, gradients_in_steps, make_group

ADVANTAGES = (1.0, -0.5, 0.25, 0.5, -1.0, 0.75)
TOKENS = 120  # both groups in one micro-batch


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def policy(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    build_tiny_model("qwen2_5_vl", folder)
    return load_policy(folder, dtype=request.param)


@pytest.fixture
def groups(policy):
    """Two prompts, the second with a forced beginning of the answer; ragged answers."""
    made = []
    for number, prefix in enumerate(("", "ab")):
        image = random_image(56, 56, seed=number)
        prompt = make_prompt(policy.model, policy.processor, "How many?", [image], prefix=prefix)
        made.append(make_group([1.0, 0.0, 1.0], f"q{number}", lengths=[3, 5, 2], prompt=prompt))
    return made


def credit_of(groups, *advantages):
    return Credit(torch.tensor(advantages), torch.tensor([0.0, 2.0][: len(groups)]))


def make_updater(policy, run_dir=None, tell=lambda line: None, **settings):
    config = build_config(
        {"worker.actor.optim.lr": 1e-2, "worker.actor.micro_batch_tokens": TOKENS} | ANY_LOGPROBS | settings
    )
    return Updater(policy, clipped_policy_loss, config, num_steps=1, faults=FaultLog(run_dir, tell))


def weights_of(policy):
    return [p.detach().clone() for p in policy.model.parameters()]


def gradients_of(updater):
    return [None if master.grad is None else master.grad.clone() for master in updater.weights.masters]


def assert_same_gradients(found, expected):
    """Of one optimizer step each."""
    assert (len(found), len(expected)) == (1, 1)
    assert found[0].keys() == expected[0].keys() != set()
    assert all(torch.equal(found[0][name], gradient) for name, gradient in expected[0].items())


def same(first, second):
    return all(a is b is None or torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_broken_gradient_is_skipped_counted_and_kept(policy, groups, tmp_path, value):
    told = []
    before, updater = weights_of(policy), make_updater(policy, tmp_path, told.append)
    updater.faults.step = 7
    metrics = updater.update(groups, credit_of(groups, value, *ADVANTAGES[1:]))
    assert same(before, weights_of(policy))
    assert not updater.optimizer.state_dict()["state"], "a skipped step leaves no moments behind"
    assert "actor/loss" not in metrics
    assert updater.skipped_in_a_row == 1
    assert updater.faults.take_counts()["actor/skipped_steps"] == 1.0
    (line,) = told
    assert line.startswith("a loss or gradient was not finite: the optimizer step is skipped")
    (row,) = [json.loads(text) for text in (tmp_path / "faults.jsonl").read_text().splitlines()]
    assert (row["step"], row["fault"]) == (7, "actor/skipped_steps")
    assert str(tmp_path / "skipped_batches" / "step_7.pt") in row["detail"]


def test_a_sound_step_ends_the_row_of_skipped_ones(policy, groups, tmp_path):
    updater = make_updater(policy, tmp_path, **{"worker.actor.optim.lr": 0.0})
    for _ in range(2):
        updater.update(groups, credit_of(groups, math.nan, *ADVANTAGES[1:]))
    assert updater.skipped_in_a_row == 2
    assert updater.state_dict()["skipped_in_a_row"] == 2
    updater.update(groups, credit_of(groups, *ADVANTAGES))
    assert updater.skipped_in_a_row == 0


def test_one_broken_optimizer_step_of_several_costs_only_itself(policy, groups):
    updater = make_updater(policy, **{"worker.actor.global_batch_size": 1, "worker.actor.optim.lr": 0.0})
    metrics = updater.update(groups, credit_of(groups, math.nan, *ADVANTAGES[1:]))
    assert updater.faults.take_counts()["actor/skipped_steps"] == 1.0
    assert math.isfinite(metrics["actor/loss"])


def test_a_kept_batch_gives_the_gradient_again(policy, groups, tmp_path):
    updater = make_updater(policy, tmp_path, **{"worker.actor.global_batch_size": 2, "worker.actor.ppo_epochs": 2})
    updater.update(groups, credit_of(groups, math.nan, *ADVANTAGES[1:]))
    batch = load_batch(tmp_path / "skipped_batches" / "step_1.pt")
    assert [example.name for example in batch.examples] == ["q0/0", "q1/0"]
    broken = [not bool(example.advantage.isfinite().all()) for example in batch.examples]
    assert broken == [True, False], "the file shows which question broke the step"
    replayed = GradientPass(policy, clipped_policy_loss, updater.config, updater.weights)
    loss, _ = replayed.run(batch, TOKENS)
    assert math.isnan(loss)
    batch.examples[0].advantage.nan_to_num_(nan=ADVANTAGES[0])
    loss, metrics = replayed.run(batch, TOKENS)
    found = gradients_of(updater)
    made = make_updater(policy)
    made._gradient(made_batch(made, groups))
    assert same(found, gradients_of(made))
    assert math.isfinite(loss)
    assert metrics["actor/ratio"] == 1.0


def made_batch(updater, groups):
    (batch,) = split_batches(groups, credit_of(groups, *ADVANTAGES), prompts_per_batch=2)
    return updater._with_old(batch)


def test_only_the_newest_batches_are_kept(policy, groups, tmp_path):
    updater = make_updater(policy, tmp_path)
    for step in range(1, KEPT + 4):
        updater.faults.step = step
        updater.update(groups, credit_of(groups, math.nan, *ADVANTAGES[1:]))
    kept = {path.name for path in (tmp_path / "skipped_batches").iterdir()}
    assert kept == {f"step_{step}.pt" for step in range(4, KEPT + 4)}


def test_a_file_that_is_no_batch_is_named(tmp_path):
    (tmp_path / "x.pt").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"x\.pt is no batch .*skipped_batches"):
        load_batch(tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"there is no file .*y\.pt"):
        load_batch(tmp_path / "y.pt")


OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


class BreakOff:
    """Breaks the n-th backward pass off in the middle: at a weight whose gradient comes after others'."""

    def __init__(self, policy, passes, error):
        self.passes, self.error, self.calls = passes, error, 0
        # The first layer's weight: the backward pass has been through the whole language model by then.
        weight = policy.model.get_input_embeddings().weight
        self.handle = weight.register_hook(self)

    def __call__(self, gradient):
        self.calls += 1
        if self.calls in self.passes:
            raise self.error


@pytest.fixture
def lacking(policy):
    made = []

    def lack(*passes, error=OUT_OF_MEMORY):
        made.append(BreakOff(policy, passes, error))
        return made[-1]

    yield lack
    for hook in made:
        hook.handle.remove()


def test_a_pass_out_of_memory_is_done_again_in_halves_exactly(policy, groups, lacking):
    start, told = weights_of(policy), []
    state = {name: value.clone() for name, value in policy.model.state_dict().items()}
    half = make_updater(policy, **{"worker.actor.micro_batch_tokens": TOKENS // 2})
    expected_gradients = gradients_in_steps(half)
    expected_metrics = half.update(groups, credit_of(groups, *ADVANTAGES))
    expected = weights_of(policy)
    assert not same(expected, start)
    policy.model.load_state_dict(state)
    lack = lacking(1)
    updater = make_updater(policy, tell=told.append)
    found = gradients_in_steps(updater)
    metrics = updater.update(groups, credit_of(groups, *ADVANTAGES))
    assert lack.calls >= 2
    assert_same_gradients(found, expected_gradients)  # nothing of the broken-off pass is in them
    assert same(weights_of(policy), expected)
    assert metrics == expected_metrics
    assert updater.faults.take_counts()["actor/memory_retries"] == 1.0
    (line,) = told
    assert line == (
        "the update ran out of memory at worker.actor.micro_batch_tokens=120 and is done again at 60; "
        "set worker.actor.micro_batch_tokens=60 to spare the attempt"
    )
    policy.model.load_state_dict(state)


def test_a_second_micro_batch_out_of_memory_leaves_no_trace_of_the_first(policy, groups, lacking):
    settings = {"worker.actor.optim.lr": 0.0, "worker.actor.micro_batch_tokens": 40}
    half = make_updater(policy, **settings | {"worker.actor.micro_batch_tokens": 20})
    expected = gradients_in_steps(half)
    half.update(groups, credit_of(groups, *ADVANTAGES))
    lack = lacking(2)
    updater = make_updater(policy, **settings)
    found = gradients_in_steps(updater)
    updater.update(groups, credit_of(groups, *ADVANTAGES))
    assert lack.calls > 2
    assert_same_gradients(found, expected)


def test_half_is_tried_once_only(policy, groups, lacking):
    before = weights_of(policy)
    lacking(1, 2)
    with pytest.raises(StepFailed, match=r"at worker.actor.micro_batch_tokens=120 and again at 60; lower .*2\.00 GiB"):
        make_updater(policy).update(groups, credit_of(groups, *ADVANTAGES))
    assert same(before, weights_of(policy))


def test_an_update_that_breaks_off_says_whether_the_weights_have_moved(policy, groups, lacking):
    state = {name: value.clone() for name, value in policy.model.state_dict().items()}
    lacking(2, 3, 4)
    updater = make_updater(policy, **{"worker.actor.global_batch_size": 1})
    with pytest.raises(StepFailed, match="ran out of memory"):
        updater.update(groups, credit_of(groups, *ADVANTAGES))
    assert updater.has_moved
    policy.model.load_state_dict(state)
    lacking(1, 2)
    updater = make_updater(policy)
    with pytest.raises(StepFailed, match="ran out of memory"):
        updater.update(groups, credit_of(groups, *ADVANTAGES))
    assert not updater.has_moved


def test_other_errors_are_not_taken_for_a_lack_of_memory(policy, groups, lacking):
    lack = lacking(1, error=RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        make_updater(policy).update(groups, credit_of(groups, *ADVANTAGES))
    assert lack.calls == 1


REAL_LACK = """
import resource, sys
import torch
from diva_engine.trainer.faults import FaultLog
from diva_engine.trainer.memory import with_half_on_lack

with open("/proc/self/statm") as file:
    mapped = int(file.read().split()[0]) * resource.getpagesize()
limit = mapped + (300 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
tried = []

def work(num_megabytes):
    tried.append(num_megabytes)
    return torch.ones(num_megabytes << 18).sum().item() / (1 << 18)  # float32

faults = FaultLog(tell=print)
print(with_half_on_lack(work, 400, faults, "the update"), tried, faults.take_counts()["actor/memory_retries"])
with_half_on_lack(work, 900, faults, "the update")
"""


def test_a_real_allocation_that_fails_is_recognised():
    """The process's address space is limited to 300 MB more than it has: 400 MB fail, 200 MB do not, 450 do again."""
    done = subprocess.run([sys.executable, "-c", REAL_LACK], capture_output=True, text=True, check=False)
    told, found, again = done.stdout.splitlines()
    assert told.startswith(
        "the update ran out of memory at worker.actor.micro_batch_tokens=400 and is done again at 200"
    )
    assert found == "200.0 [400, 200] 1.0"
    assert again.endswith("is done again at 450; set worker.actor.micro_batch_tokens=450 to spare the attempt")
    assert (
        "StepFailed: the update ran out of memory at worker.actor.micro_batch_tokens=900 and again at 450"
        in done.stderr
    )
    assert "can't allocate memory" in done.stderr
