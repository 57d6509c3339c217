"""Failed trials by cause."""

from search.report.html import table, tag
from search.report.material import Material
from search.report.section import Section
from search.views.table import failures, without_paths

SHOWN = 20


def section(material: Material) -> Section | None:
    """Return the causes of failures, the most frequent first; None if nothing failed."""
    groups = failures(material.record)
    if not groups:
        return None
    count = sum(len(group.trials) for group in groups)
    rows = [
        [
            str(len(group.trials)),
            without_paths(group.cause) if material.shareable else group.cause,
            ", ".join(str(trial.number) for trial in group.trials[:SHOWN])
            + (" ..." if len(group.trials) > SHOWN else ""),
        ]
        for group in groups[:SHOWN]
    ]
    words = f"{count} of {len(material.record.trials)} trials failed and have no score."
    return Section(
        "failures",
        "Failures by cause",
        [tag("p", words), table(["trials", "cause", "numbers"], rows, caption="Causes")],
    )
