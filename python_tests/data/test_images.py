"""Images of every kind and condition become RGB pictures, or a message that says what is wrong."""

from __future__ import annotations

import base64
import io
import random
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps

from diva_engine.data import images as images_module
from diva_engine.data.images import image_size, load_image, read_image_sources, resize_to_pixels
from diva_engine.records import UserError
from python_tests.data.pictures import encoded, random_picture, random_png


def flat(mode: str, color, size: tuple[int, int] = (6, 4)) -> Image.Image:
    return Image.new(mode, size, color)


def sixteen_bit(value: int) -> Image.Image:
    return Image.fromarray(np.full((4, 6), value, dtype=np.uint16))


def palette(transparency: int | None = None) -> bytes:
    image = Image.new("P", (6, 4), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    return encoded(image) if transparency is None else encoded(image, transparency=transparency)


def animation() -> bytes:
    frames = [flat("RGB", color) for color in ("red", "blue")]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])


# encoded image, colour that every pixel must have
KINDS = {
    "RGB png": (encoded(flat("RGB", (10, 200, 30))), (10, 200, 30)),
    "one pixel": (encoded(flat("RGB", (10, 200, 30), (1, 1))), (10, 200, 30)),
    "grey": (encoded(flat("L", 77)), (77, 77, 77)),
    "black and white": (encoded(flat("1", 1)), (255, 255, 255)),
    "palette": (palette(), (10, 200, 30)),
    "transparent palette": (palette(transparency=1), (255, 255, 255)),
    "16-bit grey": (encoded(sixteen_bit(0x8080)), (128, 128, 128)),
    "16-bit grey, tiff": (encoded(sixteen_bit(0xFFFF), "TIFF"), (255, 255, 255)),
    "float grey": (encoded(Image.fromarray(np.full((4, 6), 0.5, dtype=np.float32)), "TIFF"), (128, 128, 128)),
    "transparent": (encoded(flat("RGBA", (10, 200, 30, 0))), (255, 255, 255)),
    "half transparent": (encoded(flat("RGBA", (0, 0, 0, 51))), (204, 204, 204)),
    "grey with alpha": (encoded(flat("LA", (0, 51))), (204, 204, 204)),
    "CMYK tiff": (encoded(flat("CMYK", (0, 255, 255, 0)), "TIFF"), (255, 0, 0)),
    "animated": (animation(), (255, 0, 0)),
    "bmp": (encoded(flat("RGB", (10, 200, 30)), "BMP"), (10, 200, 30)),
    "webp": (encoded(flat("RGB", (10, 200, 30)), "WEBP", lossless=True), (10, 200, 30)),
    "ppm": (encoded(flat("RGB", (10, 200, 30)), "PPM"), (10, 200, 30)),
}


@pytest.mark.parametrize("case", KINDS)
def test_every_kind_becomes_rgb(case):
    data, color = KINDS[case]
    image = load_image(data)
    assert image.mode == "RGB"
    assert image.getcolors() == [(image.width * image.height, color)]
    assert image_size(data) == image.size


def test_cmyk_jpeg_keeps_its_colours():
    red = load_image(encoded(flat("CMYK", (0, 255, 255, 0), (32, 32)), "JPEG", quality=95))
    assert np.abs(np.asarray(red).astype(int) - [255, 0, 0]).max() <= 4


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_stand_upright(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(random_picture(24, 16), "PNG", exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert load_image(data).tobytes() == expected.convert("RGB").tobytes()
    assert image_size(data) == expected.size


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"])
def test_the_size_is_told_without_decoding(format, monkeypatch):
    data = encoded(random_picture(24, 16), format)
    decoded = []
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: decoded.append(self))
    assert image_size(data) == (24, 16)
    assert not decoded


BROKEN_EXIF = {
    "nonsense": b"Exif\0\0nonsense",
    "endless offset": b"Exif\0\0II*\0\xff\xff\xff\xff",
    "orientation 99": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x63\0\0\0\0\0\0\0",
    "orientation as text": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x02\0\0\0x\0\0\0\0\0\0\0",
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's words on the damage
@pytest.mark.parametrize("case", BROKEN_EXIF)
def test_a_broken_exif_block_does_not_lose_the_picture(case):
    data = encoded(random_picture(24, 16), "JPEG", exif=BROKEN_EXIF[case])
    assert load_image(data).size == image_size(data) == (24, 16)


def png_header_of(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


BROKEN = {
    "no bytes": (b"", "is empty"),
    "text": (b"this is no image" * 10, "is no PNG, JPEG"),
    "html": (b"<!doctype html><html>404</html>", "is no PNG, JPEG"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "is no PNG, JPEG"),
    "truncated png": (random_png(64, 64)[:3000], "cannot be decoded"),
    "truncated jpeg": (encoded(random_picture(64, 64), "JPEG")[:1500], "cannot be decoded"),
    "bomb": (png_header_of(30_000, 30_000), "30000 x 30000 pixels|cannot be opened"),
    "wide": (encoded(flat("L", 9, (40_000, 1))), "40000 x 1 pixels; a side may have 32768"),
    "large": (png_header_of(9_000, 9_000), "has 9000 x 9000 pixels; at most 67108864"),
    "no pixels inside": (png_header_of(100, 100), "cannot be decoded"),
    "no width": (png_header_of(0, 10), "is no PNG|cannot be"),
    "not finite": (encoded(Image.fromarray(np.full((4, 6), np.nan, dtype=np.float32)), "TIFF"), "not finite"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_cannot_be_decoded_is_refused_in_words(case):
    data, message = BROKEN[case]
    with pytest.raises(UserError, match=message):
        load_image(data)


def test_an_image_30000_pixels_wide_is_read():
    assert load_image(encoded(flat("L", 9, (30_000, 2)))).size == (30_000, 2)


def test_a_file_beyond_the_bound_is_not_read(monkeypatch):
    monkeypatch.setattr(images_module, "MAX_ENCODED_BYTES", 100)
    with pytest.raises(UserError, match="bytes; at most 100 are read"):
        load_image(random_png())


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's words on the damage
@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"])
def test_damaged_files_never_end_in_anything_but_a_user_error(format):
    """300 files a format with bytes changed, cut out or cut off."""
    whole = encoded(random_picture(20, 12), format)
    draw = random.Random(format)
    refused = 0
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(draw.randint(1, 8)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        if draw.random() < 0.3:
            del data[draw.randrange(len(data)) :]
        try:
            image = load_image(bytes(data))
            assert image.mode == "RGB"
            image_size(bytes(data))
        except UserError:
            refused += 1
    assert refused > 0


SOURCES = {
    "nothing": (None, 0),
    "empty text": ("", 0),
    "empty list": ([], 0),
    "bytes": (random_png(), 1),
    "struct": ({"bytes": random_png(), "path": None}, 1),
    "struct with both": ({"bytes": random_png(), "path": "gone.png"}, 1),
    "list of structs": ([{"bytes": random_png()}, {"bytes": random_png()}], 2),
    "base64": (base64.b64encode(random_png()).decode(), 1),
    "wrapped base64": (base64.encodebytes(random_png()).decode(), 1),
    "base64 jpeg": (base64.b64encode(encoded(random_picture(), "JPEG")).decode(), 1),
    "data uri": ("data:image/png;base64," + base64.b64encode(random_png()).decode(), 1),
    "path": ("a.png", 1),
    "path in a folder": ("./sub/b.png", 1),
    "struct with a path": ({"bytes": None, "path": "a.png"}, 1),
    "paths": (["a.png", "sub/b.png"], 2),
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("a.png", "sub/b.png"):
        (tmp_path / name).write_bytes(random_png())
    return tmp_path


@pytest.mark.parametrize("case", SOURCES)
def test_every_form_of_a_cell_is_read(case, folder):
    cell, count = SOURCES[case]
    sources = read_image_sources(cell, folder)
    assert len(sources) == count
    for source in sources:
        assert load_image(source).size == (84, 56)


REFUSED_PATHS = {
    "parent": "../secret.png",
    "parent within": "sub/../../secret.png",
    "absolute": "/etc/passwd",
    "sibling of the same beginning": "../{name}-other/x.png",
}


@pytest.mark.parametrize("case", REFUSED_PATHS)
def test_no_path_leaves_the_folder(case, folder):
    path = REFUSED_PATHS[case].format(name=folder.name)
    with pytest.raises(UserError, match=r"lies outside .*; set data.image_dir"):
        read_image_sources(path, folder)
    with pytest.raises(UserError, match="lies outside"):
        load_image(path, folder)


def test_absolute_paths_within_the_folder_and_links_out_of_it_are_followed(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("blobs") / "blob"
    elsewhere.write_bytes(random_png())
    (folder / "link.png").symlink_to(elsewhere)
    for path in (str(folder / "a.png"), "link.png"):
        assert load_image(read_image_sources(path, folder)[0]).size == (84, 56)


BAD_CELLS = {
    "number": (7, "an image is int, not bytes, base64, a path or a struct"),
    "empty struct": ({"bytes": None, "path": None}, "an image is NoneType"),
    "broken base64": ("data:image/png;base64,@@@@", "broken base64"),
    "NUL in the path": ("a\0.png", "is not a path"),
}


@pytest.mark.parametrize("case", BAD_CELLS)
def test_cells_that_hold_no_image_are_refused(case, folder):
    cell, message = BAD_CELLS[case]
    with pytest.raises(UserError, match=message):
        read_image_sources(cell, folder)


def test_a_missing_file_is_named(folder):
    with pytest.raises(UserError, match=r"the image .*gone\.png does not exist; set data.image_dir"):
        load_image(read_image_sources("gone.png", folder)[0])


@pytest.mark.parametrize(
    ("size", "bounds", "expected"),
    [
        ((100, 50), (0, 0), (100, 50)),
        ((100, 50), (0, 5000), (100, 50)),
        ((100, 50), (0, 4999), (99, 49)),
        ((100, 50), (5000, 0), (100, 50)),
        ((100, 50), (5001, 0), (100, 50)),
        ((100, 50), (20_000, 0), (200, 100)),
        ((1000, 1), (0, 100), (316, 1)),
        ((64, 48), (512 * 512, 1024 * 1024), (591, 443)),
    ],
)
def test_sizes_follow_the_floor_rule(size, bounds, expected):
    assert resize_to_pixels(Image.new("RGB", size), *bounds).size == expected
