"""A search over all three strategies in equal shares, side by side with P+, and against the least work.

    python -m benchmarks.mixed_search [--images DIR --weights FILE] [--quick]

No trial is stopped early, so all patterns do the same training. The least work counts multiplications and
additions: each block's pass over frozen images once for all trials (both as they are and mirrored), the
trained blocks and heads forward and backward in every trial, and validation alike. The bound on the speedup
is the work of P+ over the least work; `achieved_over_optimum` is the speedup over that bound, and above 1
where what P+ loses outside the arithmetic weighs more than what we lose.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import patterns, report
from benchmarks.workload import ours, suggestions, workload
from finetune.images.batches import ImageData
from finetune.settings import TrialSettings
from finetune.training import building, shared

TRIALS, EPOCHS = 24, 3
SPACE = {"strategy": ["replace", "load", "fuse"]}
BACKWARD = 2
"""Work of a backward pass in units of the forward pass: gradients of inputs and of weights."""


def main() -> None:
    """Measure and print."""
    with workload(__doc__ or "") as load:
        config = load.config("mixed", trials=TRIALS, epochs=EPOCHS, space=SPACE)
        trials = in_equal_shares(suggestions(config))
        rounds, few = load.rounds, 3 if load.quick else 6
        seconds: dict[str, list[float]] = {"P+": [], "ours": []}
        for turn in range(rounds):
            chosen = trials[turn * few : (turn + 1) * few]
            seconds["P+"].append(TRIALS * patterns.seconds_per_trial(chosen, tuned=True))
            load.forget()
            seconds["ours"].append(ours(config).whole)
        middle = {name: report.median(values) for name, values in seconds.items()}
        data = shared.images(trials[0].data)
        plain, least = work(trials, data)
        speedup, bound = middle["P+"] / middle["ours"], plain / least
        print(
            f"{TRIALS} trials x {EPOCHS} epochs, {data.size('train')} images; P+ from {few * rounds} trials"
        )
        rows = [[name, f"{value:.1f}", f"{value / TRIALS:.2f}"] for name, value in middle.items()]
        report.table(["", "seconds", "per trial"], rows)
        print(f"work: P+ {plain:.2e}, least {least:.2e} multiply-adds; bound on the speedup {bound:.2f}")
        report.last_line(
            {
                "p_plus_over_ours": speedup,
                "achieved_over_optimum": speedup / bound,
                "bound": bound,
                "seconds": middle,
                "trials": TRIALS,
                "trials_p": few * rounds,
                "epochs": EPOCHS,
                "images": data.size("train"),
                "load": report.load(),
            }
        )


def in_equal_shares(trials: Sequence[TrialSettings]) -> list[TrialSettings]:
    """Return the trials in such an order that the first few have all strategies in equal shares."""
    by_strategy = {name: [t for t in trials if t.strategy == name] for name in SPACE["strategy"]}
    turns = zip(*by_strategy.values(), strict=False)
    return [trial for turn in turns for trial in turn]


def work(trials: Sequence[TrialSettings], data: ImageData) -> tuple[float, float]:
    """Return the multiply-adds of all trials without sharing, and the least with it."""
    train, val = data.size("train"), data.size("val")
    plain = shared = 0.0
    deepest: list[float] = []
    for trial in trials:
        model = building.model(trial, data, torch.device("cpu")).eval()
        h = torch.zeros(1, 3, trial.data.image_size, trial.data.image_size)
        frozen, h = by_block(model.prefix, h)
        trunk, h = by_block(model.trunk, h)
        head = count(model.head, h)
        behind = sum(trunk) + head
        plain += EPOCHS * (train * (sum(frozen) + (1 + BACKWARD) * behind) + val * (sum(frozen) + behind))
        shared += EPOCHS * (train * (1 + BACKWARD) * behind + val * behind)
        deepest = frozen if len(frozen) > len(deepest) else deepest
    sheets = data.sheets(EPOCHS)
    return plain, shared + (sheets * train + val) * sum(deepest)


@torch.no_grad()
def by_block(blocks: nn.Sequential, h: Tensor) -> tuple[list[float], Tensor]:
    """Return the multiply-adds of each block for one image, and its activations behind them."""
    counts = []
    for block in blocks:
        counts.append(count(block, h))
        h = block(h)
    return counts, h


@torch.no_grad()
def count(module: nn.Module, h: Tensor) -> float:
    """Return the multiply-adds of one forward pass."""
    with FlopCounterMode(display=False) as counter:
        module(h)
    return counter.get_total_flops() / 2


if __name__ == "__main__":
    main()
