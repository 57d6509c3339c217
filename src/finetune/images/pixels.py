"""Turn a decoded image into the square that the model sees, and draw the random numbers of its views.

Shapes: B images of a batch, S side of the square in pixels.
"""

import hashlib
import math
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from finetune.datasets.decode import decode

Pixels = npt.NDArray[np.uint8]
Box = tuple[float, float, float, float]
"""Left, upper, right and lower edge in pixels of the source image, not rounded."""

CROP_SHARE = 0.875
"""Side of the centre crop as a share of the resized image: 224 / 256, as torchvision evaluates."""
DECODED_SIDE = 2.0
"""Large JPEGs are decoded at a fraction of their size, but at least at this multiple of the side that they
are resized to. Pillow's `thumbnail` does the same with `reducing_gap=2.0`; the result is close to resizing
the full image."""
CROP_RATIOS = (3 / 4, 4 / 3)
"""Width / height of a random crop, as in torchvision's RandomResizedCrop."""
CROP_ATTEMPTS = 10
"""Draws of a box before the centre is taken, if all exceed the image, as in RandomResizedCrop."""


def load_image(path: str | Path, image_size: int, *, whole: bool) -> Tensor:
    """Return one image file as evaluation sees it, uint8 (3, S, S); `whole` omits the centre crop.

    Raises:
        DataError: the file is missing or broken.
    """
    image = decode(Path(path), evaluation_needs(image_size, whole))
    return torch.from_numpy(evaluation(image, image_size, whole))


def normalise(images: Tensor, mean: Sequence[float] | Tensor, std: Sequence[float] | Tensor) -> Tensor:
    """Return (images / 255 - mean) / std as float32 of the same shape, on the device of the images.

    The channels of images come last in memory, as in the weights of every backbone that reads images, since
    convolutions then run faster.

    Args:
        images: uint8 (B, 3, S, S), or clips (B, 3, T, S, S).
        mean: mean of each channel, on the scale 0..1; a tensor on the same device saves a copy per batch.
        std: standard deviation of each channel, in the same form.
    """
    mean, std = (
        torch.as_tensor(value, dtype=torch.float32, device=images.device).view(3, *[1] * (images.dim() - 2))
        for value in (mean, std)
    )
    # Compute channel by channel, then change the layout: twice as fast as on interleaved channels.
    turned = images.to(torch.float32).div_(255).sub_(mean).div_(std)
    return turned.contiguous(memory_format=torch.channels_last) if images.dim() == 4 else turned


def evaluation_needs(side: int, whole: bool) -> int:
    """Return the pixels that the shorter side of an image must keep when it is decoded for evaluation."""
    return math.ceil(DECODED_SIDE * (side if whole else round(side / CROP_SHARE)))


def evaluation(image: Image.Image, side: int, whole: bool) -> Pixels:
    """Return the centre of an image as uint8 (3, S, S), or the whole image.

    The result is that of resizing the shorter side to round(S / 0.875) and cutting out the centre. Only the
    centre is resized, so sizes need no rounding, and a strip of 6000 x 10 pixels costs no memory.
    """
    width, height = image.size
    if whole:
        return resize(image, (0, 0, width, height), side)
    cut = min(width, height) * side / round(side / CROP_SHARE)
    left, upper = (width - cut) / 2, (height - cut) / 2
    return resize(image, (left, upper, left + cut, upper + cut), side)


def resize(image: Image.Image, box: Box, side: int) -> Pixels:
    """Return the part of an RGB image inside `box`, resized bilinearly with antialiasing, uint8 (3, S, S)."""
    square = image.resize((side, side), Image.Resampling.BILINEAR, box=box)
    return np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1))


def random_box(width: int, height: int, scale: float, draw: random.Random) -> Box:
    """Return a random box with a share of the area in [scale, 1] and width / height within CROP_RATIOS."""
    low, high = CROP_RATIOS
    for _ in range(CROP_ATTEMPTS):
        area = width * height * draw.uniform(scale, 1)
        ratio = math.exp(draw.uniform(math.log(low), math.log(high)))
        w, h = math.sqrt(area * ratio), math.sqrt(area / ratio)
        left, upper = draw.random() * (width - w), draw.random() * (height - h)
        if w <= width and h <= height:
            return left, upper, min(left + w, width), min(upper + h, height)
    w, h = min(width, height * high), min(height, width / low)
    left, upper = (width - w) / 2, (height - h) / 2
    return left, upper, left + w, upper + h


def draws_of(seed: int, path: str, view: int) -> random.Random:
    """Return the generator of one view of one image; its draws decide on mirroring, crop, augmentation."""
    key = f"{seed}\0{view}\0{path}".encode("utf-8", "surrogateescape")
    return random.Random(int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little"))
