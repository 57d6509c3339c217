"""Learning curves, with the trials that were stopped early."""

from search.record.records import standing
from search.report import figures
from search.report.html import number, table
from search.report.material import Material
from search.report.section import Figure, Section

TOLD = 30
"""Trials whose epochs stand in the table."""


def section(material: Material) -> Section | None:
    """Return the metric of each epoch of each trial, or None if no trial has an epoch."""
    record = material.record
    trials = [t for t in standing(record.trials) if any(record.metric in e for e in t.history)]
    if not trials:
        return None
    stopped = [t for t in trials if t.state == "PRUNED"]
    spared = sum(record.epochs - t.epochs for t in stopped)
    whole = record.epochs * len(trials)
    sentence = f"{material.metric} of {len(trials)} trials after each epoch. "
    if stopped:
        sentence += (
            f"Of them {len(stopped)} stopped early, because they lagged behind others of their strategy (a "
            f"cross marks the end), which spared {spared} of {whole} epochs."
        )
    else:
        sentence += "None was stopped early."
    order = {t.number: i for i, t in enumerate(material.ranked)}
    first = sorted(trials, key=lambda t: order[t.number])[:TOLD]
    rows = [[t.id, *(_cell(material, t, i) for i in range(record.epochs))] for t in first]
    head = ["trial", *(f"epoch {i}" for i in range(1, record.epochs + 1))]
    numbers = table(head, rows, caption=f"{material.metric} after each epoch, the best {len(rows)} trials")
    return Section(
        "curves", "Learning curves", [Figure("curves", figures.curves(trials, material), sentence, numbers)]
    )


def _cell(material: Material, trial: object, epoch: int) -> object:
    from search.record.records import TrialRecord

    assert isinstance(trial, TrialRecord)
    if epoch >= len(trial.history):
        return "–"
    metric = material.record.metric
    value = trial.history[epoch].get(metric)
    return number(value, ".4f", *material.place(trial), "history", epoch, metric)
