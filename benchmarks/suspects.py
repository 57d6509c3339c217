"""How well wrong labels, near-duplicates and shortcuts are found where they were planted.

    python -m benchmarks.suspects --images DIR --weights FILE > docs/suspects.md

DIR is a folder with train/ and val/ of photographs, FILE has the weights of mobilenet_v2. Everything that is
planted is drawn from seeds. Shapes: N images, D pooled features, C classes.
"""

import argparse
import io
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageEnhance, ImageOps
from sklearn.metrics import average_precision_score
from torch import Tensor

from finetune.exact import held_out
from finetune.exact.rows import Rows
from finetune.images.pixels import evaluation, normalise
from finetune.model import weights
from finetune.model.backbones import Backbone
from finetune.settings import WeightsSettings
from finetune.suspects import duplicates, labels, shortcuts
from finetune.suspects.looks import Look, look

BACKBONE, SIDE = "mobilenet_v2", 128
SEEDS = 5
SHARES = (0.03, 0.05, 0.10)
"""Shares of the training labels that are changed."""
COPIES = 40
"""Altered copies of each kind."""
MANY = 10_000
"""Images of the timed search."""
HEAD = f"""\
# Suspects: what was planted, and what was found

This page is written by `python -m benchmarks.suspects --images DIR --weights FILE > docs/suspects.md`, with
the photographs of flowers5 (5 classes, 1,000 + 300) and ImageNet's weights of {BACKBONE}, frozen, at
{SIDE} pixels. [data.md](data.md) says how `check` shows these findings.
"""
ALTERED: dict[str, Callable[[Image.Image, np.random.Generator], Image.Image]] = {
    "JPEG quality 20": lambda image, _: Image.open(io.BytesIO(coded(image, quality=20))),
    "mirrored": lambda image, _: ImageOps.mirror(image),
    "25 % brighter": lambda image, _: ImageEnhance.Brightness(image).enhance(1.25),
    "64 pixels": lambda image, _: image.resize((64, 64)),
    "text on it": lambda image, _: captioned(image),
    "14 % of each side cropped": lambda image, draw: cropped(image, 0.86, draw),
    "20 % of each side cropped": lambda image, draw: cropped(image, 0.80, draw),
    "14 % cropped, mirrored, JPEG 50": lambda image, draw: Image.open(
        io.BytesIO(coded(ImageOps.mirror(cropped(image, 0.86, draw)), quality=50))
    ),
}
ASKED = 6
"""The first kinds are those that a search for copies must find."""


def coded(image: Image.Image, quality: int = 90, **how: Any) -> bytes:
    """Return an image as a JPEG file."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality, **how)
    return file.getvalue()


def cropped(image: Image.Image, keeps: float, draw: np.random.Generator) -> Image.Image:
    """Return a window with this share of each side, somewhere in the image."""
    width, height = round(keeps * image.width), round(keeps * image.height)
    left, top = draw.integers(image.width - width + 1), draw.integers(image.height - height + 1)
    return image.crop((left, top, left + width, top + height))


def captioned(image: Image.Image) -> Image.Image:
    """Return an image with a line of text on it."""
    image = image.copy()
    ImageDraw.Draw(image).text(
        (image.width // 8, image.height // 2), "copyright by me", "white", font_size=24
    )
    return image


def described(image: Image.Image) -> Look:
    """Return the description of an image as its file has it."""
    content = coded(image)
    return look(Image.open(io.BytesIO(content)).convert("RGB"), content)


class Images:
    """Photographs, their labels, and what the frozen backbone makes of them."""

    def __init__(self, folder: Path, backbone: Backbone) -> None:
        self.backbone = backbone
        self.paths = sorted(path for path in folder.glob("*/*") if path.suffix == ".jpg")
        names = sorted({path.parent.name for path in self.paths})
        self.labels = torch.tensor([names.index(path.parent.name) for path in self.paths])
        self.images = [Image.open(path).convert("RGB") for path in self.paths]
        self.features = self.features_of(self.images)

    @torch.no_grad()
    def features_of(self, images: list[Image.Image]) -> Tensor:
        """Return pooled features (N, D)."""
        found = []
        for start in range(0, len(images), 64):
            pixels = [
                torch.from_numpy(evaluation(image, SIDE, False)) for image in images[start : start + 64]
            ]
            x = normalise(torch.stack(pixels), weights.IMAGENET_MEAN, weights.IMAGENET_STD)
            found.append(self.backbone.pool(self.backbone.blocks(x)))
        return torch.cat(found)


def wrong_labels(images: Images) -> Iterator[str]:
    """Yield the lines on changed labels."""
    yield "\n## Wrong labels\n"
    yield f"A share of the training labels is changed, {SEEDS} draws each, and the images are ranked as"
    yield "`check --suspects` does it. Precision at k: share of changed ones among the first k, where k were"
    yield "changed."
    yield "A random list has the share itself for both. Goals at 5 %: .65 and .70.\n"
    yield "| changed | precision at k | average precision | standard error |"
    yield "|---:|---:|---:|---:|"
    count, classes = len(images.labels), int(images.labels.max()) + 1
    for share in SHARES:
        k, found = round(share * count), []
        for seed in range(SEEDS):
            draw = torch.Generator().manual_seed(seed)
            changed = torch.randperm(count, generator=draw)[:k]
            said = images.labels.clone()
            said[changed] = (said[changed] + torch.randint(1, classes, (k,), generator=draw)) % classes
            plain = torch.zeros(count, dtype=torch.bool)
            rows = Rows(images.features, None, torch.arange(count), said, torch.ones(count), plain, classes)
            probabilities = held_out.probabilities(rows).numpy()
            truth = np.isin(np.arange(count), changed.numpy())
            given = probabilities[np.arange(count), said.numpy()]
            top = [one.place for one in labels.rank(probabilities, said.tolist())[:k]]
            found.append((truth[top].mean(), average_precision_score(truth, -given)))
        (precision, average), error = np.mean(found, axis=0), np.std(found, axis=0, ddof=1) / SEEDS**0.5
        yield f"| {share:.0%} | {precision:.2f} | {average:.2f} | {error[0]:.2f}, {error[1]:.2f} |"


def copies(train: Images, val: Images) -> Iterator[str]:
    """Yield the lines on near-duplicates."""
    yield "\n## Near-duplicates\n"
    yield f"{COPIES} altered copies of each kind among the 1,000 training images, found by the hash alone, as"
    yield "`check` does without a network, and with the features that `check --suspects` has.\n"
    yield "| copies | hash alone | hash and features |"
    yield "|---|---:|---:|"
    own = [described(image) for image in train.images]
    total = np.zeros(2)
    for place, (name, alter) in enumerate(ALTERED.items()):
        draw = np.random.default_rng(place)
        chosen = draw.permutation(len(own))[:COPIES]
        made = [alter(train.images[i], draw).convert("RGB") for i in chosen]
        looks = [*own, *(described(image) for image in made)]
        features = torch.cat([train.features, train.features_of(made)]).numpy()
        wanted = {(int(i), len(own) + number) for number, i in enumerate(chosen)}
        found = [
            len(wanted & {(pair.first, pair.second) for pair in duplicates.near(looks, given)})
            for given in (None, features)
        ]
        total += np.array(found) * (place < ASKED)
        yield f"| {name} | {found[0] / COPIES:.0%} | {found[1] / COPIES:.0%} |"
    share = total / (ASKED * COPIES)
    yield f"| the first {ASKED} together (goal: 95 %) | {share[0]:.0%} | {share[1]:.0%} |"
    yield "\nPairs among the images as they are; more than two that are none would be too many:\n"
    whole = [*train.paths, *val.paths]
    looks = [*own, *(described(image) for image in val.images)]
    features = torch.cat([train.features, val.features]).numpy()
    for pair in duplicates.near(looks, features):
        one, other = whole[pair.first], whole[pair.second]
        names = " and ".join(f"`{'/'.join(path.parts[-3:])}`" for path in (one, other))
        facts = f"{pair.bits} bits apart, cosine {pair.cosine:.2f}, correlation {pair.correlation:.2f}"
        yield f"- {names}: {facts}"


def timed(train: Images) -> Iterator[str]:
    """Yield the line on the time of a search among many images."""
    draw = np.random.default_rng(0)
    many = [cropped(train.images[i % len(train.images)], 0.6, draw) for i in range(MANY)]
    files = [coded(image) for image in many]
    features = draw.normal(size=(MANY, train.features.shape[1])).astype(np.float32)
    features += 2 * train.features.numpy()[np.arange(MANY) % len(train.images)]
    began, spent = time.monotonic(), time.process_time()
    with ThreadPoolExecutor(2) as pool:
        looks = list(pool.map(lambda file: look(Image.open(io.BytesIO(file)).convert("RGB"), file), files))
    read = time.monotonic() - began
    duplicates.near(looks, features)
    took, cpu = time.monotonic() - began, time.process_time() - spent
    yield (
        f"\n{MANY:,} images (parts of the training images, so that many are alike): {took:.0f} s beside "
        f"other work, of which {read:.0f} s to decode and describe them, and {cpu:.0f} s of processor time. "
        "Features are not counted, as they are there. Goal: a minute."
    )


def bordered(image: Image.Image, label: int) -> bytes:
    """Return an image with a border in the colour of its class."""
    image, width = image.copy(), image.width
    colour = ("red", "lime", "blue", "yellow", "white")[label]
    ImageDraw.Draw(image).rectangle((0, 0, width - 1, image.height - 1), outline=colour, width=4)
    return coded(image)


def marked(image: Image.Image, label: int) -> bytes:
    """Return an image with a watermark if it is of class 1."""
    image = image.copy()
    if label == 1:
        corner = (image.width - 70, image.height - 18, image.width - 1, image.height - 1)
        ImageDraw.Draw(image).rectangle(corner, fill="white")
    return coded(image)


def resized(image: Image.Image, label: int) -> bytes:
    """Return an image whose size goes with its class."""
    return coded(image.resize((180 + 24 * label,) * 2))


def photographed(image: Image.Image, label: int) -> bytes:
    """Return an image whose camera goes with its class."""
    exif = Image.Exif()
    exif[0x010F], exif[0x0110] = "Maker", f"Model {label}"
    return coded(image, exif=exif)


def nuisances(train: Images) -> Iterator[str]:
    """Yield the lines on shortcuts."""
    yield "\n## Shortcuts\n"
    yield "Balanced accuracy by the thing alone, and the point from which `check` warns; chance is 20 %.\n"
    yield f"| planted | {' | '.join(shortcuts.TESTS)} | warnings |"
    yield f"|---|{'---:|' * len(shortcuts.TESTS)}---|"
    said = train.labels.tolist()
    planted: dict[str, Callable[[Image.Image, int], bytes]] = {
        "nothing": lambda image, _: coded(image),
        "a coloured border": bordered,
        "a watermark on one class": marked,
        "another size for each class": resized,
        "another camera for each class": photographed,
    }
    limits = {name: 0.2 + 0.8 * test.limit for name, test in shortcuts.TESTS.items()}
    for name, plant in planted.items():
        files = [plant(image, label) for image, label in zip(train.images, said, strict=True)]
        looks = [look(Image.open(io.BytesIO(file)).convert("RGB"), file) for file in files]
        told = {found.name: found for found in shortcuts.find(looks, said)}
        every = {found.name: found.accuracy for found in shortcuts.measured(looks, said)}
        cells = [f"{every[test]:.0%}" if test in every else "" for test in shortcuts.TESTS]
        words = [one.name + " (one class)" * (len(one.classes) == 1) for one in told.values()]
        yield f"| {name} | {' | '.join(cells)} | {', '.join(words) or 'none'} |"
    yield f"| *warns from* | {' | '.join(f'{limits[test]:.0%}' for test in shortcuts.TESTS)} | |"


def main() -> None:
    """Print the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", required=True, type=Path, help="folder with train/ and val/")
    parser.add_argument("--weights", required=True, type=Path, help="weights of mobilenet_v2")
    asked = parser.parse_args()
    loaded = weights.load(BACKBONE, WeightsSettings(file=str(asked.weights.absolute())))
    backbone = weights.backbone(BACKBONE, loaded).eval()
    train, val = (Images(asked.images / split, backbone) for split in ("train", "val"))
    print(HEAD)
    for part in (wrong_labels(train), copies(train, val), timed(train), nuisances(train)):
        for line in part:
            print(line, flush=True)


if __name__ == "__main__":
    main()
