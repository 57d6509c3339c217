"""Worth of solving for a head, beside searching for one: judged on images that did not choose.

    python -m benchmarks.exact_heads --images DIR --weights FILE [--heads 48] [--quick]

DIR is a folder with `train` and `val`; FILE holds mobilenet_v2's weights. Everything runs in this process, on
one thread, from the same stored features.

searched   heads trained by SGD: the starts of `replace` and `load`, then heads sampled from the default
           space, 5 epochs each. Trial and epoch are chosen on a random half of the validation images.
solved     the exact head, chosen by folds of the training images; no validation image chooses it.
kept       the better of the solved head and the start of `load`, chosen on the half.
listed     the best head of each candidate of the solver, chosen on the half like the searched ones.

`reads` is the score where the head was chosen, `is` that on the other half of the validation images; both are
means over random halves. A method that does not fool itself has both alike. Core-seconds do not include the
pass over the images, which all share.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import optuna
import torch
from torch import Tensor

from benchmarks import report
from finetune.errors import NonFiniteLoss
from finetune.evaluation.scores import BATCH
from finetune.settings import FeatureSettings, TrialSettings
from finetune.training import exact, loop
from finetune.training.run import Run
from finetune.training.workers import World
from search.config.study import StudyConfig
from search.suggest.space import Space

BACKBONE, EPOCHS, HALVES = "mobilenet_v2", 5, 200


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", required=True, type=Path, help="folder with train and val")
    parser.add_argument("--weights", required=True, type=Path, help="mobilenet_v2's weights")
    parser.add_argument("--heads", type=int, default=48, help="heads that are searched")
    parser.add_argument("--quick", action="store_true", help="8 searched heads")
    options = parser.parse_args()
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        features = FeatureSettings(folder=folder, budget_bytes=2**32, trials=48)
        config = configure(options, 8 if options.quick else options.heads)
        solved, solving = solve_heads(config, features)  # first, so that it fills the store for both
        searched, searching, start = search_heads(config, features)
    show(solved, searched, start, solving, searching)


def configure(options: argparse.Namespace, heads: int) -> StudyConfig:
    """Return the study whose heads are searched."""
    return StudyConfig.from_dict(
        {
            "study": {"name": "heads", "trials": heads, "epochs": EPOCHS, "sampler": "random"},
            "data": {"path": str(options.images), "image_size": 128},
            "model": {"backbone": BACKBONE, "weights": str(options.weights)},
            "space": {"strategy": ["replace", "load"]},
        }
    )


def solve_heads(config: StudyConfig, features: FeatureSettings) -> tuple[list[tuple[Tensor, float]], float]:
    """Return for each candidate's head which validation images it has right, and its score on folds of train.

    The chosen one comes first. Also return the core-seconds of the solver.
    """
    space = Space(config)
    settings = space.settings(space.baseline("exact"), number=0, cache_dir="/nowhere")
    run = Run(settings, World(), features)
    exact.read(run)  # the pass over the images
    begin = time.process_time()
    choice = exact.solve(run, by_class=False)
    seconds = time.process_time() - begin
    found = []
    for one in choice.others:
        final = Run(settings, World(), features, shape=one.shape)
        final.model.head.new.load_state_dict(dict(one.state))
        found.append((right(final), one.score.accuracy))
        print(f"  {one.name}: {one.score.accuracy:.3f} in folds, {found[-1][0].mean():.3f} on validation")
    return found, seconds


def search_heads(config: StudyConfig, features: FeatureSettings) -> tuple[Tensor, float, int]:
    """Return which validation images each head has right after each epoch, (heads x epochs, M).

    Also return the core-seconds, and the number of the start of `load`.
    """
    found, begin = [], time.process_time()
    strategies = []
    for settings in suggestions(config):
        run = Run(settings, World(), features)
        strategies.append(settings.strategy)
        for epoch in range(1, EPOCHS + 1):
            try:
                run.train_epoch(epoch, lambda: False)
                found.append(right(run))
            except (NonFiniteLoss, loop.limits.RateTooHigh):
                found.append(torch.zeros(run.data.size("val")).double())
    return torch.stack(found), time.process_time() - begin, strategies.index("load")


def suggestions(config: StudyConfig) -> Iterator[TrialSettings]:
    """Yield the settings of each searched head: the starts first."""
    space = Space(config)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=config.study.seed))
    starts = space.starts()
    params = [*starts, *(space.suggest(study.ask()) for _ in range(config.study.trials - len(starts)))]
    for number, one in enumerate(params):
        yield space.settings(one, number=number, cache_dir=str(Path(tempfile.gettempdir()) / "exact_heads"))


@torch.no_grad()
def right(run: Run) -> Tensor:
    """Return 1.0 for each validation image that the model has right, float64 (M,)."""
    run.model.eval()
    feed, labels = run.inputs.feed("val"), run.data.labels("val")
    batches = feed.batches(torch.arange(len(labels)).split(BATCH))
    logits = torch.cat([run.model.from_features(feed.finish(x)) for x in batches])
    return (logits.argmax(1) == labels).double()


def halves(images: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield random halves of the validation images: those that choose, and those that judge."""
    draw = torch.Generator().manual_seed(0)
    for _ in range(HALVES):
        order = torch.randperm(images, generator=draw)
        yield order[: images // 2], order[images // 2 :]


def chosen(found: Tensor) -> tuple[float, float]:
    """Return the mean score of the best head where it was chosen and where it was not, for heads (H, M)."""
    told = []
    for choose, judge in halves(found.shape[1]):
        best = int(found[:, choose].mean(1).argmax())
        told.append((found[best, choose].mean().item(), found[best, judge].mean().item()))
    reads, judged = (sum(values) / len(told) for values in zip(*told, strict=True))
    return reads, judged


def show(
    solved: list[tuple[Tensor, float]], searched: Tensor, start: int, solving: float, searching: float
) -> None:
    """Print what each method reads and is."""
    best, folds = solved[0]
    load = searched[start * EPOCHS : (start + 1) * EPOCHS]
    heads = len(searched) // EPOCHS
    counts = [count for count in (1, 4, 16, heads) if count <= heads]
    found = {f"searched, best of {count}": chosen(searched[: count * EPOCHS]) for count in counts}
    found["solved, chosen by folds"] = (folds, best.mean().item())
    found["kept: solved or load's start"] = chosen(torch.cat([best[None], load]))
    found["listed: best candidate of each kind"] = chosen(torch.stack([one for one, _ in solved]))
    rows = [[name, *(f"{100 * value:.1f}" for value in pair)] for name, pair in found.items()]
    print(f"{searched.shape[1]} validation images; solved in {solving:.1f} core-seconds, ", end="")
    print(f"{heads} heads searched in {searching:.1f}")
    report.table(["", "reads, %", "is, %"], rows)
    most = found[f"searched, best of {heads}"]
    report.last_line(
        {
            "solved_minus_searched": 100 * (found["solved, chosen by folds"][1] - most[1]),
            "kept_minus_searched": 100 * (found["kept: solved or load's start"][1] - most[1]),
            "searched_fools_itself_by": 100 * (most[0] - most[1]),
            "solved_fools_itself_by": 100 * (folds - best.mean().item()),
            "core_seconds": {"solved": solving, "searched": searching},
            "load": report.load(),
        }
    )


if __name__ == "__main__":
    main()
