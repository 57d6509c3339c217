"""Section `early_stopping`: the rule that stops trials which lag behind."""

from typing import Annotated, Literal

from pydantic import Field

from search.config.domain import Section


class EarlyStopping(Section):
    """Early end of trials that lag behind others of their strategy."""

    enabled: bool = True
    """Stop trials early; false: every trial runs all its epochs, as with `rule: none`."""
    rule: Literal["asha", "median", "hyperband", "none"] = "asha"
    """`asha`: one in `factor` trials continues after each rung (asynchronous successive halving).
    `hyperband`: the trials are dealt out to several such rules, of which each begins to stop `factor` times
    later. `median`: a trial ends when its best epoch is below the median of the others after as many epochs.
    `none`: no trial is stopped."""
    grace: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Epochs that every trial may run; `auto`: an eighth of study.epochs, rounded up, and at least 2."""
    factor: Annotated[int, Field(ge=2)] = 3
    """One in `factor` trials of a strategy continues after each rung. The rungs are at `grace` epochs,
    `grace * factor` epochs, and so on. Not used by `median`."""

    @property
    def stops(self) -> bool:
        """True if trials may be stopped early."""
        return self.enabled and self.rule != "none"
