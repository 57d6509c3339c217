"""Worth of searching `imbalance` on a long tail: the same budget with and without it.

    python -m benchmarks.imbalance --images DIR --weights FILE [--quick]

DIR is a folder with `train` and a balanced `val`, such as trashnet_lt; FILE holds mobilenet_v2's weights.

Two studies per seed, drawn by the random sampler from the product's own space (strategies `replace` and
`load`, everything else at its defaults), score: val/balanced_accuracy of the best epoch of the best trial.

without    imbalance: none
with       imbalance: all seven ways

Both have the same number of trials and epochs, and run in this process with the product's own loop. Both
strategies leave the backbone as it is, so its features are computed once, in exact mode, for all of them.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import optuna
import torch

from benchmarks import report
from finetune.settings import FeatureSettings, TrialSettings
from finetune.training.run import Run
from finetune.training.workers import World
from search.config.study import StudyConfig
from search.suggest.space import Space

BACKBONE = "mobilenet_v2"
METRIC = "val/balanced_accuracy"
WAYS = (
    *("none", "class_weights", "balanced_sampling", "focal"),
    *("class_balanced", "logit_adjustment", "balanced_softmax"),
)


def main() -> None:
    """Run the studies of all seeds; print one row per seed, and what each way reached."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", required=True, type=Path, help="folder with train and val")
    parser.add_argument("--weights", required=True, type=Path, help="mobilenet_v2's weights")
    parser.add_argument("--quick", action="store_true", help="2 seeds and 6 trials instead of 8 and 24")
    options = parser.parse_args()
    seeds, trials = (2, 6) if options.quick else (8, 24)
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)

    begin = time.perf_counter()
    rows, found = [], []
    folder = tempfile.TemporaryDirectory()
    features = FeatureSettings(folder=folder.name, budget_bytes=2**30, trials=trials)
    for seed in range(seeds):
        one = study(configure(options, seed=seed, trials=trials, ways=("none",)), features)
        all_ways = study(configure(options, seed=seed, trials=trials, ways=WAYS), features)
        best = [max(scores, key=lambda score: score[1]) for scores in (one, all_ways)]
        rows.append((best[0][1], best[1][1]))
        found += all_ways
        cells = [f"{100 * score:.1f}" for score in (*rows[-1], rows[-1][1] - rows[-1][0])]
        print(
            f"seed {seed}: without {cells[0]}, with {cells[1]} ({best[1][0]}), {cells[2]} points", flush=True
        )
    folder.cleanup()
    summary(rows, found, seconds=time.perf_counter() - begin, trials=trials)


def configure(options: argparse.Namespace, *, seed: int, trials: int, ways: tuple[str, ...]) -> StudyConfig:
    """Return the study of one seed and arm."""
    return StudyConfig.from_dict(
        {
            "study": {
                **{"name": "imbalance", "metric": METRIC, "seed": seed, "trials": trials, "epochs": 8},
                **{"sampler": "random", "baselines": []},
            },
            "data": {"path": str(options.images), "image_size": 128, "horizontal_flip": False},
            "model": {"backbone": BACKBONE, "weights": str(options.weights), "precision": "exact"},
            "space": {"strategy": ["replace", "load"], "imbalance": ways},
        }
    )


def suggestions(config: StudyConfig) -> Iterator[TrialSettings]:
    """Yield the settings of each trial of the study."""
    space = Space(config)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=config.study.seed))
    for number in range(config.study.trials):
        yield space.settings(space.suggest(study.ask()), number=number, cache_dir="/nowhere")


def study(config: StudyConfig, features: FeatureSettings) -> list[tuple[str, float]]:
    """Return of each trial how it met imbalance and the score of its best epoch."""
    scores = []
    for settings in suggestions(config):
        epochs = train(Run(settings, World(), features), settings.epochs)
        scores.append((settings.imbalance, max(epoch[METRIC.removeprefix("val/")] for epoch in epochs)))
    return scores


def train(run: Run, epochs: int) -> list[dict[str, float]]:
    """Return the validation metrics of each epoch."""
    told = []
    for epoch in range(1, epochs + 1):
        run.train_epoch(epoch, lambda: False)
        told.append(run.evaluate("val"))
    return told


def summary(
    rows: list[tuple[float, float]], found: list[tuple[str, float]], *, seconds: float, trials: int
) -> None:
    """Print means and spreads over seeds, then the trials of the searching studies by way."""
    print()
    gains = [100 * (after - before) for before, after in rows]
    columns = [[100 * row[0] for row in rows], [100 * row[1] for row in rows], gains]
    means = [f"{statistics.mean(c):.1f} ± {statistics.stdev(c):.1f}" for c in columns]
    report.table(["", "without", "with", "gain, points"], [["mean ± sd over seeds", *means]])
    print()
    ways = [[100 * score for name, score in found if name == way] for way in WAYS]
    cells = [
        [way, str(len(scores)), f"{statistics.median(scores):.1f}", f"{max(scores):.1f}"]
        for way, scores in zip(WAYS, ways, strict=True)
        if scores
    ]
    report.table(["way", "trials", "median", "best"], cells)
    report.last_line(
        {
            "gain_mean": statistics.mean(gains),
            "gain_sd": statistics.stdev(gains),
            "gain_min": min(gains),
            "seeds": len(rows),
            "trials": trials,
            "seconds": seconds,
            "load": report.load(),
        }
    )


if __name__ == "__main__":
    main()
