"""Private studies: accuracy by epsilon and mechanism, what the search costs, and what an audit finds.

    python -m benchmarks.private_search --cost
    python -m benchmarks.private_search --reference                     (where dp-accounting is installed)
    python -m benchmarks.private_search --images DIR --weights FILE [--draws 10] [--epsilons 0.5 1 2 4 8]
    python -m benchmarks.private_search --images DIR --weights FILE --odds
    python -m benchmarks.private_search --images DIR --weights FILE --audit
    python -m benchmarks.private_search --digits DIR                    (writes the folder of the digits)

DIR is a folder with `train` and `val`; FILE holds mobilenet_v2's weights. `one trial` are heads of one
mechanism at the epsilon of the study, without a search; `study` are whole studies of 25 trials on average.
Accuracy is the exact one on validation images, which only a benchmark may print; a study's is on images that
did not choose its winner: one half of them chooses, the other half measures.
"""

import argparse
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits

from finetune.private import accounting, attack, mechanisms, profiles, renyi, search, trial
from finetune.private.law import TrialLaw
from finetune.private.mechanisms import MECHANISMS, Choices, Mechanism, Private, one_thread
from finetune.private.noise import Draws
from finetune.settings import DataSettings, TrialSettings, WeightsSettings

DELTA, TRIALS = 1e-4, 25
BACKBONE = "mobilenet_v2"
ODDS = (tuple(trial.ODDS.values()), (1 / 3, 1 / 3, 1 / 3), (0.6, 0.1, 0.3), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0))
"""Odds of the mechanisms that are compared; the first are those of the product."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cost", action="store_true")
    parser.add_argument("--reference", action="store_true")
    parser.add_argument("--audit", action="store_true")
    parser.add_argument("--odds", action="store_true", help="studies by the odds of their mechanisms")
    parser.add_argument("--digits", type=Path, help="write scikit-learn's digits as files into this folder")
    parser.add_argument("--images", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--epsilons", type=float, nargs="+", default=[0.5, 1.0, 2.0, 4.0, 8.0])
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.cost:
        cost()
    if options.reference:
        reference()
    if options.digits:
        write_digits(options.digits)
    if options.images and options.weights:
        data = images_of(options.images, options.weights)
        if options.audit:
            audits(data)
        elif options.odds:
            by_odds(data, options.draws, options.epsilons)
        else:
            accuracy(data, options.draws, options.epsilons, trial.ODDS)


ASKED = ((0.99, 10), (0.99, 25), (0.99, 100), (1.99, 25), (4.0, 25))
"""Epsilons of a trial, and trials on average, whose search is told."""


def cost() -> None:
    """Print what the search costs, for trials that ask one noisy question."""
    print("| epsilon of a trial | trials on average | all released | the best one: Renyi | profiles |")
    print("|---|---|---|---|---|")
    for target, mean in ASKED:
        noise = accounting.noise_for(lambda noise: accounting.once(noise).epsilon(DELTA), target)
        one, law = accounting.once(noise), TrialLaw(mean)
        naive = accounting.once(noise / math.sqrt(mean)).epsilon(DELTA)
        best = renyi.study_epsilon(one.curve, law, DELTA), profiles.searched(one.profile, law, DELTA)
        print(f"| {target} | {mean} | {naive:.2f} | {best[0]:.3f} | {best[1]:.3f} |")


def reference() -> None:
    """Print the figures of tests/test_private_cost.py by dp-accounting, which shares no code with opacus."""
    from importlib import import_module

    events, rdp = import_module("dp_accounting.dp_event"), import_module("dp_accounting.rdp")
    losses = import_module("dp_accounting.pld.privacy_loss_distribution")
    for noise in (11.584948193137127, 6.295394883753849, 3.512504320746599):
        whole = events.SelfComposedDpEvent(
            events.PoissonSampledDpEvent(0.256, events.GaussianDpEvent(noise)), 160
        )
        for mean, shape in ((10, 0), (25, 0), (25, 1), (100, 0), (100, 1)):
            accountant = rdp.RdpAccountant().compose(events.RepeatAndSelectDpEvent(whole, mean, shape))
            print(
                f"Renyi, noise {noise:.4f}, {mean} trials, eta {shape}: {accountant.get_epsilon(DELTA):.6f}"
            )
    law = TrialLaw(TRIALS)
    dp_sgd, once = [(0.25, 6.92, 60, 10.44), (0.25, 2.0, 60, 2.76)], [(1.0, 3.3, 1, 1e4), (1.0, 0.87, 1, 1e4)]
    for rate, noise, steps, beside in dp_sgd + once:
        loss = losses.from_gaussian_mechanism(
            noise, sampling_prob=rate, value_discretization_interval=MESH
        ).self_compose(steps)
        loss = loss.compose(losses.from_gaussian_mechanism(beside, value_discretization_interval=MESH))
        first = loss.get_epsilon_for_delta(DELTA / law.mean)
        tried = np.linspace(0, first, 400)
        odd = 1 / law.gamma - 1
        change = min(np.log(np.exp(e) + odd * loss.get_delta_for_epsilon(float(e))) for e in tried)
        told = f"trial {loss.get_epsilon_for_delta(DELTA):.5f}, study {first + change:.5f}"
        print(f"profile, rate {rate:g}, noise {noise:g}, {steps} steps beside {beside:g}: {told}", flush=True)


MESH = 1e-4
"""Mesh of dp-accounting's loss distributions."""


DIGITS, SIDE = 1297, 64
"""Number of digits that train; the others validate. Width and height of their files in pixels."""


def write_digits(folder: Path) -> None:
    """Write scikit-learn's 1,797 digits as PNG files, in an order drawn with seed 0."""
    found = load_digits()
    for place, number in enumerate(np.random.default_rng(0).permutation(len(found.target))):
        split = "train" if place < DIGITS else "val"
        to = folder / split / str(found.target[number])
        to.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray((found.images[number] * 255 / 16).astype(np.uint8))
        image.resize((SIDE, SIDE), Image.Resampling.NEAREST).save(to / f"{number:04d}.png")


def images_of(images: Path, weights: Path) -> search.Images:
    """Return the images, to be read by mobilenet_v2 at 128 pixels."""
    settings = TrialSettings(
        data=DataSettings(kind="folder", path=str(images), image_size=128, horizontal_flip=False),
        backbone=BACKBONE,
        weights=WeightsSettings(file=str(weights)),
        strategy="exact",
        epochs=1,
        learning_rate=0.0,
        cache_dir=str(Path.home() / ".cache" / "finetune"),
    )
    return search.Images({BACKBONE: settings}, None, torch.device("cpu"), None)


class Silent(Draws):
    """Draws whose noise is left out, as a mistake in a program might."""

    def normal(self, *shape: int) -> np.ndarray:
        """Return zeros."""
        return np.zeros(shape)


def audits(data: search.Images) -> None:
    """Print what LiRA finds of heads that are trained on random halves of all images."""
    parts = [data.rows(BACKBONE, split, root=False) for split in ("train", "val")]
    rows, labels = np.concatenate([p.features for p in parts]), np.concatenate([p.labels for p in parts])
    classes = parts[0].classes

    def means(noise: float, kind: type[Draws]) -> attack.Fit:
        loud = accounting.Noise(noise, {}, 1.0, 1.0, 1.0)

        def fit(members: np.ndarray) -> np.ndarray:
            found = []
            for number, used in enumerate(members):
                own = Private(rows[used], labels[used], np.arange(used.sum()), classes)
                head = mechanisms.fit(own, Choices("means", True), loud, kind(b"s", str(number)))
                found.append(rows @ head.weight.T + head.bias)
            return np.stack(found)

        return fit

    print("| head | AUC | found at 0.1 % false alarms | at 1 % | epsilon at least |\n|---|---|---|---|---|")
    fits = {
        "linear, training loss .05": attack.softmax_regression(rows, labels, classes, loss=0.05),
        "linear, training loss .30": attack.softmax_regression(rows, labels, classes, loss=0.3),
        "class means, noise left out": means(3.64, Silent),
        "class means, noise 3.64 (epsilon .96)": means(3.64, Draws),
    }
    for name, fit in fits.items():
        with one_thread():
            shadows = attack.train(fit, labels, 64)
        _tell(name, shadows)
    coin = np.random.default_rng(1).random(shadows.members.shape) < 0.5
    _tell("the last one, members claimed by a coin", attack.Shadows(coin, shadows.confidence))


def _tell(name: str, shadows: attack.Shadows) -> None:
    found, scores = attack.of_recipe(shadows)
    rates = [
        f"{100 * share:.1f} % ({100 * low:.1f} to {100 * high:.1f})"
        for share, low, high in found.rates.values()
    ]
    low, high = found.auc_between
    bound = attack.epsilon_below(shadows, scores)
    print(
        f"| {name} | {found.auc:.3f} ({low:.3f} to {high:.3f}) | {' | '.join(rates)} | {bound:.2f} |",
        flush=True,
    )


class Heads:
    """Heads of one set of images, and their exact and noisy accuracies.

    Args:
        data: the images.
        seed: seed of the halves of the validation images.
    """

    def __init__(self, data: search.Images, seed: int = 0) -> None:
        self.rows = {
            (split, root): data.rows(BACKBONE, split, root=root)
            for split in ("train", "val")
            for root in (False, True)
        }
        self.units = self.rows["train", False].count
        val = self.rows["val", False].count
        self.half = np.random.default_rng(seed).permutation(val) < val // 2

    def fit(self, drawn: trial.Draw, noise: accounting.Noise, draws: Draws) -> np.ndarray:
        """Return whether a head is right about each validation image, bool (V,)."""
        val = self.rows["val", drawn.root]
        with one_thread():
            head = mechanisms.fit(self.rows["train", drawn.root], drawn.choices, noise, draws)
        right: np.ndarray = head.answers(val.features) == val.labels
        return right

    def alone(self, name: Mechanism, plan: search.Plan, number: int) -> float:
        """Return the accuracy of one trial of a mechanism, whose settings are drawn."""
        drawn = trial.draw(Draws(f"{name} {number}".encode(), "settings"), (BACKBONE,), (name,))
        return float(self.fit(drawn, plan.noise, Draws(f"{name} {number}".encode(), "head")).mean())

    def study(self, plan: search.Plan, number: int, odds: Mapping[Mechanism, float]) -> tuple[float, float]:
        """Return the accuracy of a study's winner: on images that did not choose it, and on those that did.

        For the first, one half of the validation images chooses by its noisy count and the other one
        measures; then the halves change places.
        """
        key = f"study {number}".encode()
        chosen: dict[str, tuple[float, float]] = {}
        parts = {"first": self.half, "second": ~self.half, "all": np.ones(len(self.half), bool)}
        for one in range(plan.law.draw(float(Draws(key, "number of trials").uniform(1)[0]))):
            drawn = trial.draw(Draws(key, f"trial {one}: settings"), (BACKBONE,), MECHANISMS, odds)
            right = self.fit(drawn, plan.noise, Draws(key, f"trial {one}: head"))
            loud = plan.noise.one_shot * float(Draws(key, f"trial {one}: score").normal(1)[0])
            for name, part in parts.items():
                score = (right[part].sum() + loud) / part.sum()
                measured = right[~part].mean() if name != "all" else right.mean()
                chosen[name] = max(chosen.get(name, (-np.inf, 0.0)), (float(score), float(measured)))
        return (chosen["first"][1] + chosen["second"][1]) / 2, chosen["all"][1]


def accuracy(data: search.Images, draws: int, epsilons: list[float], odds: Mapping[Mechanism, float]) -> None:
    """Print accuracy by epsilon: of one trial of each mechanism, and of whole studies."""
    heads = Heads(data)
    names = [*(f"one trial: {name}" for name in MECHANISMS), "study of 25 trials", "where it chose"]
    print("| epsilon | " + " | ".join(names) + " |\n" + "|---" * (len(names) + 1) + "|", flush=True)
    for epsilon in epsilons:
        one, whole = _plan(epsilon, heads.units, 1), _plan(epsilon, heads.units, TRIALS)
        cells = [[heads.alone(name, one, number) for number in range(draws)] for name in MECHANISMS]
        studies = np.array([heads.study(whole, number, odds) for number in range(draws)])
        told = " | ".join(told_of(cell) for cell in [*cells, *studies.T])
        print(f"| {epsilon:g} | {told} |", flush=True)


def told_of(found: Sequence[float] | np.ndarray) -> str:
    """Return mean and standard error."""
    return f"{np.mean(found):.3f} ± {np.std(found, ddof=1) / len(found) ** 0.5:.3f}"


def by_odds(data: search.Images, draws: int, epsilons: list[float]) -> None:
    """Print the accuracy of studies, on images that did not choose, by the odds of their mechanisms."""
    heads = Heads(data)
    print("| odds of means, least squares, DP-SGD | " + " | ".join(f"epsilon {e:g}" for e in epsilons) + " |")
    print("|---" * (len(epsilons) + 1) + "|", flush=True)
    for odds in ODDS:
        said: dict[Mechanism, float] = dict(zip(MECHANISMS, odds, strict=True))
        plans = [_plan(epsilon, heads.units, TRIALS) for epsilon in epsilons]
        cells = [told_of([heads.study(p, number, said)[0] for number in range(draws)]) for p in plans]
        print(f"| {' '.join(f'{share:.2f}' for share in odds)} | {' | '.join(cells)} |", flush=True)


def _plan(epsilon: float, units: int, trials: int) -> search.Plan:
    names: tuple[Mechanism, ...] = MECHANISMS
    return search.plan(
        epsilon=epsilon, delta=DELTA, units=units, trials=trials, unit="image", mechanisms=names
    )


if __name__ == "__main__":
    main()
