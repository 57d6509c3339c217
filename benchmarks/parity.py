"""How closely an ONNX file answers as PyTorch does, for every family of backbones, on real images.

    python -m benchmarks.parity --images DIR --weights DIR [--only NAME ...] > docs/parity.md

The first DIR is a folder with `train` and `val`; the second holds mobilenet_v2.pth and squeezenet1_0.pth,
ImageNet's weights. These two are measured with their weights and all strategies. The other families have
random weights, with batch norm's statistics taken from the images, parameters that begin at zero or near it
drawn anew, and a new head: their answers mean nothing, but each layer does what it does in a trained model.
"""

import argparse
import gc
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from finetune.handing_on import onnx_file, parity
from finetune.handing_on.deployed import Deployed
from finetune.images.pixels import normalise
from finetune.model import source_rows, strategies, weights
from finetune.model.strategies import TransferModel
from finetune.model_folder import Model
from finetune.settings import DataSettings, WeightsSettings
from finetune.training import shared

TRAINED = ("mobilenet_v2", "squeezenet1_0")
"""Backbones that are measured with real weights."""
STRATEGIES = ("replace", "load", "fuse")
SIDE = 128
SIDES = {"maxvit_t": 224, "inception_v3": 299}
"""Other sizes of images, in pixels, where a backbone asks for them."""
FAMILIES = (
    *("alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "googlenet"),
    *("inception_v3", "mnasnet0_5", "mobilenet_v3_small", "regnet_x_400mf", "regnet_y_400mf", "resnet18"),
    *("resnext50_32x4d", "shufflenet_v2_x0_5", "vgg11", "vgg11_bn", "vit_b_32", "wide_resnet50_2"),
    *("swin_t", "swin_v2_t", "maxvit_t"),
)
TEMPERATURE = 0.5
"""Makes the answers surer, so that differences are seen rather than hidden."""


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    backbone: str
    strategy: str
    trained: bool

    @property
    def side(self) -> int:
        """Side of the images in pixels."""
        return SIDES.get(self.backbone, SIDE)


def main() -> None:
    """Measure, and print the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", required=True, type=Path, help="folder with train and val")
    parser.add_argument("--weights", required=True, type=Path, help="folder of the two weights")
    parser.add_argument("--only", nargs="*", help="backbones to measure; left out: all")
    options = parser.parse_args()
    cases = [Case(name, strategy, True) for name in TRAINED for strategy in STRATEGIES]
    cases += [Case(name, "replace", False) for name in FAMILIES]
    rows = [
        measured(case, options.images, options.weights)
        for case in cases
        if not options.only or case.backbone in options.only
    ]
    print(page(rows))


def page(rows: list[str]) -> str:
    """Return the page; models beyond the limit are named below the table."""
    cells = [[cell.strip() for cell in row.split("|")] for row in rows]
    beyond = [row[1] for row in cells if not row[6] or float(row[6]) > parity.MOST or row[7] != "0"]
    told = f"Exceptions, not within {parity.MOST:g}: {', '.join(beyond) or 'none'}."
    return "\n".join([*HEAD.splitlines(), *rows, "", told])


HEAD = f"""# Parity of ONNX files with PyTorch

This page is written by `python -m benchmarks.parity --images DIR --weights DIR > docs/parity.md`.

Each model is exported as `export --format onnx` does it. Both answer the same {parity.IMAGES} photographs
of flowers, the file in batches of 1, 2 and the rest. `export` repeats this for every model with its own
validation images, and keeps no file that is further off than {parity.MOST:g} or changes an answer.

- **weights**: `trained` are ImageNet's; `random` with batch norm's statistics from the photographs.
- **spread**: largest difference between the probabilities of two images for one class. A model that answers
  all images alike could hide a fault.
- **difference**: largest difference of a probability between the two.
- **changed**: images whose most probable class differs.
- **export, s**: seconds on two CPU cores beside other work.

| model | strategy | weights | pixels | spread | difference | changed | opset | file, MB | export, s |
|---|---|---|---:|---:|---:|---:|---:|---:|---:|"""


def measured(case: Case, images: Path, folder: Path) -> str:
    """Return a model's row, or one that says why it has none."""
    print(f"{case.backbone}, {case.strategy}", file=sys.stderr, flush=True)
    start = [case.backbone, case.strategy, "trained" if case.trained else "random", str(case.side)]
    data = shared.images(DataSettings(kind="folder", path=str(images), image_size=case.side))
    chosen = torch.linspace(0, data.size("val") - 1, parity.IMAGES).round().long()
    pixels = data.batch("val", chosen)
    torch.manual_seed(0)
    model = built(case, pixels, len(data.classes), folder, images)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "model.onnx"
        try:
            facts = onnx_file.write(Deployed(model), model.facts, path)
        except Exception as error:  # the exporter raises anything; the page says what
            why = " ".join(str(error).split())[:80]
            return f"| {' | '.join(start)} | not exported: {type(error).__name__}: {why} | | | | | |"
        seconds = time.monotonic() - began
        size = sum(file.stat().st_size for file in Path(place).iterdir()) / 1e6
        answers = model.probabilities(pixels)
        nhwc = pixels.permute(0, 2, 3, 1).contiguous()
        found = parity.measured(onnx_file.runner(path), lambda _: answers, nhwc)
    spread = float((answers.amax(0) - answers.amin(0)).max())
    cells = [
        *(*start, f"{spread:.2f}", f"{found.largest_difference:.1e}", str(found.changed_answers)),
        *(str(facts["opset"]), f"{size:.1f}", f"{seconds:.0f}"),
    ]
    del model
    gc.collect()
    row = f"| {' | '.join(cells)} |"
    print(row, file=sys.stderr, flush=True)
    return row


def built(case: Case, pixels: Tensor, classes: int, folder: Path, images: Path) -> Model:
    """Return a model for a case, as if it had been read from a model folder."""
    settings = (
        WeightsSettings(file=str(folder / f"{case.backbone}.pth")) if case.trained else WeightsSettings()
    )
    source = weights.load(case.backbone, settings)
    backbone = weights.backbone(case.backbone, source).eval()
    relation = None
    if case.strategy == "load":
        data = shared.images(DataSettings(kind="folder", path=str(images), image_size=case.side))
        some = torch.arange(0, data.size("train"), 10).split(32)
        with torch.no_grad():
            answers = [
                (backbone(normalise(x, source.mean, source.std)).softmax(dim=1), y)
                for x, y in data.batches("train", some)
            ]
        relation = source_rows.category_relationship(answers, classes)
    net = strategies.build(
        case.strategy,
        backbone,
        classes=[str(number) for number in range(classes)],
        head_size=0,
        dropout=0.1,
        frozen_layers=0,
        relation=relation,
        source_names=None,
        seed=0,
    )
    if not case.trained:
        enliven(net, normalise(pixels, source.mean, source.std))
    facts = {
        "classes": [str(number) for number in range(classes)],
        "backbone": case.backbone,
        "preprocessing": {
            "image_size": case.side,
            "whole_image": False,
            "mean": list(source.mean),
            "std": list(source.std),
        },
        "calibration": {"temperature": TEMPERATURE},
    }
    return Model(net.eval(), facts, torch.device("cpu"))


@torch.no_grad()
def enliven(net: TransferModel, pixels: Tensor) -> None:
    """Give a random network layers that are not idle, and answers that differ between images."""
    for parameter in net.parameters():
        if parameter.abs().max() < 1e-3:  # the layer scale of ConvNeXt, position biases of Swin
            parameter.normal_(std=0.1)
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # the mean over all batches that are seen
        norm.reset_running_stats()
    if norms:
        net.train()
        net(pixels)
    net.eval()
    logits = net(pixels)
    last = [layer for layer in net.head.modules() if isinstance(layer, nn.Linear)][-1]
    # Centre and scale each class's logits over the images, by the last layer.
    mean, spread = logits.mean(0), logits.std(0)
    last.weight.div_(spread[:, None])
    last.bias.sub_(mean).div_(spread)


if __name__ == "__main__":
    main()
