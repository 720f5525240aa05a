"""One chat completion from an OpenAI-compatible server, retried where a later attempt can succeed."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from diva_engine.augmentation.endpoint import Endpoint
from diva_engine.augmentation.replies import Reply, RequestFailed, ServerRefused, TryAgain, read_body, refuse_status
from diva_engine.records import UserError

if TYPE_CHECKING:
    import aiohttp

LONGEST_WAIT_S = 60.0  # of the client's own back-off
LONGEST_RETRY_AFTER_S = 3600.0  # a server that says more is not waited for
MAX_REPLY_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Patience:
    """How long a request is pursued."""

    timeout_s: float = 120.0  # of one attempt, from connecting to the last byte
    retries: int = 6
    first_wait_s: float = 1.0  # doubled from attempt to attempt, times a random factor in [0.5, 1]


class ChatClient:
    """Asks one endpoint. Use as `async with`; any number of `ask` may be under way at once.

    Args:
        body: what every request holds beside its messages: max_tokens, temperature and the like.
        on_retry: called with the reason of every attempt that is repeated.
    """

    def __init__(
        self, endpoint: Endpoint, patience: Patience, *, body: dict[str, Any], on_retry: Callable[[str], None]
    ) -> None:
        self._endpoint = endpoint
        self._patience = patience
        self._body = {"model": endpoint.model, **body}
        self._on_retry = on_retry
        self._draw = random.Random()
        self._resume_at = 0.0  # loop time before which the server asked for silence

    async def __aenter__(self) -> ChatClient:
        aiohttp = required_aiohttp()
        self._session: aiohttp.ClientSession = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),  # the caller bounds what is in flight
            timeout=aiohttp.ClientTimeout(total=None),  # one bound on the whole attempt, set below
            headers=self._endpoint.headers(),
            trust_env=False,  # it would also send passwords of ~/.netrc
        )
        self._proxy = self._endpoint.proxy()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def ask(self, messages: Sequence[dict[str, Any]]) -> Reply:
        """The server's reply.

        Raises:
            RequestFailed: this request is given up: refused, or every attempt failed.
            ServerRefused: no request can succeed: the key, the model or the address is wrong.
        """
        payload = json.dumps({**self._body, "messages": list(messages)}).encode()
        for attempt in range(self._patience.retries + 1):
            await self._wait_for_silence()
            try:
                return await self._attempt(payload)
            except TryAgain as failure:
                if attempt == self._patience.retries or failure.retry_after_s > LONGEST_RETRY_AFTER_S:
                    raise RequestFailed(f"{failure} (attempt {attempt + 1})") from None
                self._on_retry(failure.reason)
                await asyncio.sleep(self._wait_s(attempt, failure.retry_after_s))
        raise AssertionError("unreachable: the last attempt returns or raises")

    async def _attempt(self, payload: bytes) -> Reply:
        aiohttp = required_aiohttp()
        try:
            async with asyncio.timeout(self._patience.timeout_s):
                status, headers, body = await self._post(payload)
        except TimeoutError:
            raise TryAgain("timeout", f"no reply within {self._patience.timeout_s:g} s") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            # Not chained: aiohttp's errors hold the request's headers, the key among them.
            reason = self._endpoint.redact(f"{type(error).__name__}: {error}")
            raise TryAgain("connection", reason) from None
        text = self._endpoint.redact(body.decode("utf-8", errors="replace"))
        if status != 200:
            refuse_status(status, headers, text)
        return read_body(text)

    async def _post(self, payload: bytes) -> tuple[int, Any, bytes]:
        request = self._session.post(self._endpoint.url, data=payload, proxy=self._proxy, allow_redirects=False)
        async with request as response:
            body = bytearray()
            async for piece in response.content.iter_chunked(2**16):
                body += piece
                if len(body) > MAX_REPLY_BYTES:
                    raise TryAgain("malformed", f"a reply of more than {MAX_REPLY_BYTES} bytes")
            return response.status, response.headers, bytes(body)

    def _wait_s(self, attempt: int, retry_after_s: float) -> float:
        own = min(LONGEST_WAIT_S, self._patience.first_wait_s * 2**attempt) * self._draw.uniform(0.5, 1)
        if retry_after_s:
            self._resume_at = max(self._resume_at, asyncio.get_running_loop().time() + retry_after_s)
        return max(own, retry_after_s)

    async def _wait_for_silence(self) -> None:
        """A Retry-After holds for all requests. A random delay keeps them from starting again as one."""
        left = self._resume_at - asyncio.get_running_loop().time()
        if left > 0:
            await asyncio.sleep(left + self._draw.uniform(0, self._patience.first_wait_s))


def required_aiohttp() -> Any:
    try:
        import aiohttp
    except ImportError:
        raise UserError("asking a server needs aiohttp: pip install 'diva-engine[augment]'") from None
    return aiohttp


__all__ = ["ChatClient", "Patience", "Reply", "RequestFailed", "ServerRefused", "required_aiohttp"]
