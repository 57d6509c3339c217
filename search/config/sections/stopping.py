"""`early_stopping`: when a trial is given up."""

from typing import Annotated, Literal

from pydantic import Field

from search.config.domain import Section


class EarlyStopping(Section):
    """Trials that lag behind others of their strategy are stopped (asynchronous successive halving)."""

    enabled: bool = True
    """False: every trial runs all its epochs."""
    grace: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Epochs that every trial gets; `auto`: an eighth of study.epochs, and at least 2."""
    factor: Annotated[int, Field(ge=2)] = 3
    """One in `factor` trials of a strategy goes on at each rung: after `grace` epochs, `grace * factor`..."""
