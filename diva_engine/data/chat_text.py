"""Question -> the text the model sees: the user's format template, then the model's own chat template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2
import jinja2.sandbox

from diva_engine.data.chats import IMAGE_MARKER
from diva_engine.records import UserError


class ChatRenderer:
    """Renders questions with one placeholder an image, ready to be answered.

    Args:
        tokenizer: its chat template is used.
        format_prompt: a Jinja file that receives the question as `content`, as in EasyR1; "" for none.
        system_prompt: the system message; "" takes the one that the row's own chat brings, if any.
    """

    def __init__(self, tokenizer: Any, format_prompt: str | Path = "", system_prompt: str = "") -> None:
        self._tokenizer = tokenizer
        self._format_name = str(format_prompt)
        self._format = _load_template(Path(format_prompt)) if format_prompt else None
        self._system_prompt = system_prompt

    def render(self, question: str, row_system_prompt: str = "") -> str:
        """The whole prompt as text. Raises UserError where a template cannot render it."""
        content = self._formatted(question)
        messages = [{"role": "user", "content": split_at_markers(content) if IMAGE_MARKER in content else content}]
        system_prompt = self._system_prompt or row_system_prompt
        if system_prompt:
            messages.insert(0, {"role": "system", "content": system_prompt})
        try:
            rendered = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except (ValueError, jinja2.TemplateError) as error:
            raise UserError(f"the model's chat template cannot render the prompt ({error})") from error
        return str(rendered)

    def _formatted(self, question: str) -> str:
        if self._format is None:
            return question
        try:
            text = self._format.render(content=question)
        except jinja2.TemplateError as error:
            raise UserError(f"data.format_prompt={self._format_name} cannot be rendered ({error})") from error
        if text.count(IMAGE_MARKER) != question.count(IMAGE_MARKER):
            raise UserError(f"data.format_prompt={self._format_name} loses the question: write {{{{ content }}}} once")
        return text


def split_at_markers(text: str) -> list[dict[str, str]]:
    """Text and image parts in order; one image part for every marker."""
    parts: list[dict[str, str]] = []
    for number, piece in enumerate(text.split(IMAGE_MARKER)):
        if number:
            parts.append({"type": "image"})
        if piece:
            parts.append({"type": "text", "text": piece})
    return parts


def _load_template(path: Path) -> jinja2.Template:
    try:
        if not path.is_file():  # a device would be read without end
            raise FileNotFoundError("no such file")
        source = path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise UserError(f"data.format_prompt={path} cannot be read ({error})") from error
    environment = jinja2.sandbox.SandboxedEnvironment(undefined=jinja2.StrictUndefined)
    try:
        return environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise UserError(f"data.format_prompt={path} is not a Jinja template ({error})") from error
