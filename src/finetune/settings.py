"""What one trial is: every setting that decides what is trained, and nothing else.

The classes are frozen, hold plain values only and travel as JSON (`to_dict`, `from_dict`), so
the process that searches can make them without importing torch. Two trials with equal settings
give equal results on the same kind of device.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Strategy = Literal["replace", "load", "fuse"]
Optimizer = Literal["sgd", "adam", "adamw"]
Schedule = Literal["constant", "cosine"]
Precision = Literal["auto", "float32", "bfloat16"]
OnError = Literal["fail", "skip"]

ALL = -1
"""`frozen_layers` that means every block of the backbone."""


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Which images, how they are split and how they reach the model."""

    kind: str
    """Where the images come from: `folder`, `manifest`, `torchvision`, `digits`."""
    name: str | None = None
    """Of the set, for kind `torchvision`: a class of torchvision.datasets, such as `CIFAR10`."""
    path: str | None = None
    """Absolute path of the folder or manifest, or the manifest's URL; None for kind `digits`."""
    download: bool = False
    """Fetch the torchvision set where it is not below `path`."""
    classes: tuple[str, ...] | None = None
    """Use only these classes, in this order; None: all, sorted by name."""
    on_error: OnError = "fail"
    """A broken image: `fail` stops the trial that reads it, `skip` leaves it out from the start."""
    image_size: int = 224
    """Side of the square the model sees, in pixels."""
    batch_size: int = 32
    """Images per optimiser step, over all workers of the trial together."""
    validation_share: float = 0.2
    """Share of the training images taken for validation where no `val` split is given."""
    test_share: float = 0.1
    """Share taken for the test where neither `val` nor `test` is given."""
    horizontal_flip: bool = True
    """Mirror half of the training images."""
    crop_scale: float = 1.0
    """Smallest share of the image's area that a random resized crop keeps; 1.0: no random crop."""
    seed: int = 0
    """Of the split and of the augmentation: view v of image i is a function of (seed, i, v)."""


@dataclass(frozen=True, kw_only=True)
class SourceSettings:
    """A source task to pretrain the backbone on, for those without downloadable weights."""

    data: DataSettings
    epochs: int = 5
    learning_rate: float = 0.01
    """Peak rate of SGD with momentum 0.9 and a cosine schedule."""
    weight_decay: float = 1e-4
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class WeightsSettings:
    """Where pretrained weights come from: at most one of the three; none of them: random weights."""

    name: str | None = None
    """Name of a torchvision weights enum member of the backbone, such as `DEFAULT`."""
    file: str | None = None
    """Absolute path of a `.pth`, `.pt` or `.safetensors` file with torchvision's keys."""
    source: SourceSettings | None = None
    """Pretrain on this source task, once; the result is kept in the cache."""


@dataclass(frozen=True, kw_only=True)
class TrialSettings:
    """Everything that decides what one trial trains."""

    data: DataSettings
    backbone: str
    """Name of a torchvision classification model."""
    weights: WeightsSettings
    strategy: Strategy
    epochs: int
    """Passes over the training images."""
    learning_rate: float
    """Peak rate of the head's parameter group."""
    backbone_rate: float = 1.0
    """Rate of the trained backbone blocks as a multiple of `learning_rate`."""
    head_size: int = 0
    """Hidden units of the new head; 0: one Linear. Not used by `load`."""
    frozen_layers: int = ALL
    """How many leading blocks of the backbone stay as they are; ALL (-1): every block."""
    dropout: float = 0.0
    """Before the last Linear of a new head."""
    optimizer: Optimizer = "sgd"
    momentum: float = 0.9
    """Of SGD; Adam and AdamW keep torch's default betas."""
    weight_decay: float = 0.0
    schedule: Schedule = "cosine"
    warmup_epochs: float = 0.0
    """Epochs over which the rate rises linearly from zero, counted in steps."""
    label_smoothing: float = 0.0
    precision: Precision = "auto"
    """`auto`: bfloat16 autocast on GPUs that have it, float32 elsewhere."""
    seed: int = 0
    """Of the head's initial weights, the order of the images and dropout."""
    cache_dir: str
    """Absolute path of the node's cache: downloaded and source-pretrained weights."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain dicts, lists, strings and numbers, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TrialSettings":
        """Return the settings that `to_dict` was called on.

        Raises:
            TypeError: a key is unknown or a required one is missing.
        """
        values = dict(values)
        values["data"] = _data(values["data"])
        weights = dict(values["weights"])
        if weights.get("source") is not None:
            source = dict(weights["source"])
            weights["source"] = SourceSettings(**{**source, "data": _data(source["data"])})
        values["weights"] = WeightsSettings(**weights)
        return cls(**values)


def _data(values: Mapping[str, Any]) -> DataSettings:
    classes = values.get("classes")
    return DataSettings(**{**values, "classes": None if classes is None else tuple(classes)})
