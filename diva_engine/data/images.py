"""Image sources of every form -> RGB pictures. Whatever cannot be decoded is a UserError with the reason."""

from __future__ import annotations

import base64
import binascii
import io
import math
import os
import stat
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from diva_engine.data.wording import brief, reason_of
from diva_engine.records import UserError

ImageSource = bytes | str | Path

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")  # no format that runs another program, as EPS does
MAX_ENCODED_BYTES = 256 * 2**20
MAX_SIDE = 32_768  # pixels
MAX_IMAGE_PIXELS = 2**26  # 8192 x 8192, 200 MB decoded: a larger one is a decompression bomb or a mistake
BASE64_BEGINNINGS = ("iVBORw0KGgo", "/9j/", "R0lGOD", "UklGR", "Qk", "SUkq", "TU0AK")  # PNG, JPEG, GIF, WEBP, BMP, TIFF
MIN_BASE64_LENGTH = 64  # shorter texts are paths

# What Pillow raises on broken files. The bomb warning is among them for programs that turn warnings into errors.
_PILLOW_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    IndexError,
    KeyError,
    EOFError,
    MemoryError,
    struct.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)

_EXIF_ORIENTATION = 0x0112
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image_sources(value: Any, image_dir: Path) -> list[ImageSource]:
    """A cell of an image column -> encoded bytes or absolute paths, in order.

    Accepts None, one image or a list of them; an image is a struct with `bytes` or `path`, bytes, base64 (plain or a
    data URI), or a path. Relative paths start at `image_dir`, and no path may leave it.
    """
    if value is None or value == "":
        return []
    if isinstance(value, list):
        return [_read_source(one, image_dir) for one in value]
    return [_read_source(value, image_dir)]


def _read_source(value: Any, image_dir: Path) -> ImageSource:
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, (bytes, bytearray)):
        return bytes(value)
    if not isinstance(value, str) or not value:
        raise UserError(f"an image is {type(value).__name__}, not bytes, base64, a path or a struct of them")
    encoded = _base64_part(value)
    if encoded is None:
        return resolve_path(value, image_dir)
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise UserError(f"an image is broken base64 ({error})") from error


def _base64_part(text: str) -> str | None:
    """The base64 of a data URI or of a bare text that begins as an encoded image does; None for a path."""
    if text.startswith("data:"):
        return text.partition(",")[2]
    if len(text) >= MIN_BASE64_LENGTH and text.startswith(BASE64_BEGINNINGS) and "." not in text[:MIN_BASE64_LENGTH]:
        return "".join(text.split())  # some writers wrap the lines
    return None


def resolve_path(path: str | Path, image_dir: str | Path) -> Path:
    """The absolute path of an image; one that lies outside `image_dir` is refused.

    The check is on the names only: links inside the folder may point elsewhere, as the hub's cache does.
    """
    root = os.path.abspath(os.path.expanduser(image_dir))
    try:
        absolute = os.path.abspath(os.path.join(root, path))
    except ValueError as error:  # a NUL byte
        raise UserError(f"the image path {brief(repr(str(path)))} is not a path") from error
    if "\0" in absolute:
        raise UserError(f"the image path {brief(repr(str(path)))} is not a path")
    if os.path.commonpath([root, absolute]) != root:
        raise UserError(
            f"the image path {brief(path)} lies outside {root}; set data.image_dir to the folder of the images"
        )
    return Path(absolute)


def load_image(source: ImageSource, image_dir: str | Path | None = None) -> Image.Image:
    """Decodes one image to RGB: first frame, upright by its EXIF tag, transparency on white, 16 bits scaled to 8.

    Args:
        source: encoded bytes, or a path. With `image_dir`, relative paths start there and no path may leave it.

    Raises:
        UserError: missing, too large, truncated, or no image.
    """
    with _opened(source, image_dir) as image:
        try:
            image.load()
            upright = _upright(image)
            return _to_rgb(upright)
        except _PILLOW_ERRORS as error:
            raise UserError(f"{_name(source)} cannot be decoded ({reason_of(error)})") from error


def image_size(source: ImageSource, image_dir: str | Path | None = None) -> tuple[int, int]:
    """Width and height after `load_image`, from the header alone."""
    with _opened(source, image_dir) as image:
        width, height = image.size
        if image.format == "PNG" and "exif" not in image.info:  # Pillow would decode the pixels to look behind them
            return width, height
        return (height, width) if _orientation(image) >= 5 else (width, height)


def data_uri(source: ImageSource, max_pixels: int = 0) -> str:
    """The picture for a server that is sent images inside requests, at most `max_pixels` large (0: any size).

    Upright PNG and JPEG within the bound go as they are; all else is decoded, as `load_image` does, and sent as PNG.
    """
    image = load_image(source)  # a broken one is told here, not by the server
    small = resize_to_pixels(image, max_pixels=max_pixels)
    with _opened(source, None) as stored:
        is_sendable = stored.format in ("PNG", "JPEG") and stored.mode in ("RGB", "L") and _orientation(stored) == 1
        kind = str(stored.format).lower()
    if small is image and is_sendable:
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
    else:
        buffer = io.BytesIO()
        small.save(buffer, "PNG")
        kind, data = "png", buffer.getvalue()
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def resize_to_pixels(image: Image.Image, min_pixels: int = 0, max_pixels: int = 0) -> Image.Image:
    """EasyR1's rule: outside the bounds, both sides times sqrt(bound / area), rounded down. 0 is no bound."""
    size = size_within(image.size, min_pixels, max_pixels)
    return image if size == image.size else image.resize(size)


def size_within(size: tuple[int, int], min_pixels: int = 0, max_pixels: int = 0) -> tuple[int, int]:
    """Width and height as `resize_to_pixels` makes them."""
    width, height = size
    if max_pixels and width * height > max_pixels:
        scale = math.sqrt(max_pixels / (width * height))
        width, height = max(1, int(width * scale)), max(1, int(height * scale))
    if min_pixels and width * height < min_pixels:
        scale = math.sqrt(min_pixels / (width * height))
        width, height = int(width * scale), int(height * scale)
    return width, height


def _opened(source: ImageSource, image_dir: str | Path | None) -> Image.Image:
    """The image with its header read, its size checked and its pixels not yet decoded."""
    file: io.BytesIO | Path
    if isinstance(source, bytes):
        num_bytes, file = len(source), io.BytesIO(source)
    else:
        path = resolve_path(source, image_dir) if image_dir else Path(source)
        num_bytes, file = _file_size(path), path
    if num_bytes == 0:
        raise UserError(f"{_name(source)} is empty (0 bytes)")
    if num_bytes > MAX_ENCODED_BYTES:
        raise UserError(f"{_name(source)} has {num_bytes} bytes; at most {MAX_ENCODED_BYTES} are read")
    try:
        image = Image.open(file, formats=FORMATS)
    except UnidentifiedImageError as error:
        raise UserError(f"{_name(source)} is no {', '.join(FORMATS)} image") from error
    except _PILLOW_ERRORS as error:
        raise UserError(f"{_name(source)} cannot be opened ({reason_of(error)})") from error
    width, height = image.size
    if max(width, height) > MAX_SIDE:
        raise UserError(f"{_name(source)} has {width} x {height} pixels; a side may have {MAX_SIDE}")
    if width * height > MAX_IMAGE_PIXELS:
        raise UserError(f"{_name(source)} has {width} x {height} pixels; at most {MAX_IMAGE_PIXELS} are decoded")
    return image


def _file_size(path: Path) -> int:
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"the image {brief(path)} does not exist; set data.image_dir to the folder of the images"
        ) from None
    except OSError as error:  # a name that is too long, no permission, a loop of links
        raise UserError(f"the image {brief(path)} cannot be opened ({error.strerror})") from None
    if not stat.S_ISREG(status.st_mode):  # a folder, a pipe, a device: reading could wait for ever
        raise UserError(f"the image {brief(path)} is no file")
    return status.st_size


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) where the tag is absent or the EXIF block broken."""
    try:
        value = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # a broken block fails in many ways inside the parser, and none of them spoils the pixels
        return 1
    return value if value in _TRANSPOSE else 1


def _upright(image: Image.Image) -> Image.Image:
    orientation = _orientation(image)
    return image.transpose(_TRANSPOSE[orientation]) if orientation in _TRANSPOSE else image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_eight_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """16-bit and float greys scaled to 0..255; plain `convert` would clip them to white."""
    pixels = np.asarray(image).astype(np.float64)
    if not np.isfinite(pixels).all():
        raise ValueError("its pixels are not finite")
    if image.mode == "F" and pixels.max() <= 1:
        pixels = pixels * 255
    elif pixels.max() > 255:
        pixels = pixels / 257  # 65535 -> 255
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))


def _name(source: ImageSource) -> str:
    return "the image" if isinstance(source, bytes) else f"the image {brief(source)}"
