"""The page of a question's variants: whole, escaped, and with the very pixels that a run poses."""

import base64
import io
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from diva_engine.algorithm.difficulty import DifficultyLedger
from diva_engine.algorithm.plans import PlanContext, ask_originals_and_variants
from diva_engine.policy.model import load_policy, load_processor
from diva_engine.settings import load_config
from diva_engine.trainer.collect import image_key
from diva_engine.trainer.questions import build_encoder, open_file
from diva_engine.variants import main
from python_tests.models import build_tiny_model
from python_tests.questions import encoded_image

EVIL = '<script>alert("x")</script> & <img src=x onerror=y>'


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("variants")
    build_tiny_model("qwen2_5_vl", folder / "model", hidden_size=32)
    rows = [
        {
            "id": f"q{i}",
            "problem": f"<image>Count to {i}? {EVIL if i == 1 else ''}",
            "answer": f"{1000 + i}",
            "images": [{"bytes": encoded_image(i), "path": None}],
            "variant": [f"<image>What comes after {i - 1}?"],
            "step2": ["one ;", "two ;", f"so {1000 + i} ;"],
            "difficulty": 2,
        }
        for i in range(3)
    ]
    rows.append({**rows[0], "id": "文", "problem": "<image>数到一?", "variant": [], "step2": []})
    pq.write_table(pa.Table.from_pylist(rows), folder / "train.parquet")
    return folder


class Page(HTMLParser):
    """The cards by chapter, with their kinds, pictures and texts; and every tag that was met."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.chapters, self._open = set(), {}, []
        self.feed(text)
        self.close()
        assert self._open == [], "every tag is closed"

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        attributes = dict(attributes)
        assert not any(name.startswith("on") for name in attributes)
        if tag not in ("img", "meta"):
            self._open.append(tag)
        if tag == "h2":
            self.cards = []
        if tag == "article":
            self.cards.append({"kind": attributes["data-kind"], "images": [], "text": ""})
        if tag == "img":
            self.cards[-1]["images"].append(attributes["src"])

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open[-1:] == ["h2"]:
            self.chapters[data] = self.cards
        elif "article" in self._open:
            self.cards[-1]["text"] += data


def settings(inputs, *extra):
    return [f"data.train_files={inputs / 'train.parquet'}", f"model={inputs / 'model'}", *extra]


def page_of(inputs, out, *words):
    assert main(["--out", str(out), *words, *settings(inputs)]) == 0
    return Page(out.read_text(encoding="utf-8"))


def pixels(uri):
    assert uri.startswith("data:image/png;base64,")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))


def test_every_shift_and_level_is_on_the_page(inputs, tmp_path):
    page = page_of(inputs, tmp_path / "a" / "page.html", "--id", "q2", "--draws", "4")
    levels = [f"Level {level}" for level in range(1, 10)]
    assert list(page.chapters) == ["As it stands", "Every shift, at level 5", *levels]
    kinds = [card["kind"] for card in page.chapters["Every shift, at level 5"]]
    assert kinds == ["hint"] * 8 + ["paraphrase"] + ["perturbation"] * 6 + ["text_in_image"] * 2
    assert [len(page.chapters[level]) for level in levels] == [4] * 9
    assert all(len(card["images"]) == 1 for cards in page.chapters.values() for card in cards)
    hardest = page.chapters["Every shift, at level 5"][14]
    assert all(name in hardest["text"] for name in ("rotate", "gaussian 0.45", "salt_pepper 0.45", "blur 0.45", "+6"))


def test_the_pixels_are_those_that_a_run_poses(inputs, tmp_path):
    config = load_config(settings(inputs, "variants.num=2", "data.seed=3"))
    page = page_of(inputs, tmp_path / "page.html", "--id", "q2", "--draws", "2", "data.seed=3")
    problem = next(p for p in open_file(config.data.train_files, config.data) if p.id == "q2")
    context = PlanContext(config, DifficultyLedger(config.difficulty), step=0)
    encoder = build_encoder(config, load_policy(inputs / "model").processor)
    requests = next(ask_originals_and_variants([problem], context))
    shown = page.chapters["As it stands"] + page.chapters["Level 2"]
    assert [card["kind"] for card in shown] == [request.variant.kind for request in requests]
    for card, request in zip(shown, requests, strict=True):
        prompt = encoder.encode(request.variant, image_key(3, 0, request.variant))
        assert (pixels(card["images"][0]) == np.asarray(prompt.images[0])).all()
    assert any(request.variant.operations or request.variant.kind == "text_in_image" for request in requests)


def test_what_the_data_hold_is_text_and_nothing_else(inputs, tmp_path):
    page = page_of(inputs, tmp_path / "page.html", "--row", "1", "--row", "0", "--id", "q2")
    assert "script" not in page.tags
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert EVIL not in text
    assert text.count("<h1>") == 3
    assert "http" not in text, "nothing is fetched from elsewhere"
    assert "&lt;script&gt;" in text


def test_a_font_without_the_letters_falls_back_and_says_so(inputs, tmp_path, capsys):
    page = page_of(inputs, tmp_path / "page.html", "--id", "文")
    told = capsys.readouterr().out
    assert told.count("questions are not drawn into their images where letters are missing") == 1
    assert "set data.font to one that has" in told
    cards = page.chapters["Every shift, at level 5"]
    assert [card["kind"] for card in cards] == ["original"] * 9 + ["perturbation"] * 8
    assert ["fallback" in card["text"] for card in cards] == [True] * 9 + [False] * 6 + [True] * 2


def test_the_processor_needs_no_weights(inputs):
    whole = load_policy(inputs / "model", max_pixels=7840).processor
    light = load_processor(inputs / "model", max_pixels=7840)
    assert (light.image_token_id, light.merge_size) == (whole.image_token_id, whole.merge_size)
    assert (light.banned_ids, light.stop_ids) == (whole.banned_ids, whole.stop_ids)
    assert light.image_processor.size == whole.image_processor.size


BAD = {
    "no such id": (["--id", "q99"], "no usable question has the id q99; the first has the id q0"),
    "no such row": (["--row", "9"], "no usable question has the row 9"),
    "no such setting": (["data.sed=1"], "did you mean data.seed?"),
}


@pytest.mark.parametrize(("words", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line(inputs, tmp_path, capsys, words, message):
    assert main(["--out", str(tmp_path / "page.html"), *settings(inputs), *words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "page.html").exists()


def test_without_data_it_says_what_to_give(tmp_path, capsys):
    assert main(["--out", str(tmp_path / "page.html")]) == 2
    assert "give data.train_files and model" in capsys.readouterr().err
