"""A section of the report, and the seam through which later parts of the product add theirs."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from search.report.html import Markup
from search.report.material import Material


@dataclass(frozen=True)
class Figure:
    """An interactive figure, with what stands in for it where scripts are off or nobody can see it."""

    key: str
    """Its id on the page."""
    figure: dict[str, Any]
    """Plotly's `data` and `layout`, as JSON values."""
    sentence: Markup
    """Its content in one sentence; also its label for screen readers."""
    numbers: Markup
    """Its numbers as a table."""
    still: Markup | None = None
    """A drawing without scripts, for the figures that carry the verdict."""
    height: int = 360
    """Pixels."""
    small: bool = False
    """Stand beside others of its kind where there is room."""


@dataclass(frozen=True)
class Section:
    """One section of the page."""

    key: str
    """Its anchor."""
    title: str
    parts: list[Markup | Figure] = field(default_factory=list)


Provider = Callable[[Material], Section | None]
"""Function that returns a section, or None where the study has nothing to show in it."""
