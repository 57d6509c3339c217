"""`features`: what is kept of frozen blocks."""

from typing import Annotated, Literal

from pydantic import Field

from search.config.domain import Section
from search.config.sections.paths import FilePath


class Features(Section):
    """What is kept of frozen blocks, so that trials share it: decides what trials cost."""

    mode: Literal["auto", "off"] = "auto"
    """`auto`: features that save time are stored on each node and used again; `off`: all are computed."""
    budget_gib: Annotated[float, Field(gt=0)] = 10.0
    """On each node, for all studies together; what is least useful makes room."""
    dir: FilePath | None = None
    """Of each node alone, not shared. Left out: `features` in the node's cache."""
