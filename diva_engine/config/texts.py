"""Which texts a setting may hold."""

from __future__ import annotations

from diva_engine.records import UserError

LONGEST_NAME = 255  # bytes of one name in a path, as file systems have it
LONGEST_PATH = 4096  # bytes

# Shown to the model or matched against its answers: of any length and number of lines.
FREE_TEXTS = frozenset(
    {
        "data.system_prompt",
        "hint.question_template",
        "hint.answer_template",
        "hint.separator",
        "worker.reward.format_pattern",
    }
)


def refuse_unfit_text(name: str, value: str) -> None:
    """Raises UserError for a text that no path, column or name can be: it would fail later, far from its cause."""
    if "\0" in value or not _is_encodable(value):
        raise UserError(f"{name}={value!r} holds a letter that no text file can; write it again")
    if name in FREE_TEXTS:
        return
    if any(letter < " " or letter == "\x7f" for letter in value):
        raise UserError(f"{name}={value!r} holds a line break or another control character; write it on one line")
    size = max(len(part.encode()) for part in value.split("/"))
    if size > LONGEST_NAME or len(value.encode()) > LONGEST_PATH:
        raise UserError(
            f"{name}={value[:60]}... is too long: a name may have {LONGEST_NAME} bytes, a path {LONGEST_PATH}"
        )


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half a character
        return False
    return True
