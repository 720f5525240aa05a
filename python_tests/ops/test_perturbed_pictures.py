"""What the image perturbations do to a picture: how far, to which pixels, to which colours."""

from __future__ import annotations

import pytest
import torch

from python_tests.ops.pictures import EXACT, OPERATIONS, flat_image, noise_image, one


def test_gaussian_noise_has_its_std_and_keeps_the_mean():
    noise = one(flat_image((300, 300, 3), [128, 128, 128]), "gaussian", 0.45).double() - 128
    assert noise.std().item() == pytest.approx(64 * 0.45, rel=0.01)
    assert abs(noise.mean().item()) < 0.2
    assert ((noise / noise.std()) ** 4).mean().item() == pytest.approx(3, abs=0.1)


def test_speckle_grows_with_the_pixel():
    result = [one(flat_image((200, 200, 1), [value]), "speckle", 0.45).double() for value in (0, 40, 80)]
    assert result[0].abs().max() == 0
    assert [pixels.std().item() for pixels in result[1:]] == pytest.approx([9, 18], rel=0.02)


def test_blur_takes_its_share_of_the_shorter_side():
    edge = flat_image((128, 256, 1), [0])
    edge[:, 128:] = 255
    line = one(edge, "blur", 0.5)[64, :, 0].double()  # std 0.5 * 128 / 64 = 1 pixel
    spread = line.diff() / 255
    place = torch.arange(255, dtype=torch.float64) - 127
    assert (spread * place**2).sum().sqrt().item() == pytest.approx(1.0, abs=0.03)


def test_low_resolution_divides_the_sides():
    image = noise_image((60, 60, 1))
    small = image.view(20, 3, 20, 3).double().mean(dim=(1, 3)).round()  # strength 1: a third
    assert torch.equal(one(image, "low_resolution", 1.0)[1::3, 1::3, 0].double(), small)


def test_occlusion_covers_its_share_in_the_proportions_of_the_image():
    hidden = one(flat_image((100, 200, 3), [9, 9, 9]), "occlusion", 0.36)[..., 0] == 128
    rows, columns = hidden.any(dim=1), hidden.any(dim=0)
    assert (rows.sum().item(), columns.sum().item()) == (30, 60)
    assert hidden.sum().item() == 1800


def test_occlusion_falls_anywhere():
    tops = [
        int((one(flat_image((64, 64, 1), [0]), "occlusion", 1.0, key=key) == 128).any(dim=1).int().argmax())
        for key in range(60)
    ]
    assert min(tops) <= 2
    assert max(tops) >= 30


# ---- none of the faults of the authors' versions ----

COLOUR = [250, 120, 10]


@pytest.mark.parametrize("name", OPERATIONS)
def test_red_stays_red(name):
    """Theirs swaps red and blue in four of the operations."""
    strength = 30.0 if name == "rotate" else 0.3
    result = one(flat_image((80, 80, 3), COLOUR), name, strength).reshape(-1, 3).double().median(dim=0).values
    assert (result - torch.tensor(COLOUR)).abs().max() <= 12


@pytest.mark.parametrize("name", sorted(EXACT))
def test_alpha_is_kept(name):
    """Theirs adds the noise to alpha too."""
    image = noise_image((40, 50, 4))
    result = one(image, name, 0.45)
    assert torch.equal(result[..., 3], image[..., 3])
    assert not torch.equal(result[..., :3], image[..., :3])


@pytest.mark.parametrize("name", ["rotate", "blur", "low_resolution"])
def test_an_opaque_image_stays_opaque(name):
    image = torch.cat([noise_image((40, 50, 3)), flat_image((40, 50, 1), [255])], dim=2)
    assert one(image, name, OPERATIONS[name].strength, expand_canvas=True)[..., 3].min() == 255


def test_salt_and_pepper_hits_every_third_of_the_image_alike():
    """Theirs hits the first third of the rows only."""
    grey = flat_image((300, 200, 3), [128, 128, 128])
    hit = (one(grey, "salt_pepper", 0.4) != 128).any(dim=2).double()
    assert [third.mean().item() for third in hit.chunk(3)] == pytest.approx([0.1] * 3, abs=0.01)
    assert [third.mean().item() for third in hit.chunk(3, dim=1)] == pytest.approx([0.1] * 3, abs=0.01)


def test_salt_and_pepper_leaves_the_other_pixels_as_they_were():
    """Theirs makes the image black and white first."""
    ramp = torch.arange(1, 255, dtype=torch.uint8)[None, :, None].expand(100, -1, 3).contiguous()
    result = one(ramp, "salt_pepper", 0.4)
    untouched = (result != 0) & (result != 255)
    assert torch.equal(result[untouched], ramp[untouched])
    assert untouched.double().mean().item() == pytest.approx(0.9, abs=0.01)


def test_specks_have_no_colour():
    """Theirs hits single channels."""
    result = one(flat_image((200, 200, 3), [100, 110, 120]), "salt_pepper", 0.4).reshape(-1, 3)
    assert set(map(tuple, result.tolist())) == {(0, 0, 0), (255, 255, 255), (100, 110, 120)}
    assert (result == 0).sum().item() == pytest.approx((result == 255).sum().item(), rel=0.1)


@pytest.mark.parametrize("degrees", [90.0, 180.0, 270.0, -90.0])
def test_the_strength_of_a_rotation_is_its_angle(degrees):
    """Theirs turns by 0.30 or 0.45 degrees where the prompt speaks of a rotated image. Ours is counter-clockwise."""
    image = noise_image((31, 50, 3))
    turned = torch.rot90(image, int(degrees // 90), dims=(0, 1))
    assert torch.equal(one(image, "rotate", degrees, expand_canvas=True), turned)


def test_a_rotation_by_30_degrees_moves_a_dot_there():
    image = flat_image((101, 101, 1), [255])
    image[49:52, 89:92] = 0  # 40 right of the centre
    rows, columns, _ = (one(image, "rotate", 30.0) < 128).nonzero(as_tuple=True)
    assert (rows.double().mean().item(), columns.double().mean().item()) == pytest.approx(
        (50 - 20, 50 + 34.64), abs=0.3
    )


def test_the_corners_of_a_rotation_have_the_mean_of_the_border():
    image = noise_image((40, 60, 3))
    border = torch.cat([image[0], image[-1], image[1:-1, 0], image[1:-1, -1]]).double().mean(dim=0).round()
    assert one(image, "rotate", 45.0, expand_canvas=True)[0, 0].tolist() == border.tolist()


@pytest.mark.parametrize("name", ["gaussian", "speckle", "salt_pepper", "blur", "low_resolution", "occlusion"])
@pytest.mark.parametrize("strength", [0.30, 0.45])
def test_the_paper_s_strengths_do_not_destroy_the_picture(name, strength):
    """Theirs drowns it in noise of 115 grey levels. A picture with bold shapes stays like itself."""
    rows, columns = torch.meshgrid(torch.arange(256), torch.arange(256), indexing="ij")
    image = (((rows // 32 + columns // 32) % 2) * 150 + 50).to(torch.uint8)[..., None].expand(-1, -1, 3).contiguous()
    result = one(image, name, strength)
    both = torch.stack([image.reshape(-1), result.reshape(-1)]).double()
    assert 0.8 < torch.corrcoef(both)[0, 1].item() < 0.9999


@pytest.mark.parametrize("name", ["gaussian", "speckle"])
def test_noise_does_not_wrap_around(name):
    assert one(flat_image((64, 64, 3), [255, 255, 255]), name, 1.0).double().mean() > 150
    assert one(flat_image((64, 64, 3), [1, 1, 1]), name, 1.0).double().mean() < 100


# ---- at the door ----
