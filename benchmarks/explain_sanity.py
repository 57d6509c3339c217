"""Check the maps of `explain` for every family of backbones; the output is docs/explain-sanity.md.

    python -m benchmarks.explain_sanity --images flowers5 --weights mobilenet_v2=FILE squeezenet1_0=FILE

With pretrained weights, images of a folder with train/ and val/ are used, and only the head is made: logistic
regression on pooled features. Without them a network is drawn at random and trained, for a minute at most, to
tell coloured discs apart, so that it has learned something and where the evidence lies is known.

Shapes: N images, (3, S, S) pixels, D pooled features, C classes.
"""

import argparse
import copy
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from finetune.explain import deletion
from finetune.explain.maps import blurred, maps, resolution
from finetune.images.pixels import load_image, normalise
from finetune.model import backbones, weights
from finetune.model.backbones import Backbone
from finetune.model.head import MLPHead, ReplaceHead
from finetune.model.strategies import TransferModel
from finetune.settings import WeightsSettings

SIDE, SMALL = 128, 96
SMALLEST = {
    "alexnet": SIDE,
    "vgg11": SMALL,
    "squeezenet1_1": SIDE,
    "resnet18": SMALL,
    "wide_resnet50_2": SMALL,
    "resnext50_32x4d": SMALL,
    "regnet_x_400mf": SMALL,
    "regnet_y_400mf": SMALL,
    "convnext_tiny": SMALL,
    "densenet121": SMALL,
    "mobilenet_v2": SMALL,
    "mobilenet_v3_small": SMALL,
    "mnasnet0_5": SMALL,
    "shufflenet_v2_x0_5": SMALL,
    "efficientnet_b0": SMALL,
    "efficientnet_v2_s": SMALL,
    "googlenet": SMALL,
    "inception_v3": 139,
    "vit_b_32": SMALL,
    "swin_t": SMALL,
    "swin_v2_t": SMALL,
    "maxvit_t": 224,
}
"""The smallest backbone of each family, and the side of the images that it sees here."""
TRAIN, TEST, DISC_TEST = 40, 32, 12
"""Training photographs of half a class, and images whose maps are measured: photographs, and discs."""
LEAST_STEPS, MOST_STEPS, LOOK_EVERY = 40, 200, 20
"""Batches of discs on which a network is trained: until it has enough other images right, or the most."""
TRAIN_BATCH, ENOUGH = 8, 0.95
SLOW = {"alexnet": 3e-4, "vgg11": 1e-4, "squeezenet1_1": 3e-4, "convnext_tiny": 5e-4, "maxvit_t": 5e-4}
SLOW |= {"vit_b_32": 3e-4, "swin_t": 5e-4, "swin_v2_t": 5e-4}
RATE = 2e-3
"""Learning rate of AdamW, for those that are not slower."""
BATCH = 16
DRAWS = 3
"""Times that weights are drawn anew."""
HEAD, ALL, BETTER = 0.5, 0.3, 0.75
"""Largest Spearman after the head, and after all weights, are drawn anew; least share of images on which
deletion falls faster than in random order."""
DISCS = ((200, 60, 60), (60, 170, 60), (70, 90, 210), (200, 180, 50))
"""Colours of the discs, one class each. A last class has none: noise, or a disc that is blurred away."""
RADIUS = 1 / 8
"""Radius of a disc as a share of the image's side."""
HEADER = """\
# Do the maps mean anything?

This page is written by `python -m benchmarks.explain_sanity`; [explaining.md](explaining.md) says what maps
are.

For one backbone of each family, `grad-cam` on images that the model answers right, at most {test}:

- **head, all**: rank correlation (Spearman) of the maps with those after the head, or all weights, were
  drawn anew, mean of {draws} draws (Adebayo et al., NeurIPS 2018). A map that stays the same does not depend
  on what was learned. Goal: below {head} and {all}.
- **deletion, random**: mean probability of the answer while parts are blurred, those marked most first, or in
  the order of random maps that are as smooth; **faster**: share of the images on which the map's order is the
  faster one. Goal: at least {better:.0%}.
- **inside**: share of the images with the map's maximum in the disc, enlarged by half a cell of the map;
  **chance**: the share of the image that this is.
- **right**: share of the test images that the network has right.

`ImageNet` weights see photographs of flowers, with a linear head. There are no such weights here for the
other families: their networks were trained from random weights, for at most {steps} batches of {batch}
images, to tell discs of four colours on noise from one another and from noise without a disc. Where the
evidence lies is known there. A miss is marked with `!`.

| backbone | weights | right | images | head | all | deletion | random | faster | inside | chance |
|---|---|---|---|---|---|---|---|---|---|---|
"""


@dataclass(frozen=True)
class Images:
    """Images of one task."""

    x: Tensor
    """Normalised (N, 3, S, S)."""
    labels: Tensor
    inside: Tensor | None = None
    """Bool (N, S, S): where the evidence lies, if that is known."""


@dataclass(frozen=True)
class Row:
    """One row of the table."""

    name: str
    origin: str
    right: float
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
        return f"| {self.name} | {self.origin} | {self.right:.0%} | {self.images} | {' | '.join(told)} |"


def _marked(value: float, shown: str, good: bool) -> str:
    return format(value, shown) + ("" if good else " !")


def discs(side: int, count: int, seed: int) -> Images:
    """Return images of a coloured disc on grey noise, one class for each colour, and of noise alone.

    A disc that is blurred is noise, as the deletion test blurs what a map marks.
    """
    draw = np.random.default_rng(seed)
    labels = torch.arange(count) % (len(DISCS) + 1)
    noise = draw.normal(128, 12, (count, side // 4, side // 4, 1)).repeat(4, 1).repeat(4, 2)
    noise = np.pad(noise, ((0, 0), (0, side % 4), (0, side % 4), (0, 0)), mode="edge").repeat(3, 3)
    radius = RADIUS * side
    centres = draw.uniform(radius, side - radius, (count, 2))
    rows, columns = np.mgrid[:side, :side]
    inside = np.hypot(rows - centres[:, :1, None], columns - centres[:, 1:, None]) < radius
    colours = np.array(DISCS)[draw.integers(len(DISCS), size=count)]
    has_disc = labels < len(DISCS)
    colours[has_disc] = np.array(DISCS)[labels[has_disc]]
    pixels = np.where(inside[..., None], colours[:, None, None], noise)
    images = torch.from_numpy(pixels.clip(0, 255).astype(np.uint8)).permute(0, 3, 1, 2)
    x = normalise(images, weights.IMAGENET_MEAN, weights.IMAGENET_STD)
    plain = torch.from_numpy(noise.clip(0, 255).astype(np.uint8)).permute(0, 3, 1, 2)
    away = normalise(plain, weights.IMAGENET_MEAN, weights.IMAGENET_STD)
    is_blurred = torch.from_numpy(draw.random(count) < 0.5)
    away = torch.where((is_blurred[:, None, None] & torch.from_numpy(inside))[:, None], blurred(x), away)
    return Images(torch.where(has_disc[:, None, None, None], x, away), labels, torch.from_numpy(inside))


def photos(folder: Path, split: str, each: int, side: int) -> Images:
    """Return the first images of each class of a split."""
    classes = sorted(path.name for path in (folder / split).iterdir() if path.is_dir())
    paths = [
        (path, label)
        for label, name in enumerate(classes)
        for path in sorted((folder / split / name).iterdir())[:each]
    ]
    pixels = torch.stack([load_image(path, side, whole=False) for path, _ in paths])
    x = normalise(pixels, weights.IMAGENET_MEAN, weights.IMAGENET_STD)
    return Images(x, torch.tensor([label for _, label in paths]))


def random_backbone(name: str, seed: int, images: Tensor) -> Backbone:
    """Return a backbone with random weights whose batch norm knows the statistics of the images."""
    torch.manual_seed(seed)
    drawn = backbones.build(name)
    settle(drawn.blocks, images[:BATCH])
    return drawn.eval()


@torch.no_grad()
def settle(net: nn.Module, images: Tensor) -> None:
    """Set the statistics of batch norm to those of the images, and switch to evaluation."""
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # the mean over all batches that follow
        norm.reset_running_stats()
    if norms:
        net.train()
        for part in images.split(BATCH):
            net(part)
    net.eval()


def trained(name: str, train: Images, held: Images) -> TransferModel:
    """Return a network that tells discs apart, trained from random weights."""
    backbone = random_backbone(name, 0, train.x)
    model = headless(backbone, len(DISCS) + 1)
    net = nn.Sequential(backbone.blocks, model.head).requires_grad_(True)
    net.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(net.parameters(), lr=SLOW.get(name, RATE))
    draw = torch.Generator().manual_seed(0)
    for step in range(1, MOST_STEPS + 1):
        net.train()
        some = torch.randperm(len(train.x), generator=draw)[:TRAIN_BATCH]
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(train.x[some]), train.labels[some])
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        if step % LOOK_EVERY == 0 and step >= LEAST_STEPS:
            settle(net, train.x[: 2 * BATCH])
            with torch.no_grad():
                right = (net(held.x).argmax(1) == held.labels).float().mean()
            if right >= ENOUGH:
                break
    settle(net, train.x[: 4 * BATCH])
    print(f"{name}: {step} steps, loss {loss.item():.3f}", file=sys.stderr, flush=True)
    return model.eval().requires_grad_(False)


@torch.no_grad()
def features(backbone: Backbone, x: Tensor) -> Tensor:
    """Return pooled features (N, D)."""
    return torch.cat([backbone.pool(backbone.blocks(part)) for part in x.split(BATCH)])


def with_head(backbone: Backbone, images: Images) -> TransferModel:
    """Return the backbone with a head that was fitted on its pooled features."""
    pooled = features(backbone, images.x).double().numpy()
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


def measure(name: str, model: TransferModel, images: Images, most: int, origin: str) -> Row:
    """Return the row of one model on at most `most` of the images that it has right."""

    def probabilities(x: Tensor) -> Tensor:
        return torch.cat([model(part) for part in x.split(BATCH)]).softmax(1)

    with torch.no_grad():
        answers = probabilities(images.x)
    is_right = answers.argmax(1) == images.labels
    right = is_right.nonzero()[:most, 0]
    x, classes = images.x[right], images.labels[right]
    made = in_batches(model, x, classes)
    heads = [in_batches(redrawn(model, seed), x, classes) for seed in range(1, DRAWS + 1)]
    others = [
        in_batches(headless(random_backbone(name, seed, images.x), answers.shape[1]), x, classes)
        for seed in range(1, DRAWS + 1)
    ]
    shape = resolution(model, x, "grad-cam")
    low, chance = (
        deletion.area(probabilities, x, classes, made),
        deletion.random_area(probabilities, x, classes, shape),
    )
    near = None if images.inside is None else close(images.inside[right], shape[0])
    found = None if near is None else near.flatten(1)[torch.arange(len(x)), made.flatten(1).argmax(1)]
    return Row(
        name,
        origin,
        float(is_right.float().mean()),
        len(right),
        float(np.mean([correlation(made, other) for other in heads])),
        float(np.mean([correlation(made, other) for other in others])),
        float(low.mean()),
        float(chance.mean()),
        float((low < chance).float().mean()),
        None if found is None else float(found.float().mean()),
        None if near is None else float(near.float().mean()),
    )


def close(inside: Tensor, cells: int) -> Tensor:
    """Return discs (N, S, S) that are enlarged by half a cell of a map, which says no more than its cell."""
    half = inside.shape[-1] // cells // 2
    wide = nn.functional.max_pool2d(inside[:, None].float(), 2 * half + 1, stride=1, padding=half)
    return wide[:, 0] > 0


def rows(chosen: list[str], given: dict[str, str], folder: Path | None) -> Iterator[Row]:
    """Yield the rows of the table."""
    for name, file in given.items():
        assert folder is not None, "--weights goes with --images"
        loaded = weights.load(name, WeightsSettings(file=str(Path(file).absolute())))
        model = with_head(weights.backbone(name, loaded).eval(), photos(folder, "train", 2 * TRAIN, SIDE))
        yield measure(name, model, photos(folder, "val", 2 * TEST // 5, SIDE), TEST, "ImageNet")
    for name in chosen:
        side = SMALLEST[name]
        train, held = discs(side, 20 * BATCH, 0), discs(side, 2 * BATCH, 1)
        test = discs(side, 2 * DISC_TEST, 2)
        has_disc = test.labels < len(DISCS)
        test = Images(test.x[has_disc], test.labels[has_disc], test.inside[has_disc])
        yield measure(name, trained(name, train, held), test, DISC_TEST, "discs")


def main() -> None:
    """Print the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbones", nargs="*", default=list(SMALLEST), choices=list(SMALLEST))
    parser.add_argument("--images", type=Path, help="folder with train/ and val/, for --weights")
    parser.add_argument("--weights", nargs="*", default=[], metavar="BACKBONE=FILE")
    asked = parser.parse_args()
    told = {"test": TEST, "draws": DRAWS, "head": HEAD, "all": ALL, "better": BETTER}
    told |= {"steps": MOST_STEPS, "batch": TRAIN_BATCH}
    print(HEADER.format(**told), end="", flush=True)
    for row in rows(asked.backbones, dict(pair.split("=", 1) for pair in asked.weights), asked.images):
        print(row.text(), flush=True)


if __name__ == "__main__":
    main()
