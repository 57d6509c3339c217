"""Section `features`: storage for the outputs of frozen blocks."""

from typing import Annotated, Literal

from pydantic import Field

from search.config.domain import Section
from search.config.sections.paths import FilePath


class Features(Section):
    """Storage for the outputs of frozen blocks, which trials share. It decides how much trials cost."""

    mode: Literal["auto", "off"] = "auto"
    """`auto`: each node stores features where that saves time, and trials reuse them; `off`: every trial
    computes its own."""
    budget_gib: Annotated[float, Field(gt=0)] = 10.0
    """Disk space in GiB, on each node and for all studies together. The least useful features are removed
    to make room."""
    dir: FilePath | None = None
    """Folder for the features on each node's own disk, not shared between nodes. Default: `features` in
    the node's cache."""
