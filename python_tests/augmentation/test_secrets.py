"""The key, and passwords of others, reach nobody but the server: no file, no output, no traceback."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from aiohttp import web

from python_tests.augmentation.server import completion

KEY = "sk-test-5Qh0Zr8WnKd3"


async def echo_the_key(asked):
    """Repeats the header wherever a server can: in a refusal, in broken replies, in the completion itself."""
    sent = asked.http.headers["Authorization"]
    assert sent == f"Bearer {KEY}"
    if asked.number == 0:
        return web.json_response({"error": {"message": f"bad: {sent}"}}, status=503, headers={"X-Echo": sent})
    if asked.number == 1:
        return web.Response(text=f"{sent} is no completion")
    if asked.kind == "steps":
        return web.Response(status=400, text=f"Incorrect API key provided: {sent}")
    return completion(f"<paraphrase>{sent}</paraphrase> {sent}")


ENDINGS = {
    "rejects and failures": (echo_the_key, [], 1),
    "refused": (lambda asked: _refused(asked), [], 2),
    "nobody there": (echo_the_key, ["--base-url", "http://127.0.0.1:9/v1", "--retries", "0"], 1),
}


async def _refused(asked):
    return web.Response(status=401, text=f"no such key: {asked.http.headers['Authorization']}")


@pytest.mark.parametrize("case", ENDINGS)
def test_the_key_reaches_the_server_and_nothing_else(case, place, monkeypatch):
    behaviour, words, code = ENDINGS[case]
    monkeypatch.setenv("MY_KEY", KEY)
    place.server.behaviour = behaviour
    process = place.start("--api-key-env", "MY_KEY", *words)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == code, said
    assert KEY not in said
    assert KEY.encode() not in place.everything_written()
    if case == "rejects and failures":
        assert "[key]" in place.everything_written().decode(errors="replace"), "the echo was there, and was taken out"


def test_a_key_that_breaks_the_program_is_not_in_its_traceback(place, monkeypatch):
    """The worst moment: a bug inside the client, with the key in the headers."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    program = (
        "import sys, diva_engine.augmentation.client as client\n"
        "def broken(*words): raise RuntimeError('a bug')\n"
        "client.read_body = broken\n"
        "from diva_engine.augment import main\n"
        f"sys.exit(main({place.words()!r}))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert "a bug" in done.stderr
    assert KEY not in done.stdout + done.stderr
    assert KEY.encode() not in place.everything_written()


BAD_KEYS = {
    "a line break inside": KEY[:9] + "\n" + KEY[9:],
    "a letter no header has": KEY + "é",
    "a space": KEY[:9] + " " + KEY[9:],
}


@pytest.mark.parametrize("case", BAD_KEYS)
def test_a_key_that_is_none_is_refused_without_being_shown(case, place, monkeypatch, capsys):
    monkeypatch.setenv("OPENAI_API_KEY", BAD_KEYS[case])
    assert place.run() == 2
    error = capsys.readouterr().err
    assert "the key in OPENAI_API_KEY holds a space or a letter that no header can" in error
    assert KEY[:9] not in error
    assert not place.server.asked


def test_an_address_with_a_password_is_refused_without_being_shown(place, capsys):
    assert place.run("--base-url", f"http://me:{KEY}@localhost/v1") == 2
    assert KEY not in capsys.readouterr().err


def test_a_line_break_at_the_keys_end_is_taken_off(place, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY + "\n")
    assert place.run("--limit", "1") == 0
    assert place.server.asked[0].http.headers["Authorization"] == f"Bearer {KEY}"
    assert KEY not in json.dumps(place.journal())


def test_passwords_of_a_netrc_are_not_sent(place, monkeypatch):
    (place.folder / "netrc").write_text(f"default login me password {KEY}\n")
    (place.folder / "netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(place.folder / "netrc"))
    assert place.run("--limit", "1") == 0
    assert "Authorization" not in place.server.asked[0].http.headers
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert place.run("--limit", "1") == 0
    assert place.server.asked[1].http.headers["Authorization"] == f"Bearer {KEY}"


def test_a_proxy_of_the_environment_is_used(place, monkeypatch):
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{place.server.port}")
    monkeypatch.setenv("no_proxy", "localhost")
    assert place.run("--limit", "1", "--base-url", "http://far.invalid/v1") == 0
    assert place.server.asked[0].http.headers["Host"] == "far.invalid"
    assert place.run("--limit", "1", "--base-url", "http://localhost:9/v1", "--retries", "0") == 1
    assert len(place.server.asked) == 1
