"""What a server answers: a reply, a reason to try again, or a refusal."""

from __future__ import annotations

import email.utils
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

SAID_CHARS = 200  # of a server's error text in messages
RETRIED_STATUSES = frozenset({408, 409, 425, 429})  # and all from 500
_HOPELESS = {
    401: "the key was refused; set the environment variable named by --api-key-env",
    402: "the account has no credit",
    403: "the key may not do this",
    404: "no such model or address; check --model, and that --base-url ends as the server wants it (/v1 as a rule)",
    405: "this address takes no chat completions; check that --base-url ends as the server wants it (/v1 as a rule)",
}


@dataclass(frozen=True)
class Reply:
    """One completion. The token counts are None where the server does not tell."""

    text: str
    is_cut_off: bool
    prompt_tokens: int | None
    completion_tokens: int | None


class TryAgain(Exception):
    """An attempt that failed for a passing reason."""

    def __init__(self, reason: str, message: str, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.reason = reason  # for counting
        self.retry_after_s = retry_after_s


class RequestFailed(Exception):
    """A request that is given up. Others may succeed."""


class ServerRefused(Exception):
    """No request of this run can succeed."""


def refuse_status(status: int, headers: Mapping[str, str], body: str) -> NoReturn:
    """Raises what an HTTP status other than 200 means."""
    said = f"HTTP {status}: {_said(body)}"
    if status in _HOPELESS or "insufficient_quota" in body:
        raise ServerRefused(f"{said}: {_HOPELESS.get(status, 'the account has no credit')}")
    if 300 <= status < 400:
        raise ServerRefused(f"HTTP {status}: the server is elsewhere; give its final address as --base-url")
    if status in RETRIED_STATUSES or status >= 500:
        raise TryAgain(f"HTTP {status}", said, read_retry_after(headers.get("Retry-After", "")))
    raise RequestFailed(said)


def read_retry_after(value: str) -> float:
    """Seconds to wait, from a number of seconds or a date; 0 where it is neither."""
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return 0.0
    return seconds if 0 < seconds < float("inf") else 0.0


def read_body(body: str) -> Reply:
    """The completion in a reply's body. Raises TryAgain where there is none."""
    try:
        answer = json.loads(body)
        choice = answer["choices"][0]
        message, finish = choice["message"], choice.get("finish_reason")
        text = message.get("content")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        raise TryAgain("malformed", f"the server's reply is no completion: {_said(body)}") from None
    if text is None:  # a refusal, or all tokens went into reasoning
        text = message.get("refusal") or ""
    if not isinstance(text, str):
        raise TryAgain("malformed", "the completion's content is no text")
    usage = answer.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    return Reply(text, finish == "length", _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens")))


def _count(value: Any) -> int | None:
    is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    return value if is_count else None


def _said(body: str) -> str:
    """The message inside an error's body, else its beginning, on one line."""
    text: Any = body
    try:
        parsed = json.loads(body)
        text = parsed["error"]["message"] if isinstance(parsed["error"], dict) else parsed["error"]
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    line = " ".join(str(text).split())
    return line[:SAID_CHARS] + "..." if len(line) > SAID_CHARS else line or "without a word"
