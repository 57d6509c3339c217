"""Section `privacy`: differential privacy of the images, for a study whose model is given to others."""

import re
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from search.config.domain import Section, refused

Mechanism = Literal["means", "least_squares", "sgd"]


class Privacy(Section):
    """Differential privacy of the images: what the exported model may tell about any one of them."""

    epsilon: Annotated[float, Field(gt=0)] | None = None
    """Privacy budget of the whole study, its search included; none: the study is not private. With a budget
    only heads on frozen features are trained, and nothing else looks at the images (docs/privacy.md)."""
    delta: Annotated[float, Field(gt=0, lt=1)] | Literal["auto"] = "auto"
    """Probability with which the promise may fail. `auto`: n^-1.1 for n training images or groups."""
    unit: Literal["image", "group"] = "image"
    """Unit of protection: each `image`, or all images of a `group` together, such as those of a patient."""
    group: str | None = None
    """For unit `group`: a regular expression that is searched in the path of an image, and whose first
    parenthesis is the name of its group, such as `(patient-[0-9]+)`."""
    mechanisms: Annotated[tuple[Mechanism, ...], Field(strict=False)] = ("means", "least_squares", "sgd")
    """Ways to train a head that trials may draw: noisy class means, least squares from noisy sums, DP-SGD."""

    @field_validator("group")
    @classmethod
    def _group_is_named(cls, group: str | None, info: ValidationInfo) -> str | None:
        if (group is not None) != (info.data.get("unit") == "group"):
            fix = "Write a pattern such as (patient-[0-9]+) for unit group, and none for unit image."
            raise refused("goes with unit `group`, which needs it", repr(group), fix)
        try:
            found = group is None or re.compile(group).groups >= 1
        except re.error:
            found = False
        if not found:
            raise refused(
                "must be a regular expression with a parenthesis", repr(group), "Write (patient-[0-9]+)."
            )
        return group

    @field_validator("mechanisms")
    @classmethod
    def _some_mechanism(cls, mechanisms: tuple[Mechanism, ...]) -> tuple[Mechanism, ...]:
        if not mechanisms or len(set(mechanisms)) < len(mechanisms):
            raise refused(
                "must name each mechanism at most once, and at least one", list(mechanisms), "Add one."
            )
        return mechanisms

    @property
    def is_on(self) -> bool:
        """True if the study is private."""
        return self.epsilon is not None
