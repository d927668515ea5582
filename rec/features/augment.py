"""SimCLR's augmentation of whole batches in torch, on any device, from one generator.

Each picture gets its own parameters. Crop, resize, flip and blur are linear and separable, so
together they are two matrices a picture, x -> A_h x A_w^T; the colour changes are affine in RGB,
so together they are one 3x4 matrix a picture. Departures from the torchvision original: colours
are clamped once at the end rather than after each change, hue turns in the YIQ plane (as in
kornia's and TensorFlow's approximations) rather than in HSV, and the order of the colour changes
is drawn once a batch.
"""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor

from rec.config import Config

_GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601
_YIQ = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))
_JITTER = 0.8  # probability of the colour changes
_LOG_ASPECT = math.log(4 / 3)


class AugmentConfig(Config):
    """Strength of the augmentation; the defaults are those of SimCLR."""

    min_area: float = Field(default=0.08, gt=0, le=1)  # smallest crop, as a share of the picture
    flip: float = Field(default=0.5, ge=0, le=1)  # probability; 0 where writing matters
    colour: float = Field(default=1.0, ge=0, le=1)  # strength of the colour changes
    grey: float = Field(default=0.2, ge=0, le=1)  # probability
    blur: float = Field(default=0.5, ge=0, le=1)  # probability


def normalise(pictures: Tensor) -> Tensor:
    """Pixels, uint8 of 0 to 255 or float of 0 to 1, to float32 of -1 to 1."""
    if pictures.dtype == torch.uint8:
        return pictures.float() / 127.5 - 1
    return pictures.float() * 2 - 1


def augment(pictures: Tensor, generator: torch.Generator, config: AugmentConfig) -> Tensor:
    """One random view of every picture (Chen et al. 2020, appendix A).

    Random crop of area (min_area, 1) and aspect 3/4 to 4/3 resized to the picture's own size,
    horizontal flip, brightness, contrast, saturation and hue with probability 0.8, grey, and
    Gaussian blur of sigma 0.1 to 2.

    Args:
        pictures: (N, 3, H, W) uint8.
        generator: the only source of randomness; it may live on another device.

    Returns:
        (N, 3, H, W) float32, normalised by `normalise`.
    """
    draw = _Draw(len(pictures), generator, pictures.device)
    height, width = pictures.shape[-2:]
    down, across = _crop(draw, height, width, config)
    sigma = torch.where(draw.chance(config.blur), draw.between(0.1, 2.0), 0.0)
    down, across = _blurred(down, sigma), _blurred(across, sigma)
    seen = down[:, None] @ (pictures.float() / 255) @ across[:, None].transpose(-1, -2)
    matrix, shift = _colours(draw, seen.mean(dim=(-1, -2)), config)
    coloured = torch.baddbmm(shift[..., None], matrix, seen.flatten(2)).view_as(seen)
    return normalise(coloured.clamp_(0, 1))


class _Draw:
    """Uniform numbers a picture, drawn where the generator lives."""

    def __init__(self, count: int, generator: torch.Generator, device: torch.device) -> None:
        self.count, self.generator, self.device = count, generator, device

    def between(self, low: float, high: float) -> Tensor:
        drawn = torch.rand(self.count, generator=self.generator, device=self.generator.device)
        return drawn.to(self.device) * (high - low) + low

    def chance(self, probability: float) -> Tensor:
        return self.between(0, 1) < probability

    def order(self, length: int) -> list[int]:
        drawn = torch.rand(length, generator=self.generator, device=self.generator.device)
        return drawn.argsort().tolist()


def _crop(draw: _Draw, height: int, width: int, config: AugmentConfig) -> tuple[Tensor, Tensor]:
    """Row and column matrices (N, H, H) and (N, W, W) of crop, bilinear resize and flip."""
    area = draw.between(config.min_area, 1.0) * (height * width)
    aspect = draw.between(-_LOG_ASPECT, _LOG_ASPECT).exp()
    crop_width = (area * aspect).sqrt().clamp(max=width)
    crop_height = (area / aspect).sqrt().clamp(max=height)
    top = draw.between(0, 1) * (height - crop_height)
    left = draw.between(0, 1) * (width - crop_width)
    flip = draw.chance(config.flip)
    start = torch.where(flip, left + crop_width, left)
    step = torch.where(flip, -crop_width, crop_width)
    return _resample(top, crop_height, height), _resample(start, step, width)


def _resample(start: Tensor, extent: Tensor, size: int) -> Tensor:
    """(N, size, size): row i interpolates linearly at start + extent (i + 1/2) / size.

    A crop is never larger than what it is resized to, so nothing needs smoothing against
    aliasing.
    """
    pixel = torch.arange(size, device=start.device, dtype=start.dtype)
    place = start[:, None] + extent[:, None] * ((pixel + 0.5) / size) - 0.5
    place = place.clamp(0, size - 1)
    return (1 - (place[:, :, None] - pixel).abs()).clamp_(min=0)


def _blurred(resample: Tensor, sigma: Tensor) -> Tensor:
    """Each picture's resampling followed by a Gaussian of `sigma` pixels, none where it is 0."""
    pixel = torch.arange(resample.shape[1], device=sigma.device, dtype=sigma.dtype)
    distance = (pixel[:, None] - pixel).square()
    kernel = torch.softmax(-distance / (2 * sigma.clamp(min=1e-2).square())[:, None, None], dim=-1)
    return kernel @ resample


def _colours(draw: _Draw, mean: Tensor, config: AugmentConfig) -> tuple[Tensor, Tensor]:
    """(N, 3, 3) and (N, 3): all colour changes of a picture of mean colour `mean` (N, 3)."""
    grey = mean.new_tensor(_GREY).expand(3, 3)
    eye = torch.eye(3, device=mean.device)
    jitter = draw.chance(_JITTER)
    strength = 0.8 * config.colour
    bright, contrast, saturation = (
        torch.where(jitter, draw.between(max(0.0, 1 - strength), 1 + strength), 1.0)[:, None, None]
        for _ in range(3)
    )
    turn = torch.where(jitter, draw.between(-0.2, 0.2) * (config.colour * 2 * math.pi), 0.0)
    linear = [bright * eye, saturation * eye + (1 - saturation) * grey, _hue(turn)]

    matrix = eye.expand(len(mean), 3, 3)
    shift = torch.zeros_like(mean)
    for change in draw.order(4):
        if change == 3:  # towards the picture's mean grey
            level = (grey @ (matrix @ mean[..., None] + shift[..., None]))[..., 0]
            matrix = contrast * matrix
            shift = contrast[..., 0] * shift + (1 - contrast[..., 0]) * level
        else:
            matrix = linear[change] @ matrix
            shift = (linear[change] @ shift[..., None])[..., 0]
    to_grey = torch.where(draw.chance(config.grey)[:, None, None], grey, eye)
    return to_grey @ matrix, (to_grey @ shift[..., None])[..., 0]


def _hue(turn: Tensor) -> Tensor:
    """(N, 3, 3) rotations of the chroma plane by `turn` radians."""
    yiq = turn.new_tensor(_YIQ)
    zero, one = torch.zeros_like(turn), torch.ones_like(turn)
    cos, sin = turn.cos(), turn.sin()
    rows = [one, zero, zero, zero, cos, -sin, zero, sin, cos]
    rotation = torch.stack(rows, dim=1).unflatten(1, (3, 3))
    return torch.linalg.inv(yiq) @ rotation @ yiq
