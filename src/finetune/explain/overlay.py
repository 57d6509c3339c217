"""Draw maps over images.

Shapes: images uint8 (3, S, S), maps (S, S) within 0..1.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from torch import Tensor

from finetune import safe_text

COLOURS = np.array(
    [(0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)], dtype=np.float64
)
"""Five colours of the map `inferno`, from nothing to most; lightness grows with the value."""
STRENGTH = 0.65
"""Opacity of the colour where the map is 1."""
LEAST_SIDE = 192
"""Pictures of smaller images are enlarged to this side."""
CAPTION = 18
"""Height of a caption in pixels."""


def over(image: Tensor, marked: Tensor) -> Image.Image:
    """Return an image in grey with a map on it, in full colour where the map is 1."""
    pixels = np.asarray(plain(image).convert("L").convert("RGB"), dtype=np.float64)
    values = marked.clamp(0, 1).numpy().astype(np.float64)
    opacity = STRENGTH * np.sqrt(values)[..., None]
    mixed = (1 - opacity) * pixels + opacity * _coloured(values)
    return Image.fromarray(mixed.round().astype(np.uint8))


def plain(image: Tensor) -> Image.Image:
    """Return an image as it is."""
    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())


def strip(panels: Sequence[tuple[str, Image.Image]]) -> Image.Image:
    """Return pictures side by side, each below its caption."""
    side = max(LEAST_SIDE, *(picture.width for _, picture in panels))
    whole = Image.new("RGB", (side * len(panels), side + CAPTION), "white")
    draw = ImageDraw.Draw(whole)
    for place, (caption, picture) in enumerate(panels):
        whole.paste(picture.resize((side, side), Image.Resampling.BICUBIC), (place * side, CAPTION))
        draw.text((place * side + 4, 2), _fitting(draw, safe_text.terminal(caption), side - 8), fill="black")
    return whole


def _fitting(draw: ImageDraw.ImageDraw, caption: str, width: int) -> str:
    """Return a caption without what its panel has no room for."""
    if draw.textlength(caption) <= width:
        return caption
    while caption and draw.textlength(caption + "...") > width:
        caption = caption[:-1]
    return caption + "..."


def _coloured(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    at = np.linspace(0, 1, len(COLOURS))
    return np.stack([np.interp(values, at, COLOURS[:, channel]) for channel in range(3)], axis=-1)
