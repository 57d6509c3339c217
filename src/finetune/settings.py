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
Precision = Literal["auto", "exact", "float32", "bfloat16"]
OnError = Literal["fail", "skip"]
Augment = Literal["none", "trivial"]
Mix = Literal["none", "mixup", "cutmix"]
Imbalance = Literal[
    "none",
    "class_weights",
    "balanced_sampling",
    "focal",
    "class_balanced",
    "logit_adjustment",
    "balanced_softmax",
]

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
    """Absolute path or URL of the folder or manifest; None for kind `digits`."""
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
    augment: Augment = "none"
    """`trivial`: one random operation of random strength per training image (TrivialAugment)."""
    views: int = 0
    """Different views of each training image, taken in turn by the epochs; 0: a new one each epoch."""
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
    """Absolute path or URL of a `.pth`, `.pt` or `.safetensors` file with torchvision's keys."""
    source: SourceSettings | None = None
    """Pretrain on this source task, once; the result is kept in the cache."""


@dataclass(frozen=True, kw_only=True)
class FeatureSettings:
    """Where features of frozen blocks are kept. Decides what a trial costs, not what it finds."""

    folder: str
    """Absolute path, of each node alone."""
    budget_bytes: int
    """For everything in the folder."""
    mode: Literal["auto", "off"] = "auto"
    """`auto`: what saves time is kept; `off`: nothing."""
    trials: int = 1
    """Of the study, to tell how often a cut will be read."""
    alike: float = 1.0
    """Share of them that read the validation features of any one of them: backbone and image size agree."""
    alike_views: float = 1.0
    """Share of them that read its training features, too: how images are altered agrees as well."""


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
    """Share of each label spread over all classes; not used by `focal`."""
    imbalance: Imbalance = "none"
    """What is done about classes of unequal size; `finetune.training.losses` has the formulas."""
    focal_gamma: float = 2.0
    """Of `focal`: how strongly images that are classified well are discounted; 0: not at all."""
    class_balanced_beta: float = 0.999
    """Of `class_balanced`, in [0, 1): 0 weighs all classes alike, towards 1 by 1 / images."""
    logit_adjustment_tau: float = 1.0
    """Of `logit_adjustment`: multiple of the log prior; 1: the same function as `balanced_softmax`."""
    layer_decay: float = 1.0
    """The rate of a trained block is multiplied by this once per block from the head, itself included."""
    unfreeze_epochs: int = 0
    """Epochs between two thaws: the head trains first, then one block more each time, the last block
    first, down to `frozen_layers`; 0: all of them train from the start."""
    l2_sp: float = 0.0
    """Pull of pretrained weights towards where they started, in place of their `weight_decay`."""
    ema_decay: float = 0.0
    """Per step, of the exponential moving average of the weights that is evaluated and kept; 0: none."""
    clip_norm: float = 0.0
    """Largest Euclidean norm of the gradient over all trained weights; 0: no limit."""
    accumulate: int = 1
    """Parts that each worker's share of a batch is computed in, to save memory; the step is the same
    but for rounding, dropout's draws and batch norm, which sees one part at a time."""
    mix: Mix = "none"
    """Blend each training image and its label with another one's of the batch."""
    mix_alpha: float = 0.2
    """Of `mix`: both parameters of the Beta distribution that the share of the first is drawn from."""
    precision: Precision = "auto"
    """Of all that trains: float32, or bfloat16 autocast (`auto`: on GPUs that have it). Of frozen blocks in
    training: `auto` is the fastest pass that was found for them on a CPU; `exact` is float32 in batches of a
    fixed size, so that features are the same to the bit, stored or not."""
    seed: int = 0
    """Of the head's initial weights, the order of the images and dropout."""
    cache_dir: str
    """Absolute path of the node's cache: downloaded and source-pretrained weights."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain dicts, lists, strings and numbers, ready for JSON."""
        return dataclasses.asdict(self)

    def choices(self) -> dict[str, Any]:
        """Return what decides the training: `to_dict` without the places where its parts lie.

        What is read there is told by its own hashes: the data's fingerprint, the weights' SHA-256.
        """
        values = self.to_dict()
        source = values["weights"]["source"]
        del values["cache_dir"], values["weights"]["file"]
        for data in [values["data"], *([source["data"]] if source else [])]:
            del data["path"], data["download"]
        return values

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
