"""Chats as datasets store them (`role/content`, `from/value`, content as text or as parts) -> turns of plain text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from diva_engine.data.tables import UnreadableRow
from diva_engine.data.wording import brief

IMAGE_MARKER = "<image>"  # marks the place of one image in a question

_ROLES = {"user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant", "system": "system"}


@dataclass(frozen=True)
class Turn:
    """One message; images inside it stand as markers in the text."""

    role: str  # user, assistant or system
    text: str


@dataclass(frozen=True)
class Conversation:
    """What a chat asks: its system message ("" for none) and its questions, each with the reply that follows it."""

    system: str
    pairs: tuple[tuple[str, str | None], ...]  # (question, reply or None)


def read_conversation(messages: Sequence[Any]) -> Conversation:
    """Raises UnreadableRow unless the chat is an optional system message, then questions with one reply at most."""
    system = ""
    pairs: list[tuple[str, str | None]] = []
    for turn in map(read_turn, messages):
        if turn.role == "system" and not pairs:
            system = turn.text
        elif turn.role == "user":
            pairs.append((turn.text, None))
        elif turn.role == "assistant" and pairs and pairs[-1][1] is None:
            pairs[-1] = (pairs[-1][0], turn.text)
        else:
            raise UnreadableRow(f"the chat has a {turn.role} message where none can stand")
    if not pairs:
        raise UnreadableRow("the chat has no user message")
    return Conversation(system, tuple(pairs))


def read_turn(message: Any) -> Turn:
    if not isinstance(message, Mapping):
        raise UnreadableRow(f"a chat message is {type(message).__name__}, not an object with role and content")
    name = message.get("role", message.get("from"))
    role = _ROLES.get(str(name))
    if role is None:
        raise UnreadableRow(f"a chat message has the role {brief(repr(name))}; known are {', '.join(_ROLES)}")
    return Turn(role, _read_content(message.get("content", message.get("value"))))


def _read_content(content: Any) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        raise UnreadableRow(f"the content of a chat message is {type(content).__name__}, not text or parts")
    return "".join(map(_read_part, content))


def _read_part(part: Any) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping) and part.get("type") in ("image", "image_url"):
        return IMAGE_MARKER
    if isinstance(part, Mapping) and isinstance(part.get("text"), str):
        return str(part["text"])
    raise UnreadableRow("a part of a chat message is neither text nor image")
