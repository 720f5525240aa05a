"""Hostile pictures in rows, by their bytes and as files: a prompt or one line that names the row; nothing hangs."""

from __future__ import annotations

import contextlib
import json
import struct
import time
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diva_engine.data.dataset import open_problems
from diva_engine.data.images import data_uri
from diva_engine.data.prompts import PromptEncoder
from diva_engine.records import UserError
from python_tests.data.pictures import encoded, original, random_picture, tiny_processor
from python_tests.fuzz_budget import TRIED

CPU_SECONDS = 20  # for one picture

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's words on the damage


def png_of(*chunks: tuple[bytes, bytes]) -> bytes:
    parts = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def png_header(width: int, height: int, depth: int = 8, colour: int = 2) -> tuple[bytes, bytes]:
    return b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)


def frames(format: str, count: int = 5, **options) -> bytes:
    first, *rest = (random_picture(20, 14, seed) for seed in range(count))
    return encoded(first, format, save_all=True, append_images=rest, **options)


def with_exif(exif: bytes) -> bytes:
    return encoded(random_picture(), "JPEG", exif=b"Exif\0\0" + exif)


BOMB = zlib.compress(bytes(200 * 2**20), 9)
WORDS = np.arange(84 * 56, dtype=np.uint16).reshape(56, 84)
PICTURES = {
    "0 bytes": b"",
    "1 byte": b"\x89",
    "NUL bytes": bytes(5000),
    "NUL bytes behind a png mark": b"\x89PNG\r\n\x1a\n" + bytes(5000),
    "1 x 1": encoded(random_picture(1, 1)),
    "1 x 1 jpeg": encoded(random_picture(1, 1), "JPEG"),
    "1 x 1 gif": encoded(random_picture(1, 1), "GIF"),
    "30,000 wide": encoded(Image.new("RGB", (30_000, 2))),
    "30,000 high": encoded(Image.new("RGB", (2, 30_000))),
    "30,000 wide jpeg": encoded(Image.new("RGB", (30_000, 20)), "JPEG"),
    "65,500 wide jpeg": encoded(Image.new("L", (65_500, 1)), "JPEG"),
    "a bomb by its header": png_of(png_header(30_000, 30_000), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")),
    "the largest header": png_of(png_header(2**31 - 1, 2**31 - 1), (b"IDAT", b""), (b"IEND", b"")),
    "200 MB of pixels in 200 kB": png_of(png_header(8_000, 8_000), (b"IDAT", BOMB), (b"IEND", b"")),
    "200 MB behind a small header": png_of(png_header(8, 8), (b"IDAT", BOMB), (b"IEND", b"")),
    "200 MB of text": png_of(png_header(8, 8), (b"zTXt", b"a\0\0" + BOMB), (b"IDAT", zlib.compress(bytes(200)))),
    "200 MB of profile": png_of(png_header(8, 8), (b"iCCP", b"a\0\0" + BOMB), (b"IDAT", zlib.compress(bytes(200)))),
    "a gif bomb": b"GIF89a" + struct.pack("<HHBBBcHHHHB", *[65_535] * 2, 0, 0, 0, b",", 0, 0, 65_535, 65_535, 0),
    "no width": png_of(png_header(0, 10), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")),
    "a depth that is none": png_of(png_header(8, 8, depth=7), (b"IDAT", zlib.compress(bytes(200))), (b"IEND", b"")),
    "animated gif": frames("GIF"),
    "animated png": frames("PNG"),
    "animated webp": frames("WEBP"),
    "tiff of many pages": frames("TIFF", 40),
    "cmyk": encoded(random_picture().convert("CMYK"), "JPEG"),
    "cmyk tiff": encoded(random_picture().convert("CMYK"), "TIFF"),
    "ycbcr tiff": encoded(random_picture().convert("YCbCr"), "TIFF"),
    "lab": encoded(random_picture().convert("LAB"), "TIFF"),
    "16 bits": encoded(Image.fromarray(WORDS)),
    "32 bits": encoded(Image.fromarray(WORDS.astype(np.int32)), "TIFF"),
    "floats": encoded(Image.fromarray(WORDS.astype(np.float32)), "TIFF"),
    "not finite": encoded(Image.fromarray(np.full((56, 84), np.nan, np.float32)), "TIFF"),
    "1 bit": encoded(random_picture().convert("1")),
    "palette": encoded(random_picture().convert("P")),
    "palette with transparency": encoded(random_picture().convert("P"), transparency=3),
    "a short palette": png_of(png_header(2, 1, 8, 3), (b"PLTE", b"\1\2\3"), (b"IDAT", zlib.compress(b"\0\0\xff"))),
    "grey with alpha": encoded(random_picture().convert("LA")),
    "exif of NULs": with_exif(bytes(100)),
    "exif that points outside": with_exif(b"II*\0\xff\xff\xff\xff"),
    "exif that points to itself": with_exif(b"II*\0\x08\0\0\0\x01\0\x69\x87\x04\0\x01\0\0\0\x08\0\0\0\x08\0\0\0"),
    "exif with too many entries": with_exif(b"MM\0*\0\0\0\x08\xff\xff" + bytes(60)),
    "exif cut": with_exif(b"II*\0\x08\0\0\0\x01"),
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(x) print\n",
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "html": b"<!doctype html><html>404</html>",
    "pdf": b"%PDF-1.7\n1 0 obj<</JS(app.alert(1))>>endobj",
    "ppm of negative size": b"P6 -1 5 255\n" + bytes(50),
    "ppm of endless size": b"P6 " + b"9" * 100_000 + b" 1 255\n",
    "ppm of no end": b"P3 2 2 255\n" + b"#" * 100_000,
}  # fmt: skip


def try_picture(data: bytes, path: Path) -> str:
    """Poses a question with the picture by both ways; the refusal, "" where there was none."""
    (path.parent / "picture.png").write_bytes(data)
    path.write_text(json.dumps({"problem": "a", "answer": "1", "image": "picture.png"}) + "\n")
    encoder = PromptEncoder(tiny_processor(), max_pixels=200_000)
    problem = open_problems(str(path))[0]
    began = time.process_time()
    said = ""
    try:
        encoder.check(problem)
        prompt = encoder.encode(original(problem), 0)
        assert prompt.images[0].mode == "RGB"
        assert prompt.pixel_values.isfinite().all()
    except UserError as error:
        said = str(error)
        assert said.startswith(f"{path}:0: ")
        assert "\n" not in said
        assert len(said) < 1000
    with contextlib.suppress(UserError):
        assert data_uri(data, 200_000).startswith("data:image/")
    assert time.process_time() - began < CPU_SECONDS
    return said


REFUSED = {
    "0 bytes": "is empty",
    "a bomb by its header": "900000000 pixels",
    "65,500 wide jpeg": "65500 x 1 pixels",
}
REFUSED |= {"postscript": "is no PNG", "svg": "is no PNG", "not finite": "not finite", "30,000 wide": "refuses"}
READ = (
    "1 x 1",
    "cmyk",
    "16 bits",
    "palette",
    "animated gif",
    "animated png",
    "exif of NULs",
    "exif cut",
    "1 bit",
    "lab",
)


@pytest.mark.parametrize("case", PICTURES)
def test_a_hostile_picture_is_a_prompt_or_a_line(case, tmp_path):
    TRIED["hostile pictures"] += 1
    said = try_picture(PICTURES[case], tmp_path / "a.jsonl")
    assert REFUSED.get(case, "") in said
    if case in READ:
        assert said == ""


def test_pictures_of_random_damage(tmp_path, budget):
    """Every format, bytes changed, cut out, doubled; also where the format's own lengths stand."""
    formats = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
    whole = {format: encoded(random_picture(20, 12), format) for format in formats}
    whole |= {f"{format}s": frames(format, 3) for format in ("GIF", "PNG", "WEBP", "TIFF")}
    whole |= {"16": encoded(Image.fromarray(WORDS)), "P": encoded(random_picture(20, 12).convert("P"))}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for draw in budget.draws("damaged pictures", 300):
            data = bytearray(whole[draw.choice(sorted(whole))])
            for _ in range(draw.choice((1, 2, 8))):
                place = draw.randrange(min(len(data), draw.choice((40, 200, len(data)))))
                data[place] = draw.choice((0, 1, 127, 128, 255, draw.randrange(256)))
            start = draw.randrange(len(data))
            if draw.random() < 0.2:
                del data[start:]
            elif draw.random() < 0.2:
                data[start:start] = data[: draw.randrange(200)]
            try_picture(bytes(data), tmp_path / "a.jsonl")
