"""Scored groups made by hand, for tests of what happens after the rewards."""

from dataclasses import replace

import torch

from diva_engine.records import Problem, Prompt, Request, Rollout, Score, ScoredGroup, Variant

PROMPT = Prompt(token_ids=(1, 2, 3), position_ids=torch.arange(3).repeat(3, 1))

# Their log-probabilities are made up: no bound on how far they lie from the trainer's.
ANY_LOGPROBS = {"worker.rollout.max_logprob_gap": 0.0}


def make_group(
    rewards, problem_id="q", index=0, kind="original", difficulty=5.0, lengths=None, accuracies=None, prompt=PROMPT
):
    """One local group: accuracy 1 where the reward is at least 0.5, unless given; answers of 2 tokens, unless given."""
    problem = Problem(id=problem_id, text="?", answer="1")
    variant = Variant(problem, index=index, kind=kind, text="?", difficulty=difficulty)
    lengths = lengths or [2] * len(rewards)
    accuracies = accuracies if accuracies is not None else [float(reward >= 0.5) for reward in rewards]
    rollouts = [Rollout(tuple(range(5, 5 + n)), (-1.0,) * n, "stop", "text", 0) for n in lengths]
    scores = [Score(reward, accuracy, 1.0) for reward, accuracy in zip(rewards, accuracies, strict=True)]
    return ScoredGroup(Request(variant, len(rewards)), prompt, tuple(rollouts), tuple(scores))


def answered(request, rewards, accuracies=None):
    """The scored group of a request: one answer a reward, the variant's forced prefix as one token a character."""
    prompt = replace(PROMPT, prefix_ids=tuple(request.variant.answer_prefix.encode()))
    group = make_group(rewards, accuracies=accuracies, prompt=prompt)
    return replace(group, request=request)


def gradients_in_steps(updater):
    """A list to which every optimizer step of `updater` adds its gradients, of the float32 masters, by name."""
    found = []
    names = [name for name, parameter in updater.policy.model.named_parameters() if parameter.requires_grad]

    def note(*_):
        pairs = zip(names, updater.weights.masters, strict=True)
        found.append({name: master.grad.clone() for name, master in pairs if master.grad is not None})

    updater.optimizer.register_step_pre_hook(note)
    return found
