"""A search of heads on a frozen backbone: 64 trials of 5 epochs, side by side with Ray's documented pattern.

    python -m benchmarks.head_search [--images DIR --weights FILE] [--quick]

P and P+ are described in `benchmarks/patterns.py`; they run a few trials of the list, and their time is
scaled to all of them. Ours runs the whole list as a study: cold with nothing stored, Ray's start, slots,
extraction and export included; warm as the seconds of its trials once slots are up and features are there.
"""

from typing import Any

from benchmarks import patterns, report
from benchmarks.workload import Workload, count_images, ours, suggestions, workload

TRIALS, EPOCHS = 64, 5
SPACE = {"strategy": ["replace", "load"]}


def main() -> None:
    """Measure and print."""
    with workload(__doc__ or "") as load:
        compare(load, SPACE, {}, name="head")


def compare(load: Workload, space: dict[str, Any], data: dict[str, Any], *, name: str) -> None:
    """Run P, P+ and ours, cold and warm, alternating; print a table of medians and a line of JSON."""
    config = load.config(f"{name}-cold", trials=TRIALS, epochs=EPOCHS, space=space, data=data)
    again = load.config(f"{name}-warm", trials=TRIALS, epochs=EPOCHS, space=space, data=data)
    rounds, few = load.rounds, 2 if load.quick else 4
    trials = suggestions(config)
    seconds: dict[str, list[float]] = {"P": [], "P+": [], "ours, cold": [], "ours, warm": []}
    for turn in range(rounds):
        chosen = trials[turn * few : (turn + 1) * few]
        seconds["P+"].append(TRIALS * patterns.seconds_per_trial(chosen, tuned=True))
        load.forget()
        seconds["ours, cold"].append(ours(config).whole)
        seconds["ours, warm"].append(ours(again).steady)
        seconds["P"].append(TRIALS * patterns.seconds_per_trial(chosen, tuned=False))
    middle = {name: report.median(values) for name, values in seconds.items()}
    images = count_images(config)
    print(f"{TRIALS} trials x {EPOCHS} epochs, {images} images; P and P+ scaled from {few * rounds} trials")
    rows = [
        [name, f"{value:.1f}", f"{value / TRIALS:.3f}", *_ratios(middle, value)]
        for name, value in middle.items()
    ]
    report.table(["", "seconds", "per trial", "P / it", "P+ / it"], rows)
    report.last_line(
        {
            kind: {
                "p_over_ours": middle["P"] / middle[f"ours, {kind}"],
                "p_plus_over_ours": middle["P+"] / middle[f"ours, {kind}"],
            }
            for kind in ("warm", "cold")
        }
        | {"seconds": middle, "trials": TRIALS, "trials_p": few * rounds, "epochs": EPOCHS}
        | {"images": images, "load": report.load()}
    )


def _ratios(middle: dict[str, float], value: float) -> list[str]:
    return [f"{middle['P'] / value:.1f}", f"{middle['P+'] / value:.1f}"]


if __name__ == "__main__":
    main()
