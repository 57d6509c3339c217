"""The cost of a study on this machine: measured by `check --time`, kept for the runs that follow."""

import json
import time
from pathlib import Path
from typing import Any

from finetune.datasets.catalog import Catalog
from finetune.disk.filesystems import text_of
from search.config import resolve
from search.config.study import StudyConfig
from search.record.study_folder import write_text
from search.slots.slots import SlotPlan
from search.suggest import cost
from search.suggest.cost import Cost, ImageCost

DECODED = 8
"""Images that are opened to see how long that takes."""


def measure(config: StudyConfig, images: Catalog) -> dict[str, ImageCost]:
    """Time a few batches of each backbone in this process, and keep the result for `expected`.

    It takes seconds for small backbones on small images. Imports torch.
    """
    import torch

    from finetune.model import timing

    torch.set_num_threads(config.resources.cpus_per_worker)
    gpu = torch.cuda.is_available() and config.resources.gpu is not False
    device = torch.device("cuda" if gpu else "cpu")
    decode = _decode_seconds(config, images)
    found = {}
    for backbone in config.backbones:
        timed = timing.measure(backbone, config.least_image_size, device, config.data.frames)
        found[backbone] = ImageCost(decode, timed.forward, timed.train)
    known = _read()
    known |= {_key(config, name): vars(image_cost) for name, image_cost in found.items()}
    write_text(_file(), json.dumps(known, indent=1))
    return found


def kept(config: StudyConfig) -> dict[str, ImageCost] | None:
    """Return what `measure` has kept for all backbones of a study; None if one is missing."""
    known = _read()
    try:
        return {name: ImageCost(**known[_key(config, name)]) for name in config.backbones}
    except (KeyError, TypeError):
        return None


def expected(
    config: StudyConfig, images: Catalog, costs: dict[str, ImageCost], plan: SlotPlan, up: int, repeats: int
) -> Cost:
    """Return the expected cost of a study in `up` slots, with `repeats` trainings for the verdict."""
    gpus = plan.workers * plan.gpu_per_worker * up if plan.gpu else 0.0
    counts = {split: len(found) for split, found in images.splits.items()}
    return cost.expected(config, counts, costs, slots=up, gpus=gpus, repeats=repeats)


def _decode_seconds(config: StudyConfig, images: Catalog) -> float:
    some = images.splits["train"][:DECODED]
    begin = time.perf_counter()
    side, frames = config.least_image_size, config.data.frames
    for image in some:
        found = (
            images.reader.frames(image.path, frames, side)
            if frames > 1
            else [images.reader.open(image.path, side)]
        )
        for one in found:
            one.resize((side, side))
    return (time.perf_counter() - begin) / max(1, len(some))


def _key(config: StudyConfig, backbone: str) -> str:
    threads = config.resources.cpus_per_worker
    frames = f" {config.data.frames} frames" if config.data.frames > 1 else ""
    return f"{backbone} {config.least_image_size} px{frames} {threads} threads gpu {config.resources.gpu}"


def _file() -> Path:
    return resolve.cache_dir() / "image-costs.json"


def _read() -> dict[str, Any]:
    try:
        known = json.loads(text_of(_file()))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}
