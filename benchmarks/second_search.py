"""Time until a second study on the same images has its first result, as a share of the first study's wait.

    python -m benchmarks.second_search [--images DIR --weights FILE] [--quick]

Counted from the moment that slots are up and the first trial begins; the command's own start, which both
pay alike, is in the other column.
"""

from benchmarks import report
from benchmarks.workload import count_images, ours, workload

TRIALS, EPOCHS = 8, 5


def main() -> None:
    """Measure and print."""
    with workload(__doc__ or "") as load:
        names = ("first", "second")
        seconds: dict[str, list[float]] = {name: [] for name in names}
        whole: dict[str, list[float]] = {name: [] for name in names}
        peak = 0.0
        for turn in range(load.rounds):
            load.forget()
            for name in names:
                space = {"strategy": ["replace", "load"]}
                config = load.config(f"{name}-{turn}", trials=TRIALS, epochs=EPOCHS, space=space)
                took = ours(config)
                seconds[name].append(took.first)
                whole[name].append(took.whole)
                peak = max(peak, took.peak_gib)
        middle = {name: report.median(values) for name, values in seconds.items()}
        rows = [[n, f"{middle[n]:.2f}", f"{report.median(whole[n]):.1f}"] for n in names]
        images = count_images(config)
        print(f"{TRIALS} trials x {EPOCHS} epochs, {images} images")
        report.table(["study", "seconds to first result", "seconds in all"], rows)
        print(f"peak memory of driver, Ray, two slots and everything else: {peak:.1f} GiB")
        report.last_line(
            {
                "peak_gib": peak,
                "second_over_first": middle["second"] / middle["first"],
                "seconds": middle,
                "seconds_in_all": {name: report.median(whole[name]) for name in names},
                "trials": TRIALS,
                "epochs": EPOCHS,
                "images": images,
                "load": report.load(),
            }
        )


if __name__ == "__main__":
    main()
