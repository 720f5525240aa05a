"""What a question's variants look like: every shift, and what is drawn at each level, as one HTML page.

python -m diva_engine.variants --config examples/tiles_cpu.yaml --id tiles_train:17 --out page.html
python -m diva_engine.variants --config run.yaml --row 3 --row 4 --out page.html variants.num=3 data.seed=2

Further words are settings, as for the training command. The pictures are those that a run with these settings would
pose at step --step, bit for bit.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from diva_engine.algorithm.recipes import recipe_defaults
from diva_engine.algorithm.variants import (
    LARGEST_SHIFT,
    MEAN_SHIFT,
    VariantSettings,
    draw_variants,
    original,
    pose_variant,
)
from diva_engine.config import Config
from diva_engine.data.dataset import ProblemSet
from diva_engine.data.prompts import PromptEncoder
from diva_engine.data.text_in_image import Drawable
from diva_engine.policy.model import load_processor
from diva_engine.records import Problem, UserError, Variant
from diva_engine.seeds import derive_random
from diva_engine.settings import load_config
from diva_engine.trainer.collect import image_key
from diva_engine.trainer.questions import build_encoder, open_file
from diva_engine.trainer.variant_page import Chapter, Posed, render_page

START_LEVEL = 5.0


def main(arguments: Sequence[str] | None = None) -> int:
    options = read_arguments(arguments)
    try:
        words = [f"config={options.config}"] if options.config else []
        config = load_config([*words, *options.settings], recipe_defaults, print)
        page = build_page(config, options)
        write_page(Path(options.out), page)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{options.out}: {len(page) / 1e6:.1f} MB")
    return 0


def read_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m diva_engine.variants", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="", help="YAML file of a run")
    parser.add_argument("--id", action="append", default=[], help="id of a question; may be given several times")
    parser.add_argument("--row", action="append", default=[], type=int, help="or its row in the first file, from 0")
    parser.add_argument("--out", required=True, help="HTML file to write")
    parser.add_argument("--draws", type=int, default=3, help="variants shown at each level")
    parser.add_argument("--step", type=int, default=0, help="step whose draws are shown, from 0")
    parser.add_argument("settings", nargs="*", help="section.name=value")
    return parser.parse_intermixed_args(arguments)


def build_page(config: Config, options: argparse.Namespace) -> str:
    if not config.data.train_files or not config.worker.actor.model.model_path:
        raise UserError("give data.train_files and model, or a --config that names them")
    problems = open_file(config.data.train_files, config.data)
    chosen = choose(problems, options.id, options.row)
    model, data = config.worker.actor.model, config.data
    processor = load_processor(
        model.model_path,
        trust_remote_code=model.trust_remote_code,
        min_pixels=data.min_pixels,
        max_pixels=data.max_pixels,
    )
    show = _Show(config, build_encoder(config, processor), options.step, max(1, options.draws))
    return render_page([(problem, show.chapters(problem)) for problem in chosen])


def choose(problems: ProblemSet, ids: Sequence[str], rows: Sequence[int]) -> list[Problem]:
    """The questions asked for, the first one where none is named. Raises UserError for one that is not there."""
    chosen = []
    for find, names, what in ((problems.index_of, ids, "id"), (problems.index_of_row, rows, "row")):
        for name in names:
            try:
                chosen.append(problems[find(name)])  # type: ignore[operator]
            except KeyError:
                raise UserError(
                    f"no usable question has the {what} {name}; the first has the id {problems.ids[0]}"
                ) from None
    return chosen or [problems[0]]


def write_page(path: Path, page: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror})") from None


class _Show:
    """Poses a question's variants as a run with these settings would."""

    def __init__(self, config: Config, encoder: PromptEncoder, step: int, num_draws: int) -> None:
        self._seed, self._step, self._encoder = config.data.seed, step, encoder
        variants = replace(config.variants, num=num_draws)
        self._settings = VariantSettings(variants, config.hint, Drawable(config.data.font, print))

    def chapters(self, problem: Problem) -> list[Chapter]:
        first = Chapter("As it stands", [self._posed(original(problem, problem.difficulty or START_LEVEL))])
        levels = [Chapter(f"Level {level}", self._drawn(problem, level)) for level in MEAN_SHIFT]
        return [first, Chapter("Every shift, at level 5", self._shifts(problem)), *levels]

    def _drawn(self, problem: Problem, level: int) -> list[Posed]:
        draw = derive_random(self._seed, "variants", self._step, problem.id)
        return [self._posed(variant) for variant in draw_variants(problem, level, self._settings, draw)]

    def _shifts(self, problem: Problem) -> list[Posed]:
        posed = []
        for shift in range(-LARGEST_SHIFT, LARGEST_SHIFT + 1):
            draw = derive_random(self._seed, "every shift", problem.id, shift)
            index = 1 + shift + LARGEST_SHIFT
            posed.append(self._posed(pose_variant(problem, index, START_LEVEL, shift, self._settings, draw)))
        return posed

    def _posed(self, variant: Variant) -> Posed:
        try:
            return Posed(variant, self._encoder.encode(variant, image_key(self._seed, self._step, variant)))
        except UserError as error:
            return Posed(variant, None, str(error))


if __name__ == "__main__":
    sys.exit(main())
