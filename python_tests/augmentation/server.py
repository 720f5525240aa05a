"""A real HTTP server on this machine that speaks OpenAI's chat completions, and can be told to misbehave."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web


@dataclass(frozen=True)
class Asked:
    """One request as the server saw it."""

    http: web.Request = field(repr=False)
    body: dict[str, Any] = field(repr=False)
    number: int  # of the request for this question and kind, from 0

    @property
    def text(self) -> str:
        content = self.body["messages"][0]["content"]
        return content if isinstance(content, str) else content[-1]["text"]

    @property
    def kind(self) -> str:
        return "paraphrases" if "<paraphrase>" in self.text else "steps"

    @property
    def question(self) -> str:
        return self.text.split("Question:\n", 1)[1].split("\n\nCorrect answer:")[0]

    @property
    def answer(self) -> str:
        return self.text.rsplit("Correct answer: ", 1)[1]

    @property
    def images(self) -> list[str]:
        content = self.body["messages"][0]["content"]
        return [] if isinstance(content, str) else [p["image_url"]["url"] for p in content if p["type"] == "image_url"]


Behaviour = Callable[[Asked], Awaitable[web.StreamResponse]]


def good_text(asked: Asked) -> str:
    """A reply that every check lets through."""
    if asked.kind == "paraphrases":
        wordings = [f"Please tell: {asked.question}", f"We would like to know this: {asked.question}"]
        return "<think>hm</think>" + "".join(f"<paraphrase>{wording}</paraphrase>\n" for wording in wordings)
    steps = "<step>Read the picture.</step><step>Put the parts together.</step><step>That ends it.</step>"
    return f"{steps}\n<answer>{asked.answer}</answer>"


def completion(text: str | None, finish: str = "stop", usage: Any = (100, 20)) -> web.Response:
    body: dict[str, Any] = {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": finish}]}
    if usage:
        body["usage"] = {"prompt_tokens": usage[0], "completion_tokens": usage[1]}
    return web.json_response(body)


async def answer_well(asked: Asked) -> web.Response:
    return completion(good_text(asked))


class ChatServer:
    """Serves in a thread while the `with` block runs. `asked` holds every request in the order of arrival."""

    def __init__(self, behaviour: Behaviour = answer_well) -> None:
        self.behaviour = behaviour
        self.asked: list[Asked] = []
        self.most_in_flight = 0
        self._in_flight = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def counts(self) -> dict[tuple[str, str], int]:
        """Requests by question and kind."""
        found: dict[tuple[str, str], int] = {}
        for asked in self.asked:
            found[asked.question, asked.kind] = found.get((asked.question, asked.kind), 0) + 1
        return found

    def __enter__(self) -> ChatServer:
        self._thread.start()
        self.port = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(30)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)
        self._loop.close()

    async def _start(self) -> int:
        app = web.Application(client_max_size=2**30)
        app.router.add_post("/v1/chat/completions", self._handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        return site._server.sockets[0].getsockname()[1]

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        asked = Asked(request, body, 0)
        before = self.counts().get((asked.question, asked.kind), 0)
        asked = Asked(request, body, before)
        self.asked.append(asked)
        self._in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self._in_flight)
        try:
            return await self.behaviour(asked)
        finally:
            self._in_flight -= 1
