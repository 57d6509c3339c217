"""Gain of a second part: fusions of image and text, and poolings over the frames of clips.

    python -m benchmarks.text_and_clips text MANIFEST --weights FILE [--size 64] [--longer 12]
    python -m benchmarks.text_and_clips clips FOLDER --weights FILE [--size 96]

Trains heads on a frozen mobilenet_v2. Of each row's settings the best by validation is measured on the test
samples, over three seeds, as they are and with 30 % of the test texts removed. `--longer N` adds to each text
those of N other samples, half of them of its own class, so that the text tells most. Clips are grouped by
their names without the number at the end. `first epoch after` is the time from the start of the first
training, data and features included: run the command again with the same --store for that of a second study.
"""

import argparse
import csv
import random
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import torch

from finetune.datasets import clips
from finetune.datasets.part_findings import stem
from finetune.disk import checkpoint
from finetune.messages import Epoch, Keep, Note
from finetune.model_folder import writing
from finetune.settings import DataSettings, FeatureSettings, TrialSettings, WeightsSettings
from finetune.training import loop
from finetune.training.workers import World

RATES = (0.003, 0.01, 0.03)
SEEDS = (1, 2, 3)
MISSING = 0.3
"""Share of the test samples whose text is removed for the last column."""
BOTH = ("concat", "gated", "sum")
SOLVED: dict[str, Any] = {"strategy": "exact", "epochs": 1}
TEXT_ROWS: Mapping[str, list[dict[str, Any]]] = {
    "image alone": [{"fusion": "image"}],
    "text alone": [{"fusion": "text"}],
    "concat, scale 1": [{"fusion": "concat"}],
    "searched fusion and scale": [
        {"fusion": fusion, "image_scale": scale} for fusion, scale in product(BOTH, (0.3, 1.0))
    ],
    "the same, modality_dropout .2": [
        {"fusion": fusion, "image_scale": scale, "modality_dropout": 0.2}
        for fusion, scale in product(BOTH, (0.3, 1.0))
    ],
    "exact, on folds of train": [SOLVED],
}
POOLINGS = ("mean", "max", "mean_std", "mean_diff", "attention", "ordered")
CLIP_ROWS: Mapping[str, list[dict[str, Any]]] = {
    **{name: [{"pooling": name}] for name in POOLINGS},
    "searched pooling": [{"pooling": name} for name in POOLINGS],
    "exact, on folds of train": [SOLVED],
}


class Trainings:
    """Trainings of heads that share a store.

    Args:
        base: settings of all.
        store: folder for features.
    """

    def __init__(self, base: TrialSettings, store: Path) -> None:
        self.base, self.began, self.spent = base, time.perf_counter(), time.process_time()
        self.first = ""
        """How long it took from here to the end of the first epoch, in words."""
        self.solved = ""
        """Name of the exact head that was solved last."""
        self.features = FeatureSettings(folder=str(store), budget_bytes=2**33, trials=50, test=True)
        self._scores: dict[str, float] = {}

    def validation(self, settings: TrialSettings) -> float:
        """Return the best validation accuracy of a training."""
        key = repr(settings)
        if key not in self._scores:
            self._scores[key] = self._train(settings, test=False)[0]
        return self._scores[key]

    def test(self, settings: TrialSettings) -> tuple[float, ...]:
        """Return the test accuracy of a training's best epoch by validation, and that without some texts."""
        return self._train(settings, test=True)

    def _train(self, settings: TrialSettings, *, test: bool) -> tuple[float, ...]:
        found: list[float] = []

        def hear(message: object) -> None:
            if isinstance(message, Note) and settings.strategy == "exact":
                self.solved = message.text.partition(":")[0]
            if isinstance(message, Epoch):
                seconds, spent = time.perf_counter() - self.began, time.process_time() - self.spent
                self.first = self.first or f"{seconds:.1f} s ({spent:.1f} of a core)"
                found.append(message.metrics["val/accuracy"])

        with tempfile.TemporaryDirectory() as folder:
            keep = Keep(metric="val/accuracy", best=Path(folder, "best"), last=Path(folder, "last"))
            loop.train(settings, keep=keep, report=hear, features=self.features)
            if not test:
                return (max(found),)
            tensors, stored = checkpoint.read(keep.best)
            run = writing.trained(tensors, stored, settings, World(), self.features)
        run.model.eval()
        samples = torch.arange(run.data.size("test"))
        rows, labels = (
            torch.cat(list(run.rows.feed("test").batches(samples.split(256)))),
            run.data.labels("test"),
        )
        lacking = rows.clone()
        gone = torch.rand(len(rows), generator=torch.Generator().manual_seed(settings.seed)) < MISSING
        lacking[gone, -1] = 0  # the mark of the text
        with torch.no_grad():
            answers = [run.model.from_features(some).argmax(1) for some in (rows, lacking)]
        return tuple((answer == labels).float().mean().item() for answer in answers)


def table(trainings: Trainings, rows: Mapping[str, Iterable[dict[str, Any]]], samples: int) -> Iterator[str]:
    """Yield a Markdown table, a line for each row."""
    lacking = trainings.base.data.text is not None
    more = f" without {MISSING:.0%} of the texts |" if lacking else ""
    yield f"| {samples} samples | chosen by validation | validation | test, 3 seeds |{more}"
    yield "|---|---|---|---|" + "---|" * lacking
    for name, choices in rows.items():
        tried = [
            replace(trainings.base, **choice, learning_rate=rate)
            for choice in choices
            for rate in ((0.0,) if choice == SOLVED else RATES)
        ]
        best = max(tried, key=trainings.validation)
        columns = list(zip(*(trainings.test(replace(best, seed=seed)) for seed in SEEDS), strict=True))
        said = best.fusion if best.data.text else best.pooling
        scale = f", scale {best.image_scale:g}" if best.data.text else ""
        told = f"{said}{scale}, rate {best.learning_rate:g}" if best.learning_rate else trainings.solved
        tests = [
            f"{statistics.mean(of):.3f} ({min(of):.3f} to {max(of):.3f})" for of in columns[: 1 + lacking]
        ]
        yield f"| {name} | {told} | {trainings.validation(best):.3f} | {' | '.join(tests)} |"


def longer(manifest: Path, others: int, to: Path) -> Path:
    """Write a manifest whose texts also have those of other samples, half of them of the same class."""
    draw = random.Random(0)
    with manifest.open(newline="") as file:
        rows = list(csv.DictReader(file))
    own: dict[str, list[str]] = {}
    for row in rows:
        own.setdefault(row["label"], []).append(row["text"])
    every = [row["text"] for row in rows]
    with to.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "text"])
        for row in rows:
            more = [draw.choice(own[row["label"]] if draw.random() < 0.5 else every) for _ in range(others)]
            place = (manifest.parent / row["path"]).absolute()
            writer.writerow([place, row["label"], "; ".join([row["text"], *more])])
    return to


def grouped(folder: Path, to: Path) -> Path:
    """Write a manifest of the clips in class folders, grouped by names without the number at the end."""
    files = [path for path in sorted(folder.glob("*/*")) if clips.is_clip(str(path))]
    with to.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "group"])
        writer.writerows([path.absolute(), path.parent.name, stem(path.name)] for path in files)
    return to


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("text", "clips"))
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", type=Path, required=True, help="weights of mobilenet_v2")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--frames", type=int, default=12)
    parser.add_argument("--longer", type=int, default=0, help="texts of other samples that each text gets")
    parser.add_argument("--store", type=Path, default=Path(tempfile.gettempdir()) / "text-and-clips")
    asked = parser.parse_args()
    asked.store.mkdir(parents=True, exist_ok=True)
    is_text = asked.what == "text"
    manifest = asked.data if is_text else grouped(asked.data, asked.store / "clips.csv")
    if asked.longer:
        manifest = longer(manifest, asked.longer, asked.store / f"longer-{asked.longer}.csv")
    data = DataSettings(
        kind="manifest",
        path=str(manifest.absolute()),
        text=("text",) if is_text else None,
        frames=1 if is_text else asked.frames,
        image_size=asked.size,
        horizontal_flip=False,
        batch_size=32 if is_text else 8,
        validation_share=0.2,
        test_share=0.3,
    )
    base = TrialSettings(
        data=data,
        backbone="mobilenet_v2",
        weights=WeightsSettings(file=str(asked.weights.absolute())),
        strategy="replace",
        epochs=8 if is_text else 16,
        learning_rate=0.01,
        weight_decay=1e-4,
        cache_dir=str(asked.store / "cache"),
    )
    trainings = Trainings(base, asked.store / "features")
    with manifest.open() as file:
        samples = sum(1 for _ in file) - 1
    for line in table(trainings, TEXT_ROWS if is_text else CLIP_ROWS, samples):
        print(line, flush=True)
    print(f"first epoch after {trainings.first}")


if __name__ == "__main__":
    main()
