"""Describe an image by numbers that need no network: its hash, a thumbnail, its border, its file.

The perceptual hash is pHash (Zauner 2010): the signs of the lowest 8 x 8 frequencies of a 32 x 32 grey image
around their median. Mirroring an image only turns the sign of the odd horizontal frequencies, so the hash of
the mirrored image comes from the same transform.
"""

from dataclasses import dataclass
from io import BytesIO

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]

SIDE = 32
"""Side of the grey image that is transformed, in pixels."""
LOW = 8
"""Lowest frequencies of each direction that the hash keeps."""
GREY = 16
"""Side of the grey image that confirms what the hash suspects, in pixels."""
THUMBNAIL = 8
"""Side of the thumbnail in pixels."""
BORDER_SHARE = 0.04
"""Width of the border as a share of the shorter side, at least 2 pixels."""
SEGMENTS = 8
"""Parts of each of the four sides whose colours describe the border."""
CAMERA = (ExifTags.Base.Make, ExifTags.Base.Model, ExifTags.Base.Software)


@dataclass(frozen=True, eq=False)
class Look:
    """The description of one image."""

    phash: int
    """64 bits."""
    mirrored: int
    """The hash of the mirrored image."""
    grey: Bytes
    """The image in grey, shrunk to GREY x GREY, (GREY, GREY)."""
    detail: Bytes
    """The image in grey, in which crops are looked for, (SIDE, SIDE)."""
    is_flat: bool
    """True if the image has next to no contrast; its hash then says nothing."""
    thumbnail: Bytes
    """Colours of the thumbnail, (THUMBNAIL * THUMBNAIL * 3,)."""
    border: Bytes
    """Colours of the border's parts, inner and outer half, (2 * 4 * SEGMENTS * 3,)."""
    colour: Bytes
    """Mean and standard deviation of red, green and blue, (6,)."""
    file: Floats
    """Logarithms of bytes, width and height, then bytes per pixel, (4,)."""
    camera: str
    """Make, model and software in the file's EXIF data; empty if there are none."""


def look(image: Image.Image, content: bytes) -> Look:
    """Return the description of an image.

    Args:
        image: RGB.
        content: the bytes of its file.
    """
    small = image.resize((SIDE, SIDE), Image.Resampling.BILINEAR, reducing_gap=2.0)
    detail = np.asarray(small.convert("L"))
    grey = detail.astype(np.float64)
    pixels = np.asarray(small, dtype=np.float64)
    frequencies = (_DCT @ grey @ _DCT.T)[:LOW, :LOW]
    width, height = image.size
    size = len(content)
    return Look(
        phash=_bits(frequencies),
        mirrored=_bits(frequencies * _MIRROR),
        grey=np.asarray(small.convert("L").resize((GREY, GREY), Image.Resampling.BOX)),
        detail=detail,
        is_flat=bool(grey.std() < 2),
        thumbnail=np.asarray(small.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)).ravel(),
        border=_border(image),
        colour=np.concatenate([pixels.mean(axis=(0, 1)), pixels.std(axis=(0, 1))]).astype(np.uint8),
        file=np.array([*np.log([max(1, size), width, height]), min(8.0, size / (width * height))]),
        camera=_camera(content),
    )


def _cosines() -> Floats:
    """Return the lowest LOW rows of the orthonormal DCT-II of SIDE points, (LOW, SIDE)."""
    k, n = np.arange(LOW)[:, None], np.arange(SIDE)
    rows = np.sqrt(2 / SIDE) * np.cos(np.pi * k * (2 * n + 1) / (2 * SIDE))
    rows[0] /= np.sqrt(2)
    return np.asarray(rows)


_DCT = _cosines()
_MIRROR = np.where(np.arange(LOW) % 2, -1.0, 1.0)


def _bits(frequencies: Floats) -> int:
    above = frequencies > np.median(frequencies)
    return int.from_bytes(np.packbits(above).tobytes(), "big")


def _border(image: Image.Image) -> Bytes:
    """Return the mean colours of the parts of the four sides, in two rings."""
    width, height = image.size
    thick = max(2, round(BORDER_SHARE * min(width, height)))
    across, down = min(thick, width), min(thick, height)
    sides = (
        ((0, 0, width, down), (SEGMENTS, 2)),
        ((0, height - down, width, height), (SEGMENTS, 2)),
        ((0, 0, across, height), (2, SEGMENTS)),
        ((width - across, 0, width, height), (2, SEGMENTS)),
    )
    means = [image.resize(size, Image.Resampling.BOX, box=box) for box, size in sides]
    return np.concatenate([np.asarray(mean).ravel() for mean in means])


def _camera(content: bytes) -> str:
    """Return make, model and software of the EXIF data; empty if the file has none or it is damaged."""
    try:
        with Image.open(BytesIO(content)) as image:
            tags = image.getexif()
        return " ".join(str(tags[tag]).strip("\0 ") for tag in CAMERA if tag in tags)
    except Exception:  # Pillow raises almost anything on damaged data, and the bytes may be no image file
        return ""
