"""Section `early_stopping`: the rule that stops trials which lag behind."""

from typing import Annotated, Literal

from pydantic import Field

from search.config.domain import Section


class EarlyStopping(Section):
    """Early end of trials that lag behind others of their strategy (asynchronous successive halving)."""

    enabled: bool = True
    """Stop trials early; false: every trial runs all its epochs."""
    grace: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Epochs that every trial may run; `auto`: an eighth of study.epochs, rounded up, and at least 2."""
    factor: Annotated[int, Field(ge=2)] = 3
    """One in `factor` trials of a strategy continues after each rung. The rungs are at `grace` epochs,
    `grace * factor` epochs, and so on."""
