"""Private studies: accuracy by epsilon and mechanism, what the search costs, and what an audit finds.

    python -m benchmarks.private_search --cost
    python -m benchmarks.private_search --reference                     (where dp-accounting is installed)
    python -m benchmarks.private_search --images DIR --weights FILE [--draws 10] [--epsilons 0.5 1 2 4 8]
    python -m benchmarks.private_search --images DIR --weights FILE --audit

DIR is a folder with `train` and `val`; FILE holds mobilenet_v2's weights. `one trial` are heads of one
mechanism at the epsilon of the study, without a search; `study` are whole studies of 25 trials on average.
Accuracy is the exact one on the validation images, which only a benchmark may print.
"""

import argparse
import warnings
from pathlib import Path

import numpy as np
import torch

from finetune.private import accounting, attack, mechanisms, search, trial
from finetune.private.law import TrialLaw
from finetune.private.mechanisms import MECHANISMS, Choices, Mechanism, Private, one_thread
from finetune.private.noise import Draws
from finetune.settings import DataSettings, TrialSettings, WeightsSettings

DELTA, TRIALS = 1e-4, 25
BACKBONE = "mobilenet_v2"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cost", action="store_true")
    parser.add_argument("--reference", action="store_true")
    parser.add_argument("--audit", action="store_true")
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
    if options.images and options.weights:
        data = images_of(options.images, options.weights)
        if options.audit:
            audits(data)
        else:
            accuracy(data, options.draws, options.epsilons)


def curve_for(target: float) -> tuple[float, np.ndarray]:
    """Return the noise, and the curve, of DP-SGD at an epsilon: rate .256, 160 steps."""
    noise = accounting.noise_for(
        lambda noise: accounting.epsilon(accounting.subsampled(0.256, noise, 160), DELTA), target
    )
    return noise, accounting.subsampled(0.256, noise, 160)


def cost() -> None:
    """Print what the search costs."""
    print("| epsilon of a trial | trials on average | all released | best released | with a geometric law |")
    print("|---|---|---|---|---|")
    for target, mean in ((0.99, 10), (0.99, 25), (0.99, 100), (1.99, 25), (4.0, 25)):
        _, curve = curve_for(target)
        best = [accounting.study_epsilon(curve, TrialLaw(mean, shape), DELTA) for shape in (0.0, 1.0)]
        naive = accounting.released_one_by_one(curve, mean, DELTA)
        print(f"| {target} | {mean} | {naive:.1f} | {best[0]:.2f} | {best[1]:.2f} |")


def reference() -> None:
    """Print the same by dp-accounting, an accountant that shares no code with opacus."""
    from importlib import import_module

    events, rdp = import_module("dp_accounting.dp_event"), import_module("dp_accounting.rdp")
    for target, mean in ((0.99, 10), (0.99, 25), (0.99, 100), (1.99, 25), (4.0, 25)):
        noise, _ = curve_for(target)
        one = events.PoissonSampledDpEvent(0.256, events.GaussianDpEvent(noise))
        whole = events.SelfComposedDpEvent(one, 160)
        accountant = rdp.RdpAccountant().compose(events.RepeatAndSelectDpEvent(whole, mean, 0))
        print(f"noise {noise:.4f}, {mean} trials: {accountant.get_epsilon(DELTA):.4f}")


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


def accuracy(data: search.Images, draws: int, epsilons: list[float]) -> None:
    """Print accuracy by epsilon: of one trial of each mechanism, and of whole studies."""
    rows = {
        (split, root): data.rows(BACKBONE, split, root=root)
        for split in ("train", "val")
        for root in (False, True)
    }
    print(
        "| epsilon | " + " | ".join(f"one trial: {name}" for name in MECHANISMS) + " | study of 25 trials |"
    )
    print("|---" * (len(MECHANISMS) + 2) + "|", flush=True)
    units = rows["train", False].count
    for epsilon in epsilons:
        one = _plan(epsilon, units, 1)
        cells = []
        for name in MECHANISMS:
            found = []
            for number in range(draws):
                key = f"{name} {number}".encode()
                drawn = trial.draw(Draws(key, "settings"), (BACKBONE,), (name,))
                train, val = rows["train", drawn.root], rows["val", drawn.root]
                with one_thread():
                    head = trial.run(0, key, drawn, train, val, one.noise).head
                found.append(float((head.answers(val.features) == val.labels).mean()))
            cells.append(found)
        whole, found = _plan(epsilon, units, TRIALS), []
        for number in range(draws):
            best, _ = search.search(whole, f"study {number}".encode(), data, (BACKBONE,), lambda _: None)
            val = rows["val", best.draw.root]
            found.append(float((best.head.answers(val.features) == val.labels).mean()))
        cells.append(found)
        told = " | ".join(f"{np.mean(c):.3f} ± {np.std(c) / len(c) ** 0.5:.3f}" for c in cells)
        print(f"| {epsilon:g} | {told} |", flush=True)


def _plan(epsilon: float, units: int, trials: int) -> search.Plan:
    names: tuple[Mechanism, ...] = MECHANISMS
    return search.plan(
        epsilon=epsilon, delta=DELTA, units=units, trials=trials, unit="image", mechanisms=names
    )


if __name__ == "__main__":
    main()
