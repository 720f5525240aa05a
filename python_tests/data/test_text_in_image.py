"""Questions drawn into images: legible, wrapped, and never at the cost of the picture's own pixels."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from diva_engine.data.text_in_image import draw_text_in_image, load_font, wrap_text
from diva_engine.records import UserError
from python_tests.data.pictures import random_picture

LONG = "In the triangle ABC the angle at A is 40 degrees and the sides AB and AC are equal. " * 4


@pytest.mark.parametrize("side", ["top", "bottom"])
@pytest.mark.parametrize("size", [(84, 84), (512, 384), (30, 200)])
@pytest.mark.parametrize("text", ["What is x?", LONG])
def test_the_picture_stays_and_a_band_is_added(text, size, side):
    picture = random_picture(*size)
    drawn = draw_text_in_image(picture, text, side=side)
    band = drawn.height - size[1]
    assert drawn.width == size[0]
    assert band >= round(0.22 * size[1])
    kept = drawn.crop((0, band, *drawn.size) if side == "top" else (0, 0, *size))
    assert kept.tobytes() == picture.tobytes()
    written = np.asarray(drawn)[:band] if side == "top" else np.asarray(drawn)[size[1] :]
    assert written.min() < 60
    assert np.median(written) == 255


def test_a_short_text_is_drawn_larger_than_a_long_one():
    """Rows that carry ink, per line of text: the height of the letters."""

    def ink_rows(text: str) -> int:
        band = np.asarray(draw_text_in_image(Image.new("RGB", (512, 512)), text).convert("L"))[:112]
        return int((band.min(axis=1) < 128).sum())

    assert ink_rows("Hx") > 30
    assert ink_rows("Hx " * 30) / 2 < 30  # two lines or more


def test_all_text_lies_inside_the_image():
    drawn = np.asarray(draw_text_in_image(Image.new("RGB", (200, 100), "white"), LONG).convert("L"))
    border = np.concatenate([drawn[0], drawn[-1], drawn[:, 0], drawn[:, -1]])
    assert border.min() == 255


WRAPPED = {
    "fits": ("ab cd", 1000, ["ab cd"]),
    "one word a line": ("aaaa bbbb", 40, ["aaaa", "bbbb"]),
    "paragraphs": ("ab\ncd", 1000, ["ab", "cd"]),
    "spaces": ("  ab   cd ", 1000, ["ab cd"]),
}


@pytest.mark.parametrize("case", WRAPPED)
def test_lines_break_at_spaces(case):
    text, width, lines = WRAPPED[case]
    assert wrap_text(text, width, load_font("", 12)) == lines


def test_a_text_without_spaces_breaks_anywhere():
    font = load_font("", 12)
    lines = wrap_text("x" * 100 + " y", 60, font)
    assert "".join(lines).replace(" ", "") == "x" * 100 + "y"
    assert max(font.getlength(line) for line in lines) <= 60


def test_letters_that_the_font_lacks_are_named():
    with pytest.raises(UserError, match=r"the font DejaVuSans has no letter 求 角; set data.font"):
        draw_text_in_image(random_picture(), "求角 A")


def test_mathematics_and_many_scripts_are_drawn():
    text = "∠ABC = 40°, √2 · π ≤ x² ÷ ½ △ ⊥ ∥ ⇒ ∞ ± × ≠ ≈ ∫ ∑ αβγ Ω ñ ß Ж □"
    assert draw_text_in_image(random_picture(200, 100), text).width == 200


def test_a_font_file_that_is_none_is_named(tmp_path):
    path = tmp_path / "font.ttf"
    path.write_text("no font")
    for name in (str(path), str(tmp_path / "gone.ttf")):
        with pytest.raises(UserError, match=r"cannot be read .*give a .ttf or .otf file"):
            draw_text_in_image(random_picture(), "A", font_path=name)


def test_the_same_text_gives_the_same_pixels():
    first, second = (draw_text_in_image(random_picture(), LONG) for _ in range(2))
    assert first.tobytes() == second.tobytes()
