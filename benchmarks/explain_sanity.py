"""Check the maps of `explain` for every family of backbones; the output is docs/explain-sanity.md.

    python -m benchmarks.explain_sanity --images flowers5 --weights mobilenet_v2=FILE squeezenet1_0=FILE

Without pretrained weights a network is drawn at random. Its features still tell coloured discs apart, and
where the evidence lies is known. With weights, images of a folder with train/ and val/ are used. Either way
only the head is made: logistic regression on pooled features.

Shapes: N images, (3, S, S) pixels, D pooled features, C classes.
"""

import argparse
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from finetune.explain import deletion
from finetune.explain.maps import maps, resolution
from finetune.images.pixels import load_image, normalise
from finetune.model import backbones, weights
from finetune.model.backbones import Backbone
from finetune.model.head import MLPHead, ReplaceHead
from finetune.model.strategies import TransferModel
from finetune.settings import WeightsSettings

SIDE = 128
SMALLEST = {
    "alexnet": SIDE,
    "vgg11": SIDE,
    "squeezenet1_1": SIDE,
    "resnet18": SIDE,
    "wide_resnet50_2": SIDE,
    "resnext50_32x4d": SIDE,
    "regnet_x_400mf": SIDE,
    "regnet_y_400mf": SIDE,
    "convnext_tiny": SIDE,
    "densenet121": SIDE,
    "mobilenet_v2": SIDE,
    "mobilenet_v3_small": SIDE,
    "mnasnet0_5": SIDE,
    "shufflenet_v2_x0_5": SIDE,
    "efficientnet_b0": SIDE,
    "efficientnet_v2_s": SIDE,
    "googlenet": SIDE,
    "inception_v3": 139,
    "vit_b_16": SIDE,
    "swin_t": SIDE,
    "swin_v2_t": SIDE,
    "maxvit_t": 224,
}
"""The smallest backbone of each family, and the side of the images that it sees here."""
TRAIN, TEST, DISC_TEST = 40, 32, 16
"""Training images of each class, and images whose maps are measured: photographs, and discs."""
BATCH = 16
DRAWS = 3
"""Times that weights are drawn anew."""
HEAD, ALL, BETTER = 0.5, 0.3, 0.75
"""Largest Spearman after the head, and after all weights, are drawn anew; least share of images on which
deletion falls faster than in random order."""
DISCS = ((200, 60, 60), (60, 170, 60), (70, 90, 210), (200, 180, 50))
"""Colours of the discs, one class each."""
HEADER = """\
# Do the maps mean anything?

This page is written by `python -m benchmarks.explain_sanity`; [explaining.md](explaining.md) says what maps
are.

For each backbone of the table, `grad-cam` on images that the model answers right, at most {test}:

- **head, all**: rank correlation (Spearman) of the maps with those after the head, or all weights, were
  drawn anew, mean of {draws} draws (Adebayo et al., NeurIPS 2018). A map that stays the same does not depend
  on what was learned. Goal: below {head} and {all}.
- **deletion, random**: mean probability of the answer while parts are blurred, those marked most first, or in
  the order of random maps that are as smooth; **faster**: share of the images on which the map's order is the
  faster one. Goal: at least {better:.0%}.
- **inside**: share of the images with the map's maximum inside the disc, where it is known; **chance**: the
  disc's share of the image.

A row without weights, if there is one, is a network as it is drawn at random, with a head that tells coloured
discs apart: the evidence is known, and what is checked is that the map of the family is taken at the right
place. A miss is marked with `!`.

| backbone | weights | images | head | all | deletion | random | faster | inside | chance |
|---|---|---|---|---|---|---|---|---|---|
"""


@dataclass(frozen=True)
class Images:
    """Images of one task."""

    train: Tensor
    """Normalised (N, 3, S, S)."""
    labels: Tensor
    test: Tensor
    test_labels: Tensor
    inside: Tensor | None
    """Bool (N, S, S): where the evidence of a test image lies, if that is known."""


@dataclass(frozen=True)
class Row:
    """One row of the table."""

    name: str
    origin: str
    images: int
    head: float
    all: float
    deletion: float
    random: float
    faster: float
    inside: float | None
    chance: float | None

    def text(self) -> str:
        """Return the row as Markdown."""
        told = [
            _marked(self.head, ".2f", self.head < HEAD),
            _marked(self.all, ".2f", self.all < ALL),
            f"{self.deletion:.2f}",
            f"{self.random:.2f}",
            _marked(self.faster, ".0%", self.faster >= BETTER),
            "" if self.inside is None else f"{self.inside:.0%}",
            "" if self.chance is None else f"{self.chance:.0%}",
        ]
        return f"| {self.name} | {self.origin} | {self.images} | {' | '.join(told)} |"


def _marked(value: float, shown: str, good: bool) -> str:
    return format(value, shown) + ("" if good else " !")


def discs(side: int) -> Images:
    """Return images of a coloured disc on grey noise, one class for each colour."""
    draw = np.random.default_rng(0)
    count = TRAIN * len(DISCS) + 2 * DISC_TEST
    labels = np.arange(count) % len(DISCS)
    pixels = draw.normal(128, 12, (count, side // 4, side // 4, 1)).repeat(4, 1).repeat(4, 2)
    pixels = np.pad(pixels, ((0, 0), (0, side % 4), (0, side % 4), (0, 0)), mode="edge").repeat(3, 3)
    radius = side / 6
    centres = draw.uniform(radius, side - radius, (count, 2))
    rows, columns = np.mgrid[:side, :side]
    inside = np.hypot(rows - centres[:, :1, None], columns - centres[:, 1:, None]) < radius
    pixels = np.where(inside[..., None], np.array(DISCS)[labels][:, None, None], pixels)
    images = torch.from_numpy(pixels.clip(0, 255).astype(np.uint8)).permute(0, 3, 1, 2)
    x = normalise(images, weights.IMAGENET_MEAN, weights.IMAGENET_STD)
    train, said = TRAIN * len(DISCS), torch.from_numpy(labels)
    return Images(x[:train], said[:train], x[train:], said[train:], torch.from_numpy(inside[train:]))


def photos(folder: Path, side: int) -> Images:
    """Return the first images of each class of a folder with train/ and val/."""
    classes = sorted(path.name for path in (folder / "train").iterdir() if path.is_dir())

    def read(split: str, each: int) -> tuple[Tensor, Tensor]:
        paths = [
            (p, k) for k, name in enumerate(classes) for p in sorted((folder / split / name).iterdir())[:each]
        ]
        pixels = torch.stack([load_image(path, side, whole=False) for path, _ in paths])
        x = normalise(pixels, weights.IMAGENET_MEAN, weights.IMAGENET_STD)
        return x, torch.tensor([label for _, label in paths])

    return Images(*read("train", 2 * TRAIN), *read("val", 2 * TEST // len(classes)), None)


def random_backbone(name: str, seed: int, images: Tensor) -> Backbone:
    """Return a backbone with random weights whose batch norm knows the statistics of the images."""
    torch.manual_seed(seed)
    drawn = backbones.build(name)
    norms = [module for module in drawn.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    if norms:
        drawn.train()
        with torch.no_grad():
            drawn.blocks(images[:BATCH])
    return drawn.eval()


@torch.no_grad()
def features(backbone: Backbone, x: Tensor) -> Tensor:
    """Return pooled features (N, D)."""
    return torch.cat([backbone.pool(backbone.blocks(part)) for part in x.split(BATCH)])


def with_head(backbone: Backbone, images: Images) -> TransferModel:
    """Return the backbone with a head that was fitted on its pooled features."""
    pooled = features(backbone, images.train).double().numpy()
    mean, std = pooled.mean(0), pooled.std(0) + 1e-6 * np.abs(pooled).max()
    fitted = LogisticRegression(C=0.1, max_iter=500).fit((pooled - mean) / std, images.labels.numpy())
    model = headless(backbone, len(fitted.classes_))
    last = model.head.new[-1]
    assert isinstance(last, nn.Linear)
    weight = fitted.coef_ / std
    with torch.no_grad():
        last.weight.copy_(torch.from_numpy(weight))
        last.bias.copy_(torch.from_numpy(fitted.intercept_ - weight @ mean))
    return model


def headless(backbone: Backbone, classes: int) -> TransferModel:
    """Return the backbone, frozen, with a new head."""
    head = ReplaceHead(backbone.pool, MLPHead(backbone.features, 0, classes, 0.0))
    return TransferModel(backbone, len(backbone.blocks), head).eval()


def redrawn(model: TransferModel, seed: int) -> TransferModel:
    """Return the model with another head of the same size."""
    twin = copy.copy(model)
    twin._modules = dict(model._modules)
    twin.head = copy.deepcopy(model.head)
    last = twin.head.new[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        drawn = torch.randn(last.weight.shape, generator=torch.Generator().manual_seed(seed))
        last.weight.copy_(drawn * last.weight.std())
    return twin


def in_batches(model: TransferModel, x: Tensor, classes: Tensor) -> Tensor:
    """Return maps (N, S, S)."""
    return torch.cat([maps(model, *part) for part in zip(x.split(BATCH), classes.split(BATCH), strict=True)])


def correlation(one: Tensor, other: Tensor) -> float:
    """Return the mean rank correlation of maps in 16 x 16 cells; a map without contrast counts as 0."""
    cells = [torch.nn.functional.adaptive_avg_pool2d(m[:, None], 16).flatten(1).numpy() for m in (one, other)]
    found = [
        float(spearmanr(a, b).statistic) if a.std() > 0 and b.std() > 0 else 0.0
        for a, b in zip(*cells, strict=True)
    ]
    return float(np.mean(found))


def measure(name: str, backbone: Backbone, images: Images, origin: str) -> Row:
    """Return the row of one backbone."""
    model = with_head(backbone, images)
    most = TEST if images.inside is None else DISC_TEST

    def probabilities(x: Tensor) -> Tensor:
        return torch.cat([model(part) for part in x.split(BATCH)]).softmax(1)

    with torch.no_grad():
        right = (probabilities(images.test).argmax(1) == images.test_labels).nonzero()[:most, 0]
    x, classes = images.test[right], images.test_labels[right]
    made = in_batches(model, x, classes)
    heads = [in_batches(redrawn(model, seed), x, classes) for seed in range(1, DRAWS + 1)]
    others = [
        in_batches(headless(random_backbone(name, seed, images.train), 4 + int(classes.max())), x, classes)
        for seed in range(1, DRAWS + 1)
    ]
    low, chance = (
        deletion.area(probabilities, x, classes, made),
        deletion.random_area(probabilities, x, classes, resolution(model, x, "grad-cam")),
    )
    inside = None if images.inside is None else images.inside[right]
    return Row(
        name,
        origin,
        len(right),
        float(np.mean([correlation(made, other) for other in heads])),
        float(np.mean([correlation(made, other) for other in others])),
        float(low.mean()),
        float(chance.mean()),
        float((low < chance).float().mean()),
        None
        if inside is None
        else float(inside.flatten(1)[torch.arange(len(x)), made.flatten(1).argmax(1)].float().mean()),
        None if inside is None else float(inside.float().mean()),
    )


def rows(chosen: list[str], given: dict[str, str], folder: Path | None) -> Iterator[Row]:
    """Yield the rows of the table."""
    for name, file in given.items():
        assert folder is not None, "--weights goes with --images"
        loaded = weights.load(name, WeightsSettings(file=str(Path(file).absolute())))
        backbone = weights.backbone(name, loaded).eval()
        yield measure(name, backbone, photos(folder, SIDE), "ImageNet")
    for name in chosen:
        images = discs(SMALLEST[name])
        yield measure(name, random_backbone(name, 0, images.train), images, "none")


def main() -> None:
    """Print the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbones", nargs="*", default=list(SMALLEST), choices=list(SMALLEST))
    parser.add_argument("--images", type=Path, help="folder with train/ and val/, for --weights")
    parser.add_argument("--weights", nargs="*", default=[], metavar="BACKBONE=FILE")
    asked = parser.parse_args()
    told = {"test": TEST, "draws": DRAWS, "head": HEAD, "all": ALL, "better": BETTER}
    print(HEADER.format(**told), end="", flush=True)
    for row in rows(asked.backbones, dict(pair.split("=", 1) for pair in asked.weights), asked.images):
        print(row.text(), flush=True)


if __name__ == "__main__":
    main()
