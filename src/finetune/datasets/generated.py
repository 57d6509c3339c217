"""Generate samples with text and clips, to try both without files: kinds `captions` and `motion`.

`captions`: the shape is in the image, its size in the text. Each class is a shape of one size, drawn at any
size, so that neither part alone tells the class.

`motion`: a shape crosses the picture from left to right, or from right to left. The frames of both classes
are the same but for their order.
"""

import random
from dataclasses import dataclass

from PIL import Image, ImageDraw

from finetune.datasets.sources import Source
from finetune.errors import DataError
from finetune.settings import SampleSettings

SIDE = 48
"""Side of a generated image in pixels."""
PER_CLASS = 100
SHAPES = ("circle", "square", "triangle")
SIZES = {"small": ("tiny", "little", "small"), "large": ("huge", "big", "large")}
THINGS = ("one", "shape", "thing", "object")
MOTIONS = ("leftwards", "rightwards")


def captions(data: SampleSettings) -> Source:
    """Return images of shapes with texts that tell their size; one text in ten is empty.

    Raises:
        DataError: `data` names a path.
    """
    _no_path(data)
    given: dict[str, list[str]] = {}
    texts: dict[str, str] = {}
    for shape in SHAPES:
        for size, words in SIZES.items():
            paths = [f"captions/{shape}-{size}-{number}" for number in range(PER_CLASS)]
            given[f"{size} {shape}"] = paths
            for path in paths:
                draw = random.Random(path)
                told = f"a {draw.choice(words)} {draw.choice(THINGS)}"
                texts[path] = "" if draw.random() < 0.1 else told
    return Source({"train": given}, _Generated(), whole=True, texts=texts if data.text else None)


def motion(data: SampleSettings) -> Source:
    """Return clips of shapes that move to the left or to the right.

    The two clips of one number are a group: they show the same frames.

    Raises:
        DataError: `data` names a path.
    """
    _no_path(data)
    given = {name: [f"motion/{name}-{number}" for number in range(PER_CLASS)] for name in MOTIONS}
    groups = {path: path.rpartition("-")[2] for paths in given.values() for path in paths}
    return Source({"train": given}, _Generated(), whole=True, groups=groups)


def _no_path(data: SampleSettings) -> None:
    if data.path is not None:
        raise DataError(
            f"data.path: kind {data.kind!r} generates its samples, got {data.path!r}. Remove data.path."
        )


@dataclass(frozen=True)
class _Generated:
    """Reader of both kinds."""

    def open(self, path: str, at_least: int | None = None) -> Image.Image:
        return self.frames(path, 1)[0]

    def frames(self, path: str, count: int, at_least: int | None = None) -> list[Image.Image]:
        kind, _, name = path.partition("/")
        if kind == "captions":
            return [_still(name)] * count
        return [_moved(name, 2 * number + 1, 2 * count) for number in range(count)]

    def sample(self, path: str) -> tuple[int, bytes]:
        content = self.content(path)
        return len(content), content

    def content(self, path: str) -> bytes:
        return b"".join(image.tobytes() for image in self.frames(path, 2))


def _still(name: str) -> Image.Image:
    draw = random.Random(name)
    centre = (draw.uniform(20, 28), draw.uniform(20, 28))
    return _drawn(name.split("-")[0], centre, draw.uniform(12, 18), draw)


def _moved(name: str, place: int, end: int) -> Image.Image:
    # Clips of both classes with one number are the same frames in the two orders, to the last pixel.
    way, number = name.split("-")
    draw = random.Random(int(number))
    shape, height = draw.choice(SHAPES), draw.uniform(12, 36)
    along = (place if way == "rightwards" else end - place) / end
    return _drawn(shape, (6 + 36 * along, height), 6, draw)


def _drawn(shape: str, centre: tuple[float, float], radius: float, draw: random.Random) -> Image.Image:
    image = Image.new("RGB", (SIDE, SIDE), tuple(draw.randrange(0, 60) for _ in range(3)))
    colour = tuple(draw.randrange(180, 256) for _ in range(3))
    (x, y), pen = centre, ImageDraw.Draw(image)
    box = (x - radius, y - radius, x + radius, y + radius)
    if shape == "circle":
        pen.ellipse(box, fill=colour)
    elif shape == "square":
        pen.rectangle(box, fill=colour)
    else:
        pen.polygon([(x, box[1]), (box[0], box[3]), (box[2], box[3])], fill=colour)
    return image
