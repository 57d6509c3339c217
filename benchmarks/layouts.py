"""Gains of ways to run a network faster on this CPU: channels last, folding, bfloat16, torch.compile.

    python -m benchmarks.layouts [--quick]

layout   a step of training and a pass in evaluation, float32, with the channels first (torch's usual layout)
         and last, alternating; one model of each family, random weights
frozen   milliseconds per image of all blocks with `finetune.frozen.execution`' options, and the seconds that
         compiling took; of the families that have something to fold

One thread, the fastest of a few passes each, since other processes only ever slow one down.
"""

import argparse
import time
import warnings
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

from benchmarks import report
from finetune.frozen import execution, folding
from finetune.frozen.execution import BATCH, Pass
from finetune.model import backbones

SIDES = {
    **{"mobilenet_v2": 128, "resnet18": 128, "vgg11": 96, "squeezenet1_0": 128, "densenet121": 128},
    **{"googlenet": 128, "shufflenet_v2_x0_5": 128, "mobilenet_v3_small": 128, "efficientnet_b0": 128},
    **{"efficientnet_v2_s": 96, "regnet_y_400mf": 128, "convnext_tiny": 96, "vit_b_16": 224, "swin_t": 96},
    **{"maxvit_t": 224, "inception_v3": 128, "mnasnet0_5": 128, "alexnet": 128},
}
"""One model of each family, and the side of its images in pixels."""
COMPILED = ("mobilenet_v2", "resnet18", "efficientnet_b0", "googlenet")
QUICK = ("mobilenet_v2", "resnet18", "squeezenet1_0", "swin_t")
IMAGES, TIMES = 8, 4


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="four families, frozen: two")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")  # torchvision's, of slow initialisation
    gains = {name: layouts(name, SIDES[name]) for name in (QUICK if quick else SIDES)}
    rows = [
        [name, str(SIDES[name]), *(f"{value:.2f}" for value in gain.values())] for name, gain in gains.items()
    ]
    report.table(["first / last", "pixels", "training", "evaluation"], rows)
    names = QUICK[:2] if quick else tuple(SIDES)
    found = {name: frozen(name, SIDES[name]) for name in names}
    print()
    columns = ("float32", "folded", "bfloat16", "bfloat16 folded", "compiled", "compiling, s")
    rows = [
        [name, *(f"{times[column]:.2f}" if column in times else "-" for column in columns)]
        for name, times in found.items()
        if times
    ]
    report.table(["frozen", *columns], rows)
    report.last_line({"first_over_last": gains, "frozen": found, "load": report.load()})


def layouts(name: str, side: int) -> dict[str, float]:
    """Return seconds with channels first over seconds with channels last."""
    formats = (torch.contiguous_format, torch.channels_last)
    model = backbones.classifier(name)
    labels = torch.randint(1000, (IMAGES,))
    found: dict[str, list[float]] = {"training": [], "evaluation": []}
    for layout in formats:
        model.to(memory_format=layout)
        images = torch.randn(IMAGES, 3, side, side).contiguous(memory_format=layout)

        def step(images: torch.Tensor = images) -> None:
            model.zero_grad()
            F.cross_entropy(model(images), labels).backward()

        model.train()
        found["training"].append(fastest(step))
        model.eval()
        with torch.no_grad():
            found["evaluation"].append(fastest(lambda images=images: model(images)))
    return {what: first / last for what, (first, last) in found.items()}


def frozen(name: str, side: int) -> dict[str, float]:
    """Return milliseconds per image by the pass; empty where nothing can be folded."""
    blocks = backbones.build(name).requires_grad_(False).eval().to(memory_format=torch.channels_last).blocks
    if not folding.is_worth_it(blocks):
        return {}
    images = torch.rand(BATCH, 3, side, side).contiguous(memory_format=torch.channels_last)
    ways = {"float32": Pass(), "bfloat16": Pass("bfloat16")}
    if execution.can_fold(blocks, images):
        ways |= {"folded": Pass(folded=True), "bfloat16 folded": Pass("bfloat16", folded=True)}
    if name in COMPILED:
        ways["compiled"] = Pass("bfloat16", compiled=True)
    found = {}
    for label, how in ways.items():
        ready = how.ready(blocks)
        began = time.perf_counter()
        how.run(ready, images)
        first = time.perf_counter() - began
        found[label] = 1000 * fastest(partial(how.run, ready, images)) / BATCH
        if how.compiled:
            found["compiling, s"] = first
    return found


def fastest(call: Callable[[], object]) -> float:
    """Return the seconds of the fastest call, the first one left out."""
    seconds = []
    for _ in range(1 + TIMES):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return min(seconds[1:])


if __name__ == "__main__":
    main()
