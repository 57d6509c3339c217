"""What two ways to run a network faster are worth on this CPU: channels last in memory, and torch.compile.

    python -m benchmarks.layouts [--quick]

layout   a step of training and a pass in evaluation, float32, with the channels first (torch's usual layout)
         and last, alternating; one model of each family, random weights
compile  a pass of all blocks with `finetune.passes`' options, against the same pass without, and the
         seconds that compiling took; bfloat16

One thread, the fastest of a few passes each, since other processes only ever slow one down.
"""

import argparse
import time
import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F

from benchmarks import report
from finetune import backbones
from finetune.passes import BATCH, Pass

SIDES = {
    **{"mobilenet_v2": 128, "resnet18": 128, "vgg11": 96, "squeezenet1_0": 128, "densenet121": 128},
    **{"googlenet": 128, "shufflenet_v2_x0_5": 128, "mobilenet_v3_small": 128, "efficientnet_b0": 128},
    **{"efficientnet_v2_s": 96, "regnet_y_400mf": 128, "convnext_tiny": 96, "vit_b_16": 224, "swin_t": 96},
    **{"maxvit_t": 224, "inception_v3": 128, "mnasnet0_5": 128, "alexnet": 128},
}
"""One model of each family, and the side of its images in pixels."""
COMPILED = ("mobilenet_v2", "resnet18")
QUICK = ("mobilenet_v2", "resnet18", "squeezenet1_0", "swin_t")
IMAGES, TIMES = 8, 4


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="four families, and one compiled")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")  # torchvision's, of slow initialisation
    gains = {name: layouts(name, SIDES[name]) for name in (QUICK if quick else SIDES)}
    rows = [
        [name, str(SIDES[name]), *(f"{value:.2f}" for value in gain.values())] for name, gain in gains.items()
    ]
    report.table(["first / last", "pixels", "training", "evaluation"], rows)
    compiled = {name: compiling(name, SIDES[name]) for name in (COMPILED[:1] if quick else COMPILED)}
    print()
    rows = [[name, *(f"{value:.2f}" for value in found.values())] for name, found in compiled.items()]
    report.table(["compile", "eager, ms/image", "compiled, ms/image", "compiling, s"], rows)
    report.last_line({"first_over_last": gains, "compile": compiled, "load": report.load()})


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


def compiling(name: str, side: int) -> dict[str, float]:
    """Return milliseconds per image without and with torch.compile, and the seconds of compiling."""
    blocks = backbones.build(name).eval().to(memory_format=torch.channels_last).blocks
    images = torch.rand(BATCH, 3, side, side).contiguous(memory_format=torch.channels_last)
    eager, compiled = Pass("bfloat16"), Pass("bfloat16", compiled=True)
    before = fastest(lambda: eager.run(blocks, images))
    began = time.perf_counter()
    ready = compiled.ready(blocks)
    compiled.run(ready, images)
    took = time.perf_counter() - began
    after = fastest(lambda: compiled.run(ready, images))
    return {"eager": 1000 * before / BATCH, "compiled": 1000 * after / BATCH, "seconds": took}


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
