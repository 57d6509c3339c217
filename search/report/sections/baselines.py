"""The winner against the fixed trials: recipe, scratch and whatever else the study was told to beat."""

from search.report.html import Markup, table, tag
from search.report.material import Material
from search.report.section import Section
from search.views.ranking import state_of


def section(material: Material) -> Section | None:
    """Return the baselines with the winner's gain over each, or None if there are none."""
    record = material.record
    by_id = {trial.id: trial for trial in record.trials}
    rows = []
    for place, found in enumerate(material.analysis["baselines"]):
        trial = by_id[found["trial"]]
        gain = material.gain("analysis", "baselines", place, "winner_ahead_by")
        if record.best is not None and trial.number == record.best.number:
            gain = Markup("the winner")
        name = tag("span", trial.baseline, class_="pill")
        rows.append([name, trial.id, state_of(trial), material.score_of(trial), gain])
    if not rows:
        return None
    head = ["baseline", "trial", "state", material.metric, "winner ahead by, one seed each"]
    words = (
        "Baselines are fixed before the search, so a search that does not beat them has found nothing. "
        "These gains are of single trainings on validation images; the verdict has those over seeds."
    )
    return Section(
        "baselines", "Against the baselines", [tag("p", words), table(head, rows, caption="Baselines")]
    )
