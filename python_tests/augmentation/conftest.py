"""Imported before the test modules: transformers finds torchvision importable only after diva_engine was imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import datasets
import pytest

import diva_engine  # noqa: F401
from diva_engine.augment import main
from python_tests.augmentation.server import ChatServer


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path_factory, monkeypatch):
    """Arrow copies of test files stay out of the user's cache."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(folder))
    for name in ("OPENAI_API_KEY", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server():
    with ChatServer() as running:
        yield running


class Workplace:
    """A folder with an input file, and the command run on it."""

    def __init__(self, folder, server):
        self.folder = folder
        self.server = server
        self.input = folder / "a.jsonl"
        self.output = folder / "b.jsonl"

    def write(self, rows):
        self.input.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def words(self, *further):
        words = ["--input", self.input, "--output", self.output, "--base-url", self.server.url, "--model", "tiny"]
        return [str(word) for word in (*words, "--backoff", "0.01", "--paraphrases", "2", *further)]

    def run(self, *further):
        return main(self.words(*further))

    def start(self, *further):
        """The command as a process of its own."""
        command = [sys.executable, "-m", "diva_engine.augment", *self.words(*further)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def rows(self):
        return [json.loads(line) for line in self.output.read_text().splitlines()]

    def journal(self):
        return [json.loads(line) for line in (self.folder / "b.journal.jsonl").read_text().splitlines()]

    def everything_written(self):
        """All bytes of all files of the folder and of the caches that the test may have filled."""
        roots = (self.folder, os.environ["HF_DATASETS_CACHE"])
        found = [os.path.join(at, name) for root in roots for at, _, names in os.walk(root) for name in names]
        return b"".join(open(path, "rb").read() for path in found)


@pytest.fixture
def place(tmp_path, server):
    workplace = Workplace(tmp_path, server)
    workplace.write([{"problem": f"How much is {n} and {n + 1}?", "answer": str(1000 + n), "n": n} for n in range(12)])
    return workplace
