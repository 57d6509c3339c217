"""Expected cost of a study: trials, seconds, GPU-hours and money, from the time that one image takes.

The estimate is a plain sum: one pass for the features of each backbone, then every trial's epochs, of which
early stopping leaves a part. It knows neither the disk nor the other users of the machine, so the record says
how far it was off.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from search.config.domain import ALL_WORD, Range, entries, values_of
from search.config.sections.study import EXACT
from search.config.study import StudyConfig
from search.suggest.baselines import BASELINES

HEAD_SECONDS = 5e-5
"""Seconds that a head on stored features needs for an image: .1 to .4 core-seconds for 5 epochs of 1,300
images (docs/decisions.md)."""
SHARE_OF_BLOCKS = 0.5
"""Share of the blocks that a trial freezes where the range goes from none to all."""


@dataclass(frozen=True)
class ImageCost:
    """Seconds per image: decoding, a pass through a backbone's blocks, a training step of all of them."""

    decode: float
    forward: float
    train: float


@dataclass(frozen=True)
class Cost:
    """Expected cost of a study."""

    trials: int
    seconds: float
    gpu_hours: float
    money: float | None

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {
            "trials": self.trials,
            "seconds": round(self.seconds, 1),
            "gpu_hours": round(self.gpu_hours, 4),
            "money": None if self.money is None else round(self.money, 2),
        }


def expected(
    config: StudyConfig,
    images: Mapping[str, int],
    costs: Mapping[str, ImageCost],
    *,
    slots: int,
    gpus: float,
    repeats: int = 0,
) -> Cost:
    """Return the expected cost of a study.

    Args:
        config: the study's config.
        images: number of images of each split.
        costs: cost of an image, for each backbone of the study.
        slots: trials that run at the same time.
        gpus: GPUs of all slots together.
        repeats: trainings with other seeds after the search, each of all epochs.
    """
    study = config.study
    seen = images["train"] + images["val"]
    before = sum((cost.decode + cost.forward) * seen for cost in costs.values())
    of_trial = sum(_of_trial(config, cost, images) for cost in costs.values()) / len(costs)
    fixed = sum(_of_baseline(name, costs[config.backbones[0]], seen) for name in study.baselines)
    fixed = fixed * study.epochs + repeats * of_trial / share_of_epochs(config)
    counted = len(set(study.baselines) - {EXACT})
    trials = study.trials - counted
    if study.is_open and study.spending is not None:
        seconds = study.spending.seconds / (gpus if study.spending.of_gpus else 1)
        trials = max(0, int(((seconds - before) * slots - fixed) / of_trial))
    else:
        seconds = before + (fixed + trials * of_trial) / max(1, slots)
        if study.spending is not None and not study.spending.of_gpus:
            seconds = min(seconds, study.spending.seconds)
    hours = seconds * gpus / 3600
    price = study.price_per_gpu_hour
    return Cost(trials + counted, seconds, hours, None if price is None else price * hours)


def share_of_epochs(config: StudyConfig) -> float:
    """Return the share of its epochs that a trial trains on average, under early stopping."""
    early, epochs = config.early_stopping, config.study.epochs
    if not early.stops:
        return 1.0
    reached, rung, share = 0.0, config.grace, 1.0
    begin = 0
    while begin < epochs:
        end = min(rung, epochs)
        reached += share * (end - begin)
        begin, rung, share = end, rung * early.factor, share / early.factor
    return reached / epochs


def remaining(
    ended: Iterable[tuple[str, float]], running: Iterable[tuple[str, float]], left: int, slots: int
) -> float | None:
    """Return the seconds until a study is done, for a countdown; None until a trial has ended.

    Args:
        ended: strategy and seconds of each ended trial, or of the last ones.
        running: strategy of each running trial, and the seconds that it has run.
        left: trials that have not begun.
        slots: trials that run at the same time.
    """
    by_strategy: dict[str, list[float]] = {}
    for strategy, seconds in ended:
        by_strategy.setdefault(strategy, []).append(seconds)
    every = [seconds for some in by_strategy.values() for seconds in some]
    if not every:
        return None
    usual = {strategy: sum(some) / len(some) for strategy, some in by_strategy.items()}
    mean = sum(every) / len(every)
    begun = [max(0.0, usual.get(strategy, mean) - used) for strategy, used in running]
    busy = max(1, min(slots, left + len(begun)))
    return max(max(begun, default=0.0), (sum(begun) + left * mean) / busy)


def _of_trial(config: StudyConfig, cost: ImageCost, images: Mapping[str, int]) -> float:
    """Return the seconds of a sampled trial, on average over the strategies."""
    frozen = entries(config.space.frozen_layers, config.strategies)
    seen = images["train"] + images["val"]
    found = []
    for strategy in config.strategies:
        share = _trained_share(frozen[strategy], config)
        step = share * (cost.train * images["train"] + cost.forward * images["val"])
        found.append(HEAD_SECONDS * seen + step)
    return config.study.epochs * share_of_epochs(config) * sum(found) / len(found)


def _of_baseline(name: str, cost: ImageCost, images: int) -> float:
    """Return the seconds of an epoch of a baseline."""
    return (HEAD_SECONDS if BASELINES[name]["frozen_layers"] == ALL_WORD else cost.train) * images


def _trained_share(frozen: Any, config: StudyConfig) -> float:
    """Return the share of the blocks that train, on average over a domain of `frozen_layers`."""
    blocks = sum(config.blocks.values()) / len(config.blocks)

    def share(value: Any) -> float:
        if value == ALL_WORD:
            return 1.0
        return float(value) if isinstance(value, float) else min(1.0, value / blocks)

    ends = (frozen.low, frozen.high) if isinstance(frozen, Range) else tuple(values_of(frozen))
    return 1 - sum(map(share, ends)) / len(ends)
