"""Which column of the user's table feeds which field of a Problem: the one table of aliases."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from diva_engine.data.wording import brief
from diva_engine.records import UserError

# The first name that a table has is taken. A dotted name looks inside a struct.
ALIASES: dict[str, tuple[str, ...]] = {
    "text": ("problem", "question", "prompt", "query", "instruction", "messages", "conversations"),
    "answer": ("answer", "ground_truth", "solution", "reward_model.ground_truth", "final_answer"),
    "images": ("images", "image", "image_path", "image_paths"),
    "id": ("id", "qid", "proID", "question_id", "problem_id", "uid"),
    "difficulty": ("difficulty",),
    "paraphrases": ("variant", "variants", "new_questions", "paraphrases"),
    "steps": ("step2", "steps", "hints", "reasoning_steps"),
    "text_in_image": ("text_in_image",),
}

# Chat columns hold the answer as well, as the assistant's turn.
CHAT_COLUMNS = ("messages", "conversations")

# The setting that names each field's column, for messages.
SETTINGS = {
    "text": "data.prompt_key",
    "answer": "data.answer_key",
    "images": "data.image_key",
    "id": "data.id_key",
}


@dataclass(frozen=True)
class ColumnMap:
    """The column chosen for every field (None: the table has none), and the columns no field reads."""

    chosen: Mapping[str, str | None]
    unused: tuple[str, ...]

    @property
    def answer_in_chat(self) -> bool:
        """True where the answer is the assistant's turn of the chat that also holds the question."""
        return self.chosen["answer"] == self.chosen["text"]

    def value(self, row: Mapping[str, Any], field: str) -> Any:
        """The row's value for a field, None where the table has no such column."""
        column = self.chosen[field]
        return None if column is None else lookup(row, column)

    def light_columns(self) -> list[str]:
        """The top-level columns that fields other than the images read."""
        names = [column.split(".")[0] for field, column in self.chosen.items() if column and field != "images"]
        return list(dict.fromkeys(names))

    def describe(self) -> list[str]:
        """One line a field: "answer <- solution"."""
        lines = [f"{field} <- {column}" for field, column in self.chosen.items() if column]
        absent = [field for field, column in self.chosen.items() if not column]
        if absent:
            lines.append(f"without: {', '.join(absent)}")
        if self.unused:
            lines.append(f"not read: {brief(', '.join(self.unused))}")
        return lines


def lookup(row: Mapping[str, Any], column: str) -> Any:
    """`row[column]`; a dotted name that is no column itself looks inside structs. None where anything is missing."""
    if column in row:
        return row[column]
    value: Any = row
    for part in column.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(part)
    return value


def map_columns(names: Iterable[str], where: str, overrides: Mapping[str, str | None]) -> ColumnMap:
    """Chooses a column for every field.

    Args:
        names: the table's columns; fields of a struct appear as "struct.field" as well.
        where: the file, for messages.
        overrides: field -> column, as the user set it; None leaves the field empty on purpose.

    Raises:
        UserError: a column that the user named, or that a question cannot do without, is not there.
    """
    present = list(dict.fromkeys(names))
    chosen: dict[str, str | None] = {}
    for field, aliases in ALIASES.items():
        if field in overrides:
            chosen[field] = _named_by_user(overrides[field], field, present, where)
        else:
            chosen[field] = next((alias for alias in aliases if alias in present), None)
    if chosen["answer"] is None and chosen["text"] in CHAT_COLUMNS:
        chosen["answer"] = chosen["text"]
    for field in ("text", "answer"):
        if chosen[field] is None:
            raise UserError(_missing_column(field, present, where))
    used = {column.split(".")[0] for column in chosen.values() if column}
    unused = tuple(name for name in present if "." not in name and name not in used)
    return ColumnMap(chosen, unused)


def _named_by_user(column: str | None, field: str, present: list[str], where: str) -> str | None:
    if column is None or column in present:
        return column
    if (field, column) == ("images", "images"):  # EasyR1's settings say so for text-only data too
        return None
    setting = SETTINGS.get(field, f"the column of {field}")
    close = get_close_matches(column, present, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise UserError(f"{where}: {setting}={column}, but its columns are {_listed(present)}{hint}")


def _missing_column(field: str, present: list[str], where: str) -> str:
    nearest = [name for alias in ALIASES[field] for name in get_close_matches(alias, present, n=1, cutoff=0.7)]
    example = nearest[0] if nearest else "COLUMN"
    mend = f"did you mean {example}? Set {SETTINGS[field]}={example}" if nearest else f"set {SETTINGS[field]}={example}"
    return (
        f"{where} has no column for the {field} (looked for {', '.join(ALIASES[field])}); "
        f"its columns are {_listed(present)}; {mend}"
    )


def _listed(present: list[str]) -> str:
    return brief(", ".join(name for name in present if "." not in name) or "none")
