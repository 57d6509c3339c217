"""Cost of the trials, and savings by frozen blocks."""

from statistics import median
from typing import Any

from search.record.records import TrialRecord, standing
from search.report.html import number, table, tag
from search.report.material import Material
from search.report.section import Section

GROUPS = (("all blocks frozen", 1.0), ("most blocks frozen", 0.5), ("few blocks frozen", 0.0))


def section(material: Material) -> Section | None:
    """Return seconds by how many blocks are frozen, or None where no trial has an epoch."""
    trials = [t for t in standing(material.record.trials) if t.history and _share(t) is not None]
    if not trials:
        return None
    rows, told = [], []
    left = trials
    for name, least in GROUPS:
        mine = [t for t in left if (_share(t) or 0.0) >= least]
        left = [t for t in left if (_share(t) or 0.0) < least]
        if mine:
            each = median(_epoch(t) for t in mine)
            total = sum(t.seconds for t in mine)
            rows.append([name, number(len(mine), "d"), number(each, ".3f"), number(total, ".1f")])
            told.append((name, each))
    words = "Features of frozen blocks are computed once and read by all trials that freeze as many. "
    if len(told) > 1 and told[0][0] == GROUPS[0][0] and told[0][1] > 0:
        words += (
            f"An epoch took {told[0][1]:.3g} s where all blocks are frozen, and "
            f"{told[-1][1] / told[0][1]:.0f} times as long where {told[-1][0].removesuffix(' frozen')} are."
        )
    head = ["trials with", "trials", "median seconds of an epoch", "seconds in all"]
    repeats = material.record.repeats
    parts: list[Any] = [tag("p", words), table(head, rows, caption="Seconds by how much is frozen")]
    if repeats:
        seconds = sum(float(one["seconds"]) for one in repeats)
        parts.append(
            tag(
                "p",
                f"The verdict's {len(repeats)} trainings with other seeds took {seconds:.1f} s.",
            )
        )
    return Section("costs", "What it cost", parts)


def _epoch(trial: TrialRecord) -> float:
    """Return the seconds of the trial's usual epoch."""
    return median(epoch.get("seconds", 0.0) for epoch in trial.history)


def _share(trial: TrialRecord) -> float | None:
    """Return the share of the backbone's blocks that the trial froze."""
    frozen, blocks = trial.effective.get("frozen_blocks"), trial.effective.get("blocks")
    count = len(blocks) if isinstance(blocks, list) else blocks
    if not isinstance(frozen, int) or not isinstance(count, int) or not count:
        return None
    return frozen / count
