"""Check that stored features do not change the answer: the same trials with and without them.

    python -m benchmarks.same_answer [--images DIR --weights FILE] [--quick]

exact  stored features must give the bits of fresh ones
auto   the same trials with stored features from the fastest pass, against fresh ones of `exact`: the best
       accuracy may move by 0.3 points
Without Ray, in this process, so that nothing but the features differs.
"""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from scipy.stats import kendalltau

from benchmarks import report
from benchmarks.workload import Workload, suggestions, workload
from finetune.messages import Epoch, Keep, Message
from finetune.settings import FeatureSettings, TrialSettings
from finetune.training import loop
from finetune.training.run import Run
from finetune.training.workers import World

EPOCHS = 3
SPACE = {"strategy": ["replace", "load", "fuse"]}


def main() -> None:
    """Measure and print."""
    with workload(__doc__ or "") as load:
        count = 6 if load.quick else 18
        fresh = answers(load, "exact", count, stored=False)
        rows, line = [], {}
        for precision in ("exact", "auto"):
            stored = answers(load, precision, count, stored=True)
            tau = kendalltau(
                [f["val/accuracy"] for f in fresh], [s["val/accuracy"] for s in stored]
            ).statistic
            flips = sum(f["answers"] != s["answers"] for f, s in zip(fresh, stored, strict=True))
            equal = [without_clock(f) for f in fresh] == [without_clock(s) for s in stored]
            best = [100 * max(t["val/accuracy"] for t in trials) for trials in (fresh, stored)]
            rows.append([precision, f"{tau:.4f}", str(flips), str(equal), f"{best[1] - best[0]:+.2f}"])
            line[precision] = {
                "kendall_tau": tau,
                "argmax_flips": flips,
                "features_equal": equal,
                "best_difference_points": best[1] - best[0],
            }
        print(f"{count} trials x {EPOCHS} epochs; stored features against fresh ones that are exact")
        report.table(["precision", "Kendall's tau", "trials with a flip", "same bits", "best, points"], rows)
        report.last_line(line | {"trials": count, "epochs": EPOCHS, "load": report.load()})


def answers(load: Workload, precision: str, count: int, *, stored: bool) -> list[dict[str, Any]]:
    """Return each trial's last epoch and its answers to the validation images."""
    config = load.config("same", trials=count, epochs=EPOCHS, space=SPACE, model={"precision": precision})
    features = FeatureSettings(folder=str(load.scratch / "none"), budget_bytes=0, mode="off")
    if stored:
        features = FeatureSettings(folder=str(load.scratch / precision), budget_bytes=2**33, trials=64)
    return [run(settings, features, load.scratch) for settings in suggestions(config)]


def run(settings: TrialSettings, features: FeatureSettings, scratch: Path) -> dict[str, Any]:
    """Train one trial; return its last metrics, and what its best weights answer."""
    told: list[Message] = []
    paths = {"best": scratch / "best.safetensors", "last": scratch / "last.safetensors"}
    keep = Keep(metric="val/accuracy", **paths)
    keep.last.unlink(missing_ok=True)  # of the trial before, which is complete
    loop.train(settings, keep=keep, report=told.append, features=features)
    model = Run(dataclasses.replace(settings, precision="exact"), World())
    from finetune.disk import checkpoint

    model.model.load_trained_state(checkpoint.read(paths["best"])[0])
    model.model.eval()
    feed = model.inputs.feed("val")
    order = list(torch.arange(model.data.size("val")).split(64))
    with torch.no_grad():
        said = [model.model.from_features(feed.finish(x)).argmax(1) for x in feed.batches(order)]
    (*_, last) = (message.metrics for message in told if isinstance(message, Epoch))
    return {**last, "answers": torch.cat(said).tolist()}


def without_clock(trial: dict[str, Any]) -> dict[str, Any]:
    """Return a trial's metrics without those that a clock gives."""
    return {name: value for name, value in trial.items() if name not in ("seconds", "images_per_second")}


if __name__ == "__main__":
    main()
