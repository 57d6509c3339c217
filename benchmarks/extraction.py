"""From image files to features of all blocks: images per second, against torch's usual way.

    python -m benchmarks.extraction [--images DIR --weights FILE] [--quick]

default  torchvision transforms on PIL images in a `DataLoader`, the model in evaluation mode, float32
kept     the same in a process that keeps the memory which torch gives back, as slots do (slots.py)
ours     an empty store, filled in such a process: decoding in threads, the pass that the probe found,
         written to disk
bfloat16 ours with `precision: bfloat16`, which `auto` takes where it changes features by little

One process and one thread of torch each, alternating. The share of the peak is what the last does of the
multiply-adds per second that a large bfloat16 matrix product reaches here, decoding included.
"""

import dataclasses
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks import report
from benchmarks.mixed_search import by_block
from benchmarks.patterns import usual_loader
from benchmarks.workload import suggestions, workload
from finetune.images.batches import ImageData
from finetune.settings import FeatureSettings, TrialSettings
from finetune.training import shared
from finetune.training.run import Run
from finetune.training.workers import World
from search.slots.slots import KEPT_MEMORY


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    with workload(__doc__ or "") as load:
        data = {"horizontal_flip": False}
        config = load.config("extraction", trials=1, epochs=1, space={"strategy": "replace"}, data=data)
        settings = suggestions(config)[0]
        half = dataclasses.replace(settings, precision="bfloat16")
        folder = load.scratch / "extraction"
        rates: dict[str, list[float]] = {"default": [], "kept": [], "ours": [], "bfloat16": []}
        with process({}) as plainly, process(KEPT_MEMORY) as kept:
            for _ in range(load.rounds):
                rates["default"].append(plainly(usual_way, settings))
                rates["kept"].append(kept(usual_way, settings))
                rates["ours"].append(kept(our_way, settings, folder))
                rates["bfloat16"].append(kept(our_way, half, folder))
        middle = {name: report.median(values) for name, values in rates.items()}
        size = settings.data.image_size
        counts, _ = by_block(
            shared.pristine(settings, torch.device("cpu")).blocks, torch.zeros(1, 3, size, size)
        )
        share = middle["bfloat16"] * sum(counts) / peak()
        print(f"{settings.backbone}, {size} pixels, {sum(counts) / 1e6:.0f} million multiply-adds per image")
        rows = [[name, f"{value:.1f}", f"{value / middle['default']:.2f}"] for name, value in middle.items()]
        report.table(["", "images/s", "to default"], rows)
        print(f"with bfloat16 it reaches {share:.1%} of the peak of a bfloat16 matrix product on one core")
        report.last_line(
            {
                "ours_over_default": middle["ours"] / middle["default"],
                "ours_over_kept": middle["ours"] / middle["kept"],
                "bfloat16_over_default": middle["bfloat16"] / middle["default"],
                "images_per_second": middle,
                "share_of_peak": share,
                "load": report.load(),
            }
        )


@contextmanager
def process(environment: Mapping[str, str]) -> Iterator[Callable[..., float]]:
    """Give a call that runs in another process, one for all calls, which was started in this environment."""
    pool = ProcessPoolExecutor(
        1, multiprocessing.get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    )
    before = dict(os.environ)
    os.environ.update(environment)
    try:
        pool.submit(time.perf_counter).result()  # it starts with its first task
    finally:
        os.environ.clear()
        os.environ.update(before)
    with pool:
        yield lambda run, *arguments: pool.submit(run, *arguments).result()


def usual_way(settings: TrialSettings) -> float:
    """Return images per second of torch's usual way."""
    loader, images = usual_loader(settings, "train", training=False)
    model = shared.pristine(settings, torch.device("cpu"))
    began = time.perf_counter()
    with torch.no_grad():
        for x, _ in loader:
            model.pool(model.blocks(x))
    return images / (time.perf_counter() - began)


def our_way(settings: TrialSettings, folder: Path) -> float:
    """Return images per second of filling an empty store.

    What the probe found before counts as known.
    """
    shutil.rmtree(folder, ignore_errors=True)
    features = FeatureSettings(folder=str(folder), budget_bytes=2**33, trials=1000)
    run = Run(settings, World(), features)
    data: Any = ImageData(shared.catalog.scan(settings.data), settings.data)  # nothing decoded yet
    run.data = run.inputs.data = data
    began = time.perf_counter()
    feed = run.inputs.feed("train", view=0)
    assert feed.rows is not None
    return len(feed.rows) / (time.perf_counter() - began)


def peak() -> float:
    """Return multiply-adds per second of a large bfloat16 matrix product on one thread."""
    a = torch.randn(2048, 2048, dtype=torch.bfloat16)
    best = 0.0
    for _ in range(10):
        began = time.perf_counter()
        a @ a
        best = max(best, 2048**3 / (time.perf_counter() - began))
    return best


if __name__ == "__main__":
    main()
