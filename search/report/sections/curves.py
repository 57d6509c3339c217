"""Learning curves, with the trials that were stopped early."""

from search.record.records import TrialRecord
from search.report import figures
from search.report.html import Markup, join, table
from search.report.material import Material
from search.report.section import Figure, Section
from search.views.analysis.trials import with_curves

AT = ("analysis", "curves")
TOLD = 30
"""Trials whose epochs stand in the table."""


def section(material: Material) -> Section | None:
    """Return the metric of each epoch of each trial, or None if no trial has an epoch."""
    record = material.record
    trials = with_curves(record)
    if not trials:
        return None
    words: list[object] = [f"{material.metric} of ", material.number("d", *AT, "trials")]
    words.append(" trials after each epoch. ")
    if material.value(*AT, "stopped"):
        words += [
            "Of them ",
            material.number("d", *AT, "stopped"),
            " stopped early, because they lagged behind others of their strategy (a cross marks the end), "
            "which spared ",
            material.number("d", *AT, "epochs_spared"),
            " of ",
            material.number("d", *AT, "epochs_of_full_trials"),
            " epochs.",
        ]
    else:
        words.append("None was stopped early.")
    order = {t.number: i for i, t in enumerate(material.ranked)}
    first = sorted(trials, key=lambda t: order[t.number])[:TOLD]
    rows = [[t.id, *(_cell(material, t, i) for i in range(record.epochs))] for t in first]
    head = ["trial", *(f"epoch {i}" for i in range(1, record.epochs + 1))]
    best = "all trials" if len(rows) == len(trials) else "the best trials"
    numbers = table(head, rows, caption=f"{material.metric} after each epoch, {best}")
    figure = Figure("curves", figures.curves(trials, material), join(words), numbers)
    return Section("curves", "Learning curves", [figure])


def _cell(material: Material, trial: TrialRecord, epoch: int) -> Markup:
    return material.number(".4f", *material.place(trial), "history", epoch, material.record.metric)
