"""From image files to features of all blocks: images per second, against torch's usual way.

    python -m benchmarks.extraction [--images DIR --weights FILE] [--quick]

default  torchvision transforms on PIL images in a `DataLoader`, the model in evaluation mode, float32
ours     an empty store, filled: decoding in threads, the pass that the probe found, written to disk
compiled ours with what it does for many images (`passes.COMPILE_FROM_SECONDS`): behind the first batch,
         in which it compiles

One process and one thread of torch each, alternating. The share of the peak is what ours does of the
multiply-adds per second that a large bfloat16 matrix product reaches here, decoding included.
"""

import shutil
import time
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks import report
from benchmarks.mixed_search import by_block
from benchmarks.patterns import usual_loader
from benchmarks.workload import suggestions, workload
from finetune import assets, loop, passes
from finetune.data import ImageData
from finetune.settings import FeatureSettings, TrialSettings


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    with workload(__doc__ or "") as load:
        data = {"horizontal_flip": False}
        config = load.config("extraction", trials=1, epochs=1, space={"strategy": "replace"}, data=data)
        settings = suggestions(config)[0]
        rates: dict[str, list[float]] = {"default": [], "ours": [], "compiled": []}
        for _ in range(load.rounds):
            rates["default"].append(usual_way(settings))
            rates["ours"].append(our_way(settings, load.scratch / "extraction"))
            with mock.patch.object(passes, "COMPILE_FROM_SECONDS", 0.0):
                rates["compiled"].append(our_way(settings, load.scratch / "extraction", behind_first=True))
        middle = {name: report.median(values) for name, values in rates.items()}
        size = settings.data.image_size
        counts, _ = by_block(
            assets.pristine(settings, torch.device("cpu")).blocks, torch.zeros(1, 3, size, size)
        )
        share = middle["ours"] * sum(counts) / peak()
        print(f"{settings.backbone}, {size} pixels, {sum(counts) / 1e6:.0f} million multiply-adds per image")
        rows = [[name, f"{value:.1f}", f"{value / middle['default']:.2f}"] for name, value in middle.items()]
        report.table(["", "images/s", "to default"], rows)
        print(f"ours, not compiled, reaches {share:.1%} of the peak of a bfloat16 matrix product on one core")
        report.last_line(
            {
                "ours_over_default": middle["ours"] / middle["default"],
                "compiled_over_default": middle["compiled"] / middle["default"],
                "images_per_second": middle,
                "share_of_peak": share,
                "load": report.load(),
            }
        )


def usual_way(settings: TrialSettings) -> float:
    """Return images per second of torch's usual way."""
    loader, images = usual_loader(settings, "train", training=False)
    model = assets.pristine(settings, torch.device("cpu"))
    began = time.perf_counter()
    with torch.no_grad():
        for x, _ in loader:
            model.pool(model.blocks(x))
    return images / (time.perf_counter() - began)


def our_way(settings: TrialSettings, folder: Path, *, behind_first: bool = False) -> float:
    """Return images per second of filling an empty store, or of what comes behind its first batch.

    What the probe found before counts as known.
    """
    shutil.rmtree(folder, ignore_errors=True)
    features = FeatureSettings(folder=str(folder), budget_bytes=2**33, trials=1000)
    run = loop.Run(settings, loop.World(), features)
    data: Any = ImageData(assets.catalog.scan(settings.data), settings.data)  # nothing decoded yet
    run.data = run.inputs.data = data
    batches = []

    def made(*arguments: Any) -> Any:
        h = made_before(*arguments)
        batches.append((time.perf_counter(), len(h)))
        return h

    made_before, run.inputs._made = run.inputs._made, made  # type: ignore[method-assign]
    began = time.perf_counter()
    feed = run.inputs.feed("train", view=0)
    ended = time.perf_counter()
    assert feed.rows is not None
    first, images = batches[0]
    return (len(feed.rows) - images) / (ended - first) if behind_first else len(feed.rows) / (ended - began)


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
