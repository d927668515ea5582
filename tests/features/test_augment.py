"""The augmentation beside naive versions of its parts, and what each switch does."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rec.features import augment as module
from rec.features.augment import AugmentConfig, augment, normalise

OFF = AugmentConfig(min_area=1.0, flip=0.0, colour=0.0, grey=0.0, blur=0.0)


def _pictures(count: int = 8, height: int = 12, width: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (count, 3, height, width), generator=generator, dtype=torch.uint8)


def _run(config: AugmentConfig, pictures: Tensor, seed: int = 0) -> Tensor:
    return augment(pictures, torch.Generator().manual_seed(seed), config)


def test_resampling_equals_the_loop():
    start, extent, size = torch.tensor([1.3, 6.0]), torch.tensor([4.2, -5.0]), 7
    matrix = module._resample(start, extent, size)
    signal = torch.randn(size)
    for row in range(2):
        for i in range(size):
            place = float(start[row] + extent[row] * (i + 0.5) / size - 0.5)
            place = min(max(place, 0.0), size - 1.0)
            low = min(int(place), size - 2)
            share = place - low
            expected = (1 - share) * signal[low] + share * signal[low + 1]
            torch.testing.assert_close(matrix[row, i] @ signal, expected, rtol=1e-4, atol=1e-5)


def test_blur_is_a_normalised_gaussian_and_sigma_zero_is_none():
    eye = torch.eye(9).expand(2, 9, 9)
    blurred = module._blurred(eye, torch.tensor([0.0, 1.5]))
    torch.testing.assert_close(blurred[0], torch.eye(9))
    kernel = torch.tensor([math.exp(-((j - 4) ** 2) / (2 * 1.5**2)) for j in range(9)])
    torch.testing.assert_close(blurred[1, 4], kernel / kernel.sum())
    torch.testing.assert_close(blurred.sum(-1), torch.ones(2, 9))


def test_hue_keeps_brightness_and_turns_back():
    turn = torch.tensor([0.7, -2.0])
    matrix = module._hue(turn)
    colour = torch.rand(3)
    weights = torch.tensor(module._GREY)
    torch.testing.assert_close(weights @ (matrix[0] @ colour), weights @ colour)
    torch.testing.assert_close(
        matrix @ module._hue(-turn), torch.eye(3).expand(2, 3, 3), atol=1e-5, rtol=0
    )


def test_colour_matrix_equals_the_changes_one_after_another():
    """Against pixel-wise brightness, contrast, saturation and hue in the order that was drawn."""
    pictures = torch.rand(5, 3, 6, 6)
    config = AugmentConfig(colour=0.4, grey=0.5)
    draws = [module._Draw(5, torch.Generator().manual_seed(1), torch.device("cpu")) for _ in "ab"]
    matrix, shift = module._colours(draws[0], pictures.mean(dim=(-1, -2)), config)
    found = torch.einsum("nij,njhw->nihw", matrix, pictures) + shift[..., None, None]

    draw = draws[1]
    jitter = draw.chance(0.8)
    bright, contrast, saturation = (
        torch.where(jitter, draw.between(0.68, 1.32), 1.0) for _ in "abc"
    )
    turn = torch.where(jitter, draw.between(-0.2, 0.2) * (0.4 * 2 * math.pi), 0.0)
    order, to_grey = draw.order(4), draw.chance(0.5)
    weights = torch.tensor(module._GREY)
    for i in range(5):
        picture = pictures[i]
        for change in order:
            grey = torch.einsum("c,chw->hw", weights, picture).expand(3, -1, -1)
            if change == 0:
                picture = bright[i] * picture
            elif change == 1:
                picture = saturation[i] * picture + (1 - saturation[i]) * grey
            elif change == 2:
                picture = torch.einsum("ij,jhw->ihw", module._hue(turn[i : i + 1])[0], picture)
            else:
                picture = contrast[i] * picture + (1 - contrast[i]) * grey.mean()
        if to_grey[i]:
            picture = torch.einsum("c,chw->hw", weights, picture).expand(3, -1, -1)
        torch.testing.assert_close(found[i], picture, rtol=1e-4, atol=1e-5)


def test_a_flip_mirrors_the_view():
    pictures = _pictures(200, 12, 12)
    seen = _run(OFF, pictures)
    assert seen.shape == pictures.shape
    assert seen.dtype == torch.float32
    flipped = _run(OFF.model_copy(update={"flip": 1.0}), pictures)
    torch.testing.assert_close(flipped, seen.flip(-1), atol=1e-4, rtol=0)


def test_grey_pictures_have_one_channel():
    seen = _run(OFF.model_copy(update={"grey": 1.0}), _pictures())
    torch.testing.assert_close(seen[:, 0], seen[:, 1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [(12, 16), (96, 64)])
def test_views_stay_in_range_differ_and_repeat_with_the_seed(size: tuple[int, int]):
    pictures = _pictures(16, *size)
    one, again, other = (_run(AugmentConfig(), pictures, seed) for seed in (0, 0, 1))
    assert one.min() >= -1
    assert one.max() <= 1
    assert torch.equal(one, again)
    assert (one - other).flatten(1).abs().mean(1).min() > 1e-3


def test_crops_have_the_areas_and_aspects_asked_for():
    draw = module._Draw(4000, torch.Generator().manual_seed(0), torch.device("cpu"))
    down, across = module._crop(draw, 64, 64, AugmentConfig(min_area=0.25, flip=0.0))
    pixel = torch.arange(64.0)
    height, width = ((m[:, -1] @ pixel - m[:, 0] @ pixel) * 64 / 63 for m in (down, across))
    area = height * width / 64**2
    assert 0.2 < area.min() < 0.3
    assert area.max() <= 1.02
    assert 0.6 < area.mean() < 0.64  # uniform between 1/4 and 1, a little lost at the edges
    ratio = (width / height).log().abs()
    assert ratio.max() < math.log(4 / 3) + 0.05


def test_normalise_maps_bytes_and_fractions_alike():
    levels = torch.tensor([0, 51, 255], dtype=torch.uint8)
    torch.testing.assert_close(normalise(levels), torch.tensor([-1.0, -0.6, 1.0]))
    torch.testing.assert_close(normalise(levels), normalise(levels.float() / 255))
