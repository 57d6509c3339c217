"""Section `verdict`: the trainings with other seeds that tell whether the winner is really better."""

from typing import Annotated

from pydantic import Field

from search.config.domain import Section


class Verdict(Section):
    """Trainings after the search, with other seeds, that tell whether the winner is really better."""

    top: Annotated[int, Field(ge=1)] = 2
    """Number of best settings that are trained again, besides the recipe and the best of each strategy."""
    seeds: Annotated[int, Field(ge=0)] = 3
    """Number of other seeds for each of them. They run after the last trial, within study.budget, of which
    15 % are kept for them. At least 2 are needed for a verdict; 0: no verdict."""
