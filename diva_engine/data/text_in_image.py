"""Writes a question into its image: a white band above or below it, the text wrapped and as large as fits."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Literal

from PIL import Image, ImageDraw, ImageFont

from diva_engine.data.chats import IMAGE_MARKER
from diva_engine.records import UserError

BAND_SHARE = 0.22  # of the image's height, as the authors' code has it; long texts get a taller band
SMALLEST_FONT = 12  # pixels; below it letters are lost in the patches of the vision tower
LARGEST_FONT = 100
LINE_HEIGHT = 1.25  # in font sizes
MARGIN = 0.5  # around the text, in font sizes

BUILT_IN_FONT = Path(__file__).parent / "fonts" / "DejaVuSans.ttf"  # Latin, Greek, Cyrillic, mathematical signs
NO_LETTER = "\U0010fffe"  # a code point that no font has a letter for


def draw_text_in_image(
    image: Image.Image, text: str, *, side: Literal["top", "bottom"] = "top", font_path: str = ""
) -> Image.Image:
    """The RGB image with a white band that holds the text; the image's own pixels are untouched.

    Args:
        font_path: a TrueType or OpenType file; the package's DejaVu Sans unless given.

    Raises:
        UserError: the font is not readable, or lacks a letter of the text.
    """
    refuse_missing_letters(text, font_path)
    band_height = round(image.height * BAND_SHARE)
    size = _largest_fitting(text, image.width, band_height, font_path)
    lines = wrap_text(text, _text_width(image.width, size), load_font(font_path, size))
    band_height = max(band_height, _height_of(len(lines), size))
    canvas = Image.new("RGB", (image.width, image.height + band_height), "white")
    canvas.paste(image, (0, band_height if side == "top" else 0))
    band_top = 0 if side == "top" else image.height
    top = band_top + (band_height - _height_of(len(lines), size)) / 2 + MARGIN * size
    draw = ImageDraw.Draw(canvas)
    font = load_font(font_path, size)
    for number, line in enumerate(lines):
        draw.text((MARGIN * size, top + number * LINE_HEIGHT * size), line, fill="black", font=font)
    return canvas


def wrap_text(text: str, width: float, font: ImageFont.FreeTypeFont) -> list[str]:
    """Lines of at most `width` pixels; breaks at spaces, and inside a word (or unspaced script) that is wider."""
    lines = []
    for paragraph in text.strip().splitlines():
        line = ""
        for word in paragraph.split():
            joined = f"{line} {word}" if line else word
            if font.getlength(joined) <= width:
                line = joined
                continue
            if line:
                lines.append(line)
            *full, line = _break_word(word, width, font)
            lines += full
        lines.append(line)
    return lines


def _break_word(word: str, width: float, font: ImageFont.FreeTypeFont) -> list[str]:
    """Pieces of the word that fit, at least one letter each; the last may be followed by more words."""
    pieces = [""]
    for letter in word:
        if pieces[-1] and font.getlength(pieces[-1] + letter) > width:
            pieces.append("")
        pieces[-1] += letter
    return pieces


def _largest_fitting(text: str, width: int, height: int, font_path: str) -> int:
    """The largest font size whose wrapped text fits the band, by bisection; the smallest where none does."""
    low, high = SMALLEST_FONT, LARGEST_FONT
    while low < high:
        size = (low + high + 1) // 2
        lines = wrap_text(text, _text_width(width, size), load_font(font_path, size))
        if _height_of(len(lines), size) <= height:
            low = size
        else:
            high = size - 1
    return low


def _text_width(width: int, size: int) -> float:
    return width - 2 * MARGIN * size


def _height_of(num_lines: int, size: int) -> int:
    return round(num_lines * LINE_HEIGHT * size + 2 * MARGIN * size)


@lru_cache(maxsize=LARGEST_FONT)
def load_font(font_path: str, size: int) -> ImageFont.FreeTypeFont:
    """The font at `size` pixels. Raises UserError where the file is no font."""
    try:
        return ImageFont.truetype(font_path or BUILT_IN_FONT, size)
    except OSError as error:
        raise UserError(f"data.font={font_path} cannot be read ({error}); give a .ttf or .otf file") from error


def refuse_missing_letters(text: str, font_path: str = "") -> None:
    """Raises UserError naming the letters of `text` that the font would draw as empty boxes."""
    missing = sorted({letter for letter in text if not letter.isspace() and not _has_letter(font_path, letter)})
    if missing:
        name = font_path or BUILT_IN_FONT.stem
        raise UserError(f"the font {name} has no letter {' '.join(missing[:10])}; set data.font to one that has")


class Drawable:
    """Whether the font has every letter of a text. The first text that it has not is told, once."""

    def __init__(self, font_path: str, tell: Callable[[str], None]) -> None:
        self._font_path = font_path
        self._tell = tell
        self._has_told = False

    def __call__(self, text: str) -> bool:
        try:
            refuse_missing_letters(text.replace(IMAGE_MARKER, " "), self._font_path)
        except UserError as error:
            if not self._has_told:
                self._tell(f"questions are not drawn into their images where letters are missing: {error}")
            self._has_told = True
            return False
        return True


@lru_cache(maxsize=8192)
def _has_letter(font_path: str, letter: str) -> bool:
    """Whether the font draws the letter differently from a code point that no font has."""
    font = load_font(font_path, 16)
    return bytes(font.getmask(letter)) != bytes(font.getmask(NO_LETTER))
