"""What travels between the rooms: frozen records, and the letters used in every shape comment.

    N rollouts          G local groups (one prompt each)       Q questions
    T tokens (packed)   V vocabulary                           P image patches
    L tokens of a prompt                                       H x W x C pixels

Texts are `str`, token ids are plain tuples of `int`, numbers that the ops read are tensors. Nothing here imports
another module of this package.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from PIL import Image
from torch import Tensor

VariantKind = Literal["original", "paraphrase", "hint", "perturbation", "text_in_image"]
FinishReason = Literal["stop", "length"]


class UserError(Exception):
    """Something the user gave cannot be used. The message names the place (file, row, setting) and the mend.

    Commands print it as one line and exit with code 2; it never shows a traceback.
    """

    def __str__(self) -> str:
        return " ".join(super().__str__().splitlines())  # of whatever the user's own words in it are


@dataclass(frozen=True)
class Problem:
    """One record of the user's data, read but not yet posed."""

    id: str
    text: str  # the question; every literal "<image>" marks the place of one image
    answer: str
    images: tuple[Any, ...] = ()  # undecoded sources (encoded bytes or a path), in the order of the markers
    difficulty: float | None = None  # the record's own level in [1, 9], where it has one
    paraphrases: tuple[str, ...] = ()  # other wordings of `text`
    steps: tuple[str, ...] = ()  # worked reasoning steps, in order; the last one may hold the answer
    text_in_image: bool = False  # the images carry text that must stay readable: only rotation is allowed
    origin: str = ""  # "file:row", for messages
    extra: Mapping[str, Any] = field(default_factory=dict)  # all other columns, untouched


@dataclass(frozen=True)
class ImageOperation:
    """One image perturbation: what, and how strong (degrees for `rotate`, 0..1 otherwise)."""

    name: Literal["rotate", "gaussian", "salt_pepper", "speckle", "blur", "low_resolution", "occlusion"]
    strength: float


@dataclass(frozen=True)
class Variant:
    """One way of posing a question. Variant 0 is the original. Same answer as the question's."""

    problem: Problem
    index: int
    kind: VariantKind
    text: str  # the wording, with its "<image>" markers
    difficulty: float  # D_i: the question's level plus the shift of this variant
    shift: int = 0
    operations: tuple[ImageOperation, ...] = ()
    answer_prefix: str = ""  # the answer is forced to begin with this text
    num_hint_steps: int = 0
    fallback: bool = False  # the record lacked what the draw asked for

    @property
    def key(self) -> tuple[str, int]:
        return self.problem.id, self.index


@dataclass(frozen=True)
class Request:
    """What a plan asks for: `num_rollouts` answers to one variant."""

    variant: Variant
    num_rollouts: int
    first_sample: int = 0  # number of the first answer within (question, variant), so that a second stage draws anew


@dataclass(frozen=True)
class Prompt:
    """A variant as the model reads it."""

    token_ids: tuple[int, ...]  # [L], image placeholders expanded
    position_ids: Tensor  # [3, L] int64 (temporal, height, width); text-only models use row 0
    pixel_values: Tensor | None = None  # [P, C * patch_size ** 2 * temporal_patch_size] float32
    image_grid_thw: Tensor | None = None  # [number of images, 3] int64, in patches
    images: tuple[Image.Image, ...] = ()  # the decoded, perturbed pixels, for engines with their own processor
    text: str = ""  # the rendered chat, one placeholder an image, for such engines and for logs
    prefix_ids: tuple[int, ...] = ()  # forced beginning of the answer
    holder: int = 0  # the rank that has `pixel_values` and `images`; on the others they are None and ()


@dataclass(frozen=True)
class Rollout:
    """One sampled answer. `token_ids` holds the sampled tokens only, the end token included where one was drawn."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]  # of the sampled tokens, under the sampler's own weights, at its temperature
    finish_reason: FinishReason
    text: str  # the whole answer: forced prefix and continuation, special tokens skipped
    policy_version: int


@dataclass(frozen=True)
class Score:
    """What the reward room says of one rollout."""

    reward: float  # what the advantages are made of
    accuracy: float  # 1 if the answer is right, else 0; it drives difficulty
    format: float  # 1 if the answer has the demanded form, else 0
    extra: Mapping[str, float] = field(default_factory=dict)  # further numbers of a custom reward, logged


@dataclass(frozen=True)
class ScoredGroup:
    """The rollouts of one request with their scores: a local group."""

    request: Request
    prompt: Prompt
    rollouts: tuple[Rollout, ...]
    scores: tuple[Score, ...]
    visual_entropy: float = float("nan")  # nats, of the question's pictures, where the recipe asks; NaN: no picture

    @property
    def variant(self) -> Variant:
        return self.request.variant

    @property
    def rewards(self) -> list[float]:
        return [s.reward for s in self.scores]

    @property
    def mean_accuracy(self) -> float:
        return sum(s.accuracy for s in self.scores) / len(self.scores)


@dataclass(frozen=True)
class Credit:
    """What a recipe's credit says of the step's groups."""

    advantage: Tensor  # [N] float32, in the order of the groups' rollouts
    prefix_weight: Tensor  # [G] float32: weight of the forced prefix in the loss, 0 where it is not trained
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class AnswerTree:
    """A prompt and the answers to train on it: prompt, image and forced prefix are the trunk, read once; each answer
    is a branch.

    A forward pass over trees yields one log-probability a trained token, [T]: tree by tree, first the prefix tokens
    (where `train_prefix`), then branch by branch.
    """

    prompt: Prompt
    branches: tuple[tuple[int, ...], ...]  # sampled tokens of each answer that is trained
    train_prefix: bool = False

    @property
    def sequence_lengths(self) -> list[int]:
        """Length of every trained sequence: the prefix (where trained), then the branches."""
        prefix = [len(self.prompt.prefix_ids)] if self.train_prefix else []
        return prefix + [len(branch) for branch in self.branches]


@dataclass(frozen=True)
class Processor:
    """What turns texts and pictures into model inputs, as loaded from the model folder."""

    tokenizer: Any
    image_processor: Any | None  # None for a text-only model
    image_token_id: int | None
    merge_size: int
    banned_ids: tuple[int, ...]  # ids the model must never sample: vision placeholders and turn markers
    stop_ids: tuple[int, ...]


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn."""

    temperature: float = 1.0  # 0 is greedy
    top_p: float = 1.0
    max_tokens: int = 1024
    stop: tuple[str, ...] = ()  # an answer ends with the token that completes one of these, which it keeps


@dataclass(frozen=True)
class GenerationJob:
    """One prompt and the seeds of the answers wanted for it: one answer a seed."""

    prompt: Prompt
    seeds: tuple[int, ...]


# Told the number of a job and all its answers, as soon as the last of them has ended.
OnAnswered = Callable[[int, Sequence[Rollout]], None]


class RolloutEngine(Protocol):
    """What a rollout engine offers the trainer. Answers come in the order of the jobs, then of their seeds."""

    def generate(
        self, jobs: Sequence[GenerationJob], sampling: Sampling, on_answered: OnAnswered | None = None
    ) -> list[list[Rollout]]:
        """`on_answered` is called in the caller's thread, jobs in any order; an engine that is started anew in between
        tells a job again."""

    def update_weights(self, policy_version: int, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Called after each optimizer step: takes the policy's new weights, whole tensors by Hugging Face name, one at
        a time. An engine that samples on the policy's own weights has them already and takes none."""

    def sleep(self) -> None:
        """No answers are wanted before the next `update_weights`: an engine may lend its memory to the trainer."""

    def close(self) -> None:
        """Gives back all that the engine holds; nothing is asked of it afterwards."""


class RewardFunction(Protocol):
    """Scores a batch of answers: `responses[i]`, of `response_lengths[i]` tokens, against `problems[i]`, in this
    order."""

    @property
    def scores_alone(self) -> bool:
        """Whether the score of an answer depends on it alone: then a stage's answers may come in several calls, from
        any one thread at a time."""

    def __call__(
        self, responses: Sequence[str], problems: Sequence[Problem], response_lengths: Sequence[int], /
    ) -> list[Score]: ...

    def take_counters(self) -> dict[str, int]:
        """What happened since the last call: answers judged by algebra, refused, out of time, failed."""

    def close(self) -> None:
        """Ends the reward's processes."""
