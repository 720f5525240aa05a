"""A server that is slow, failing, malformed, hanging or gone."""

from __future__ import annotations

import asyncio
import itertools
import socket
import time
from email.utils import formatdate

import pytest
from aiohttp import web

from diva_engine.augmentation import client
from diva_engine.augmentation.replies import read_retry_after
from python_tests.augmentation.server import answer_well, completion

NUM_JOBS = 24


async def status_500(asked):
    return web.Response(status=500, text="<html>oops")


async def overloaded(asked):
    return web.json_response({"error": {"message": "busy"}}, status=503)


async def hang(asked):
    await asyncio.sleep(30)
    return await answer_well(asked)


async def drop(asked):
    asked.http.transport.abort()
    return web.Response()


async def bad_json(asked):
    return web.Response(text='{"choices": [', content_type="application/json")


async def no_choices(asked):
    return web.json_response({"choices": []})


async def no_object(asked):
    return web.json_response(["a", None])


async def content_no_text(asked):
    return web.json_response({"choices": [{"message": {"content": 5}}]})


async def deep(asked):
    return web.Response(text="[" * 100_000)


async def no_utf8(asked):
    return web.Response(body=b"\xff\xfe\x00")


async def cut_short(asked):
    """Says that more is coming, then goes."""
    response = web.StreamResponse(headers={"Content-Length": "5000"})
    await response.prepare(asked.http)
    await response.write(b'{"choices": [{"mess')
    asked.http.transport.abort()
    return response


async def drip(asked):
    """Never silent for long, never done: only a bound on the whole attempt ends it."""
    response = web.StreamResponse()
    await response.prepare(asked.http)
    for _ in range(300):
        await response.write(b" ")
        await asyncio.sleep(0.1)
    return response


async def endless(asked):
    response = web.StreamResponse()
    await response.prepare(asked.http)
    for _ in range(100):
        await response.write(b" " * 2**16)
    return response


async def wrong_encoding(asked):
    return web.Response(body=b"no gzip", headers={"Content-Encoding": "gzip"})


PASSING = {  # behaviour of the first attempt, how it is counted
    "500": (status_500, "HTTP 500"),
    "503": (overloaded, "HTTP 503"),
    "hangs": (hang, "timeout"),
    "drips": (drip, "timeout"),
    "drops the connection": (drop, "connection"),
    "cut short": (cut_short, "connection"),
    "wrong encoding": (wrong_encoding, "connection"),
    "bad json": (bad_json, "malformed"),
    "no choices": (no_choices, "malformed"),
    "no object": (no_object, "malformed"),
    "content is no text": (content_no_text, "malformed"),
    "deeply nested": (deep, "malformed"),
    "no utf-8": (no_utf8, "malformed"),
    "endless": (endless, "malformed"),
}


@pytest.mark.parametrize("case", PASSING)
def test_an_attempt_that_fails_is_made_again(case, place, capsys, monkeypatch):
    monkeypatch.setattr(client, "MAX_REPLY_BYTES", 2**20)
    fault, reason = PASSING[case]

    async def first_fails(asked):
        return await (fault if asked.number == 0 else answer_well)(asked)

    place.server.behaviour = first_fails
    assert place.run("--timeout", "2" if case == "endless" else "1") == 0
    assert f"retried {NUM_JOBS}: {reason}" in capsys.readouterr().out
    assert set(place.server.counts().values()) == {2}
    assert all(len(row["paraphrases"]) == 2 and len(row["steps"]) == 3 for row in place.rows())


def test_retry_after_is_honoured_by_all_requests(place):
    """One refusal, while one request is in flight at a time: nothing is asked for a second."""
    times = []

    async def once_busy(asked):
        times.append(time.monotonic())
        if len(times) == 3:
            return web.Response(status=429, headers={"Retry-After": "1"}, text="slow down")
        await asyncio.sleep(0.05)
        return await answer_well(asked)

    place.server.behaviour = once_busy
    assert place.run("--concurrency", "2", "--retries", "1") == 0
    pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert 0.9 < max(pauses) < 5
    assert len(times) == NUM_JOBS + 1


WAITS = {  # header -> least and most seconds
    "seconds": ("7", 7, 7),
    "a part of a second": ("0.5", 0.5, 0.5),
    "nothing": ("", 0, 0),
    "a word": ("soon", 0, 0),
    "the past": ("-3", 0, 0),
    "no number": ("nan", 0, 0),
    "for ever": ("inf", 0, 0),
    "a date": (formatdate(time.time() + 3600, usegmt=True), 1000, 3600),
    "a past date": (formatdate(0, usegmt=True), 0, 0),
}


@pytest.mark.parametrize(("value", "low", "high"), WAITS.values(), ids=WAITS)
def test_retry_after_is_seconds_or_a_date(value, low, high):
    assert low <= read_retry_after(value) <= high


def test_a_wait_of_a_day_is_not_waited_for(place, capsys):
    async def tomorrow(asked):
        return web.Response(status=429, headers={"Retry-After": "86400"}, text="come tomorrow")

    place.server.behaviour = tomorrow
    assert place.run("--limit", "1") == 1
    assert "failed 1: HTTP 429: come tomorrow (attempt 1)" in capsys.readouterr().out


HOPELESS = {
    "401": (401, {"error": {"message": "bad key"}}, "HTTP 401: bad key: the key was refused"),
    "404": (404, {"error": "no such model"}, "HTTP 404: no such model: no such model or address"),
    "no quota": (429, {"error": {"code": "insufficient_quota", "message": "pay"}}, "the account has no credit"),
    "moved": (308, {}, "the server is elsewhere; give its final address as --base-url"),
}


@pytest.mark.parametrize(("status", "body", "message"), HOPELESS.values(), ids=HOPELESS)
def test_where_nothing_can_succeed_the_run_stops_at_once(place, capsys, status, body, message):
    async def refuse(asked):
        return web.json_response(body, status=status, headers={"Location": "http://127.0.0.1:1/"})

    place.server.behaviour = refuse
    assert place.run("--concurrency", "2") == 2
    assert message in capsys.readouterr().err
    assert len(place.server.asked) <= 2
    assert not place.output.exists()


def test_a_question_that_the_server_refuses_costs_itself_alone(place, capsys):
    async def picky(asked):
        return web.Response(status=400, text="too long") if "3 and 4" in asked.question else await answer_well(asked)

    place.server.behaviour = picky
    assert place.run() == 1
    assert "failed 2: HTTP 400: too long" in capsys.readouterr().out
    assert max(place.server.counts().values()) == 1, "a 400 is not asked again by itself"
    place.server.behaviour = answer_well
    assert place.run() == 0, "but by the next run"
    assert all("steps" in row for row in place.rows())
    assert sum(place.server.counts().values()) == NUM_JOBS + 2


def test_a_server_that_is_not_there_ends_the_run_soon(place, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        assert place.run("--base-url", address, "--retries", "1", "--concurrency", "4") == 2
    error = capsys.readouterr().err
    assert "20 questions failed one after the other; the last: Client" in error


def test_replies_without_usage_are_counted(place, capsys):
    async def silent(asked):
        return completion((await answer_well(asked)).text and "<paraphrase>", usage=None)

    place.server.behaviour = silent
    assert place.run("--limit", "3", "--tries", "1", "--no-steps") == 0
    assert "3 requests, in 0 out 0 tokens (3 requests did not tell their tokens)" in capsys.readouterr().out


@pytest.mark.parametrize("finish", ["length", "stop"])
def test_replies_without_text_are_rejected(place, capsys, finish):
    async def nothing(asked):
        return completion(None, finish)

    place.server.behaviour = nothing
    assert place.run("--tries", "1", "--no-steps") == 0
    reason = "cut off at --max-tokens" if finish == "length" else "no <paraphrase> tags"
    assert f"rejected 12: {reason}" in capsys.readouterr().out
