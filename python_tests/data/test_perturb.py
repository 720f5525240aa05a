"""Perturbations do what their names say to the right pixels, and are a function of the key."""

from __future__ import annotations

from typing import get_args, get_type_hints

import numpy as np
import pytest
from PIL import Image

from diva_engine.data.perturb import perturb
from diva_engine.records import ImageOperation
from python_tests.data.pictures import random_picture

NAMES = get_args(get_type_hints(ImageOperation)["name"])


def flat(color: tuple[int, int, int], size: tuple[int, int] = (120, 90)) -> Image.Image:
    return Image.new("RGB", size, color)


def one(image: Image.Image, name: str, strength: float, key: int = 0) -> np.ndarray:
    return np.asarray(perturb([image], [ImageOperation(name, strength)], key)[0]).astype(int)


@pytest.mark.parametrize("name", NAMES)
def test_equal_keys_give_equal_pixels_and_sizes_stay(name):
    strength = 30.0 if name == "rotate" else 0.45
    picture = random_picture(61, 40)
    before = picture.tobytes()
    first, second = one(picture, name, strength), one(picture, name, strength)
    assert (first == second).all()
    assert first.shape == (40, 61, 3)
    assert (first != np.asarray(picture)).any()
    assert picture.tobytes() == before


@pytest.mark.parametrize("name", ["gaussian", "speckle", "salt_pepper", "occlusion"])
def test_other_keys_give_other_noise(name):
    picture = random_picture(61, 40)
    assert (one(picture, name, 0.45, key=1) != one(picture, name, 0.45, key=2)).any()


def test_the_images_of_a_question_get_their_own_noise():
    first, second = perturb([flat((99, 99, 99))] * 2, [ImageOperation("gaussian", 0.3)], key=1)
    assert first.tobytes() != second.tobytes()


@pytest.mark.parametrize("name", NAMES)
def test_red_stays_red(name):
    """No operation swaps channels or makes greys of colours."""
    pixels = one(flat((250, 120, 10)), name, 15.0 if name == "rotate" else 0.3)
    red, green, blue = np.median(pixels.reshape(-1, 3), axis=0)
    assert abs(red - 250) <= 20
    assert abs(green - 120) <= 8
    assert abs(blue - 10) <= 12


def test_gaussian_noise_has_its_strength():
    noise = one(flat((128, 128, 128)), "gaussian", 0.45) - 128
    assert noise.std() == pytest.approx(64 * 0.45, rel=0.03)
    assert abs(noise.mean()) < 1


def test_salt_and_pepper_hits_whole_pixels_everywhere_and_leaves_the_others():
    """The authors' version hits single channels of the top third and binarises the rest."""
    ramp = np.tile(np.arange(256, dtype=np.uint8)[None, :, None], (240, 1, 3))
    pixels = one(Image.fromarray(ramp), "salt_pepper", 0.4)
    hit = (pixels != ramp).any(axis=2)
    assert hit.mean() == pytest.approx(0.1, abs=0.01)
    assert all(third.mean() == pytest.approx(0.1, abs=0.02) for third in np.split(hit, 3))
    colors = {tuple(color) for color in pixels[hit]}
    assert colors == {(0, 0, 0), (255, 255, 255)}


@pytest.mark.parametrize(("degrees", "place"), [(90.0, (45, 20)), (180.0, (20, 45)), (-90.0, (45, 70))])
def test_rotation_turns_by_degrees_counter_clockwise(degrees, place):
    """A dot right of the centre: up, left, down."""
    picture = flat((255, 255, 255), (91, 91))
    picture.paste((0, 0, 0), (68, 43, 73, 48))  # centred on (70, 45)
    pixels = one(picture, "rotate", degrees)
    rows, columns = np.nonzero(pixels[:, :, 0] < 128)
    assert (round(columns.mean()), round(rows.mean())) == place


def test_rotation_fills_the_corners_with_the_colour_of_the_edge():
    pixels = one(flat((200, 150, 100)), "rotate", 30.0)
    assert (pixels == [200, 150, 100]).all()


def test_blur_keeps_the_mean_and_takes_the_contrast():
    picture = random_picture(128, 128)
    pixels = one(picture, "blur", 0.45)
    assert pixels.mean() == pytest.approx(np.asarray(picture).mean(), abs=1)
    assert pixels.std() < 0.5 * np.asarray(picture).std()


def test_no_operations_change_nothing():
    picture = random_picture()
    assert perturb([picture], [], key=1)[0].tobytes() == picture.tobytes()
