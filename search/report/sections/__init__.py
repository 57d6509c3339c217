"""The sections of the report, in the order in which they stand on the page.

A later part of the product adds a function here: `provider(material) -> Section | None`. A section that has
nothing to show is None, and the page has no room for it.
"""

from search.report.section import Provider
from search.report.sections import (
    baselines,
    classes,
    costs,
    curves,
    failures,
    front,
    mistakes,
    progress,
    reproduce,
    sources,
    space,
    suspects,
    trials,
    verdict,
)

PROVIDERS: tuple[Provider, ...] = (
    verdict.section,
    trials.section,
    front.section,
    baselines.section,
    progress.section,
    space.section,
    curves.section,
    classes.section,
    mistakes.section,
    sources.section,
    suspects.section,
    failures.section,
    costs.section,
    reproduce.section,
)
