"""Choose trial and epoch on one half of the validation images, by several rules, and judge on the other half.

    python -m benchmarks.chosen_by --images FOLDER --weights mobilenet_v2.pth

Heads of random rates and sizes on the frozen backbone, 64 pixels. Each draw takes 16 of them and a
random half of the validation images. `optimism` is the accuracy where a model was chosen minus that
where it was not.
"""

import argparse
import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from finetune.settings import DataSettings, FeatureSettings, TrialSettings, WeightsSettings
from finetune.training.run import Run
from finetune.training.workers import World

Scores = NDArray[np.float64]  # (T, E): accuracy of each trial after each epoch
HEADS, EPOCHS, DRAWS, DRAWN = 24, 10, 1000, 16


def trials(images: Path, weights: Path, scratch: Path) -> Iterator[tuple[TrialSettings, FeatureSettings]]:
    """Yield the settings of the heads."""
    draw = random.Random(0)
    store = FeatureSettings(folder=str(scratch / "features"), budget_bytes=2**33, trials=HEADS)
    for seed in range(HEADS):
        yield (
            TrialSettings(
                data=DataSettings(kind="folder", path=str(images.absolute()), image_size=64),
                backbone="mobilenet_v2",
                weights=WeightsSettings(file=str(weights.absolute())),
                strategy="replace",
                epochs=EPOCHS,
                learning_rate=10 ** draw.uniform(-3, -1),
                head_size=draw.choice([0, 64, 256]),
                weight_decay=1e-4,
                seed=seed,
                cache_dir=str(scratch),
            ),
            store,
        )


@torch.no_grad()
def hits(run: Run) -> NDArray[np.bool_]:
    """Return for each validation image whether the model names its class, (N,)."""
    labels, feed = run.data.labels("val"), run.inputs.feed("val")
    run.model.eval()
    order = torch.arange(len(labels)).split(100)
    found = [
        run.model.from_features(feed.finish(x)).argmax(dim=1) == labels[ids]
        for ids, x in zip(order, feed.batches(list(order)), strict=True)
    ]
    answers: NDArray[np.bool_] = torch.cat(found).numpy()
    return answers


def answers_of(settings: TrialSettings, store: FeatureSettings) -> list[NDArray[np.bool_]]:
    """Train a head and return its hits after each epoch."""
    run = Run(settings, World(), store)
    run.watch.is_over = True  # no rate here diverges, and the trial would not begin again
    found = []
    for epoch in range(1, settings.epochs + 1):
        run.train_epoch(epoch, lambda: False)
        found.append(hits(run))
    return found


def trailing(count: int) -> Callable[[Scores], Scores]:
    """Return the mean of each epoch and the ones before it, `count` in all."""
    return lambda scores: np.stack(
        [scores[:, max(0, end - count) : end].mean(axis=1) for end in range(1, scores.shape[1] + 1)], axis=1
    )


def best_of(smooth: Scores, scores: Scores) -> Scores:
    """Return the scores of the trial that has the best smooth one; no other trial can be chosen."""
    chosen = np.arange(len(scores)) == smooth.max(axis=1).argmax()
    return np.where(chosen[:, None], scores, -1.0)


RULES: dict[str, Callable[[Scores], Scores]] = {
    "best epoch of the best trial": lambda scores: scores,
    "mean of an epoch and the one before": trailing(2),
    "mean of an epoch and the two before": trailing(3),
    "mean of an epoch and the three before": trailing(4),
    "trial by the mean of three epochs, its best epoch": lambda scores: best_of(trailing(3)(scores), scores),
    "last epoch": lambda scores: np.where(np.arange(scores.shape[1]) == scores.shape[1] - 1, scores, -1.0),
}


def main() -> None:
    """Print a line for each rule."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--images", type=Path, required=True)
    options.add_argument("--weights", type=Path, required=True)
    given = options.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        every = trials(given.images, given.weights, Path(scratch))
        answers = np.array([answers_of(settings, store) for settings, store in every])  # (T, E, N)
    draw = np.random.default_rng(0)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in RULES}
    for _ in range(DRAWS):
        images = draw.permutation(answers.shape[2])
        some = answers[draw.permutation(HEADS)[:DRAWN]]
        half = len(images) // 2
        chosen_by = some[:, :, images[:half]].mean(axis=2)
        judged_by = some[:, :, images[half:]].mean(axis=2)
        for name, rule in RULES.items():
            place = np.unravel_index(np.argmax(rule(chosen_by)), chosen_by.shape)
            found[name].append((float(rule(chosen_by)[place]), float(judged_by[place])))
    for name, pairs in found.items():
        chosen, judged = np.array(pairs).mean(axis=0)
        print(f"{name:50} chosen {chosen:.4f}  judged {judged:.4f}  optimism {chosen - judged:+.4f}")


if __name__ == "__main__":
    main()
