"""How a question's variants look, as one HTML page that needs nothing beside it: pictures are in it as data URIs."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from PIL import Image

from diva_engine.records import ImageOperation, Problem, Prompt, Variant

STYLE = """
body { font: 15px/1.4 system-ui, sans-serif; margin: 2em; color: #222; }
section { display: flex; flex-wrap: wrap; gap: 1em; margin-bottom: 2em; }
article { border: 1px solid #bbb; border-radius: 6px; padding: .7em; width: 22em; }
article.fallback { border-style: dashed; }
h3 { margin: 0 0 .4em; font-size: 1em; }
img { max-width: 100%; border: 1px solid #eee; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #f5f5f5; padding: .5em; margin: .4em 0; }
dl { display: grid; grid-template-columns: auto 1fr; gap: 0 .8em; margin: .4em 0; font-size: .9em; }
dd { margin: 0; }
.error { color: #a00; }
"""


@dataclass(frozen=True)
class Posed:
    """A variant with the prompt that was made of it, or why there is none."""

    variant: Variant
    prompt: Prompt | None
    error: str = ""


@dataclass(frozen=True)
class Chapter:
    """Variants that belong together."""

    title: str
    posed: Sequence[Posed]


def render_page(questions: Sequence[tuple[Problem, Sequence[Chapter]]]) -> str:
    """The page: every question with its chapters. Whatever comes from the data is escaped."""
    bodies = [_question(problem, chapters) for problem, chapters in questions]
    title = escape("Variants of " + ", ".join(problem.id for problem, _ in questions))
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{STYLE}</style></head>\n<body>\n" + "\n".join(bodies) + "\n</body>\n</html>\n"
    )


def _question(problem: Problem, chapters: Sequence[Chapter]) -> str:
    facts = {
        "answer": problem.answer,
        "level of the record": "-" if problem.difficulty is None else f"{problem.difficulty:g}",
        "other wordings": str(len(problem.paraphrases)),
        "reference steps": str(len(problem.steps)),
        "images": f"{len(problem.images)}{', with text: only rotated' if problem.text_in_image else ''}",
    }
    parts = [f"<h1>{escape(problem.id)}</h1>", f"<p>{escape(problem.origin)}</p>", _text(problem.text), _facts(facts)]
    for chapter in chapters:
        cards = "\n".join(_card(posed) for posed in chapter.posed)
        parts.append(f"<h2>{escape(chapter.title)}</h2>\n<section>\n{cards}\n</section>")
    return "\n".join(parts)


def _card(posed: Posed) -> str:
    variant = posed.variant
    facts = {"difficulty": f"{variant.difficulty:g}", "shift": f"{variant.shift:+d}"}
    if variant.operations:
        facts["operations"] = ", ".join(describe_operation(operation) for operation in variant.operations)
    if variant.num_hint_steps:
        facts["steps shown"] = str(variant.num_hint_steps)
    if variant.fallback:
        facts["fallback"] = "the record lacks what the shift asks for"
    parts = [f"<h3>{escape(variant.kind)}</h3>"]
    if posed.prompt is None:
        parts.append(f'<p class="error">{escape(posed.error)}</p>')
    else:
        facts["tokens"] = str(len(posed.prompt.token_ids))
        parts += [f'<img alt="" src="{data_uri(image)}">' for image in posed.prompt.images]
    parts += [_text(variant.text), _facts(facts)]
    if variant.answer_prefix:
        parts.append("the answer begins with" + _text(variant.answer_prefix))
    css = ' class="fallback"' if variant.fallback else ""
    return f'<article{css} data-kind="{escape(variant.kind)}">\n' + "\n".join(parts) + "\n</article>"


def describe_operation(operation: ImageOperation) -> str:
    unit = " degrees" if operation.name == "rotate" else ""
    return f"{operation.name} {operation.strength:.3g}{unit}"


def data_uri(image: Image.Image) -> str:
    """The very pixels, as a PNG."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _text(text: str) -> str:
    return f"<pre>{escape(text)}</pre>"


def _facts(facts: dict[str, str]) -> str:
    return "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts.items()) + "</dl>"
