"""The strategies: what each makes of the source FC, and all that follows from it elsewhere.

The config, the sampler, the worker and the views ask a strategy instead of comparing its name. A further one
is an entry of STRATEGIES here, a head (model/head.py) and the building of it (model/strategies.py). This
module does not import torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

Value = bool | int | float | str


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """One strategy."""

    name: str
    trials: str
    """Its trials, in words: the subject of a sentence."""
    keeps_source_fc: bool
    """True if the source FC is a part of the model, and is trained."""
    makes_head: bool
    """True if there is a new head, which `head_size` and `dropout` shape."""
    head_is_pretrained: bool
    """True if the head's weights come from the source, so that there are no new weights at all."""
    begins_exact: bool = False
    """True if `head_init: exact` may solve for the first weights of the new head."""

    learning_rates: Mapping[str, Any]
    """Default range of the learning rate."""
    head_sizes: tuple[int, ...] | None = None
    """Default sizes of the new head; None: there is none."""
    frozen_layers: Any = "all"
    """Default domain of `frozen_layers`."""
    start: Mapping[str, Value]
    """Settings of its start, the first trial of it in a search; other fields take the config's first value.
    They are near the best ones measured in docs/decisions.md."""
    start_frozen: float = 1.0
    """Share of the blocks that its start freezes."""

    @property
    def needs_pretrained(self) -> bool:
        """True if random weights of the source make no sense."""
        return self.head_is_pretrained


def _range(low: float, high: float) -> Mapping[str, Any]:
    return MappingProxyType({"low": low, "high": high, "log": True})


REPLACE = Strategy(
    name="replace",
    trials="trials in which a new head replaces the source FC",
    keeps_source_fc=False,
    makes_head=True,
    head_is_pretrained=False,
    learning_rates=_range(1e-3, 1e-1),
    head_sizes=(0, 64, 256, 1024),
    start=MappingProxyType({"optimizer": "sgd", "learning_rate": 0.01, "head_size": 0}),
)
LOAD = Strategy(
    name="load",
    trials="trials that keep and fine-tune the source FC",
    keeps_source_fc=True,
    makes_head=False,
    head_is_pretrained=True,
    learning_rates=_range(1e-3, 3e-2),
    start=MappingProxyType({"optimizer": "sgd", "learning_rate": 0.003}),
)
FUSE = Strategy(
    name="fuse",
    trials="trials whose new head reads the features and the source FC together",
    keeps_source_fc=True,
    makes_head=True,
    head_is_pretrained=False,
    begins_exact=True,
    learning_rates=_range(1e-3, 3e-2),
    head_sizes=(0, 1024),
    frozen_layers=MappingProxyType({"low": 0, "high": "all"}),
    start=MappingProxyType(
        {"optimizer": "sgd", "learning_rate": 0.006, "head_size": 0, "backbone_rate": 1.0}
    ),
    # The first blocks suit many tasks without training (Yosinski et al., NeurIPS 2014), and the fewer blocks
    # train, the higher the learning rate that they tolerate.
    start_frozen=0.5,
)
STRATEGIES: Mapping[str, Strategy] = MappingProxyType({one.name: one for one in (REPLACE, LOAD, FUSE)})
"""All strategies that a search may choose, by name. `exact`, whose head is not trained, is none of them."""
