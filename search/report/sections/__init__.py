"""The sections of the report, in the order in which they stand on the page.

A later part of the product adds a function here: `provider(material) -> Section | None`.
"""

from search.report.section import Provider
from search.report.sections import progress, trials, verdict

PROVIDERS: tuple[Provider, ...] = (verdict.section, trials.section, progress.section)
