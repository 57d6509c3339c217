"""The winner against the fixed trials: recipe, scratch and whatever else the study was told to beat."""

from search.record.records import standing
from search.report.html import number, table, tag
from search.report.material import Material
from search.report.section import Section
from search.views.table import state_of


def section(material: Material) -> Section | None:
    """Return the baselines with the winner's gain over each, or None if there are none."""
    record, best = material.record, material.record.best
    fixed = [trial for trial in standing(record.trials) if trial.baseline]
    if not fixed:
        return None
    rows = []
    for trial in fixed:
        score = material.score(trial)
        at = (*material.place(trial), "metrics", "best", record.metric)
        gain: object = "–"
        if best is not None and score is not None and trial.state == "COMPLETE":
            difference = record.objective.gain(best.metrics["best"][record.metric], score)
            gain = "the winner" if trial.number == best.number else material.scale.gain(difference)
        rows.append(
            [
                tag("span", trial.baseline, class_="pill"),
                trial.id,
                state_of(trial),
                number(score, ".4f", *at),
                gain,
            ]
        )
    head = ["baseline", "trial", "state", material.metric, "winner ahead by, one seed each"]
    words = (
        "Baselines are fixed before the search, so a search that does not beat them has found nothing. "
        "These gains are of single trainings on validation images; the verdict has those over seeds."
    )
    return Section(
        "baselines", "Against the baselines", [tag("p", words), table(head, rows, caption="Baselines")]
    )
