"""Settings of one trial: frozen dataclasses with everything that decides what is trained.

They hold plain values only and are sent as JSON (`to_dict`, `from_dict`), so the process that searches
can create them without importing torch. Two trials with equal settings give equal results on the same
kind of device.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

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

HeadInit = Literal["random", "exact"]
Fusion = Literal["concat", "image", "text", "gated", "sum"]
PoolingName = Literal["mean", "max", "mean_std", "mean_diff", "attention", "ordered"]

ALL = -1
"""Value of `frozen_layers` that freezes every block of the backbone."""


@dataclass(frozen=True, kw_only=True)
class SampleSettings:
    """The samples of a task: where they come from, which of them are used, and how they are split."""

    kind: str
    """Kind of data source: `folder`, `manifest`, `torchvision` or `digits`."""
    name: str | None = None
    """Name of the data set for kind `torchvision`: a class of torchvision.datasets, such as `CIFAR10`."""
    path: str | None = None
    """Absolute path or URL of the folder or manifest; None for kind `digits`."""
    download: bool = False
    """Download the torchvision set if it is not in the folder `path`."""
    classes: tuple[str, ...] | None = None
    """Use only these classes, in this order; None: all, sorted by name."""
    exclude: str | None = None
    """Absolute path or URL of a list of samples to leave out; None leaves out none."""
    on_error: OnError = "fail"
    """Handling of broken images: `fail` stops the trial that reads one, `skip` leaves them out beforehand."""
    text: tuple[str, ...] | None = None
    """Columns of the manifest, or of metadata.csv, whose text belongs to a sample; None: there is no text."""
    frames: int = 1
    """Frames that are read of each sample, evenly spaced in time; with 1 a sample is a still image."""
    validation_share: float = 0.2
    """Share of the training samples used for validation if the data has no `val` split."""
    test_share: float = 0.1
    """Share of the training samples used for testing if the data has neither a `val` nor a `test` split."""
    seed: int = 0
    """Seed for the split and the augmentation: view v of image i is a function of (seed, i, v)."""

    @property
    def has_parts(self) -> bool:
        """True if a sample is more than one image: it has text or several frames."""
        return self.text is not None or self.frames > 1

    @property
    def samples(self) -> "SampleSettings":
        """These settings alone, without those of a subclass."""
        return SampleSettings(
            **{field.name: getattr(self, field.name) for field in dataclasses.fields(SampleSettings)}
        )


@dataclass(frozen=True, kw_only=True)
class DataSettings(SampleSettings):
    """The samples of a task, and how their images are turned into model inputs."""

    image_size: int = 224
    """Side of the square input image of the model, in pixels."""
    batch_size: int = 32
    """Samples per optimiser step, summed over all workers of the trial."""
    horizontal_flip: bool = True
    """Mirror each training image with probability 0.5; all frames of a sample alike."""
    crop_scale: float = 1.0
    """Smallest share of the image's area that a random resized crop keeps; 1.0 turns random crops off."""
    augment: Augment = "none"
    """`trivial` applies one random operation of random strength to each training image (TrivialAugment)."""
    views: int = 0
    """Number of augmented views of each training image, which the epochs cycle through; 0 draws a new view in
    every epoch."""


@dataclass(frozen=True, kw_only=True)
class SourceSettings:
    """A source task to pretrain the backbone on, for users who have no downloadable weights."""

    data: DataSettings
    epochs: int = 5
    learning_rate: float = 0.01
    """Peak rate of SGD with momentum 0.9 and a cosine schedule."""
    weight_decay: float = 1e-4
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class WeightsSettings:
    """The source of pretrained weights: at most one field is set; if none is, the weights are random."""

    name: str | None = None
    """Name of a member of the backbone's torchvision weights enum, such as `DEFAULT`."""
    file: str | None = None
    """Absolute path or URL of a `.pth`, `.pt` or `.safetensors` file that uses torchvision's keys."""
    source: SourceSettings | None = None
    """Source task to pretrain on; this happens once per node, and the result is kept in the cache."""


@dataclass(frozen=True, kw_only=True)
class FeatureSettings:
    """Storage of the features of frozen blocks. It affects how long a trial takes, not its result."""

    folder: str
    """Absolute path of a folder on the node's own disk; nodes do not share it."""
    budget_bytes: int
    """Most bytes that the folder may hold in total."""
    mode: Literal["auto", "off"] = "auto"
    """`auto` stores features where that saves time; `off` stores nothing."""
    trials: int = 1
    """Number of trials in the study, used to estimate how often stored features will be read."""
    alike: float = 1.0
    """Estimated share of the trials that can read one trial's validation features, because backbone and image
    size agree."""
    alike_views: float = 1.0
    """Estimated share that can also read its training features, because the augmentation agrees as well."""
    test: bool = False
    """Store the features of test images too, as several models will be measured on them."""


@dataclass(frozen=True, kw_only=True)
class TrialSettings:
    """All settings of one trial."""

    data: DataSettings
    backbone: str
    """Name of a torchvision classification model."""
    weights: WeightsSettings
    strategy: str
    """Use of the source FC, one of `finetune.strategy.STRATEGIES`; `exact`: a head on the frozen backbone
    whose weights are solved for."""
    epochs: int
    """Passes over the training images."""
    learning_rate: float
    """Peak rate of the head's parameter group."""
    backbone_rate: float = 1.0
    """Learning rate of the trained backbone blocks as a multiple of `learning_rate`."""
    head_size: int = 0
    """Hidden units of the new head; 0 makes it a single Linear layer. `load` does not use it."""
    head_init: HeadInit = "random"
    """First weights of the head under `fuse` if it is one Linear: random, or the exact solution on the
    features of the whole pretrained backbone (linear probing, then fine-tuning)."""
    frozen_layers: int = ALL
    """Number of leading backbone blocks that are not trained; ALL (-1) freezes every block."""
    dropout: float = 0.0
    """Dropout probability before the last Linear layer of a new head."""
    optimizer: Optimizer = "sgd"
    momentum: float = 0.9
    """Momentum of SGD; Adam and AdamW use torch's default betas."""
    weight_decay: float = 0.0
    schedule: Schedule = "cosine"
    warmup_epochs: float = 0.0
    """Epochs, or a fraction of one, over which the rate rises linearly from zero, step by step."""
    label_smoothing: float = 0.0
    """Share of each label that is spread over all classes; `focal` does not use it."""
    imbalance: Imbalance = "none"
    """Method for classes of unequal size; `finetune.training.losses` has the formulas."""
    focal_gamma: float = 2.0
    """Exponent of `focal`: larger values discount well classified images more; 0 does not discount them."""
    class_balanced_beta: float = 0.999
    """Beta of `class_balanced`, in [0, 1): at 0 all images weigh the same; as it nears 1, an image weighs
    1 / (images of its class), up to a common factor."""
    logit_adjustment_tau: float = 1.0
    """Multiple of the log prior that `logit_adjustment` adds; at 1 it equals `balanced_softmax`."""
    layer_decay: float = 1.0
    """Factor per block: the d-th trained block from the head has its rate multiplied by layer_decay^d."""
    unfreeze_epochs: int = 0
    """Epochs between two unfreezing steps: the head trains first, then one more block at each step, the last
    block first, down to `frozen_layers`. With 0, all these blocks train from the start."""
    l2_sp: float = 0.0
    """Strength of L2-SP, which pulls pretrained weights towards their initial values; it replaces their
    `weight_decay`."""
    ema_decay: float = 0.0
    """Decay per step of the exponential moving average of the weights, which is then evaluated and saved
    in place of the weights; 0 turns averaging off."""
    clip_norm: float = 0.0
    """Largest Euclidean norm of the gradient over all trained weights; 0 sets no limit."""
    accumulate: int = 1
    """Number of parts in which each worker computes its share of a batch, to save memory. The step is the
    same except for rounding, the random draws of dropout, and batch norm, which sees one part at a time."""
    mix: Mix = "none"
    """Method that blends each training image and its label with another image of the batch."""
    mix_alpha: float = 0.2
    """Both parameters of the Beta distribution from which `mix` draws the share of the first image."""
    text_encoder: str = "tfidf"
    """Way from a text to a vector: `tfidf`, `static:FOLDER` or `hub:NAME`. Used where `data.text` is set."""
    fusion: Fusion = "concat"
    """The parts that the head reads where samples have text, and how it joins them."""
    image_scale: float = 1.0
    """Factor of the image's features beside those of the text, both scaled to one variance before."""
    modality_dropout: float = 0.0
    """Share of the training samples of which the head sees only one part."""
    pooling: PoolingName = "mean"
    """Summary of the frames of a clip that the head reads."""
    frames_used: int = 0
    """Frames of a clip that the head reads, evenly chosen among `data.frames`; 0: all."""
    precision: Precision = "auto"
    """Numerical precision. Trained parts run in float32 or under bfloat16 autocast (`auto` chooses bfloat16
    on GPUs that support it). For frozen blocks, `auto` uses on a CPU the fastest way of running them that was
    found there; `exact` uses float32 in batches of a fixed size, so that features are the same to the bit
    whether they are stored or not."""
    seed: int = 0
    """Seed for head initialisation, image order and dropout."""
    cache_dir: str
    """Absolute path of the node's cache folder for source-pretrained weights and category relationships."""

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain dicts, tuples, strings and numbers that JSON can hold."""
        return dataclasses.asdict(self)

    def choices(self) -> dict[str, Any]:
        """Return `to_dict` without paths and `download`, to compare trials wherever their files are stored.

        The content of these files is compared by hashes instead: the fingerprint of the data and the SHA-256
        of the weights.
        """
        values = self.to_dict()
        source = values["weights"]["source"]
        del values["cache_dir"], values["weights"]["file"]
        for data in [values["data"], *([source["data"]] if source else [])]:
            del data["path"], data["download"], data["exclude"]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TrialSettings":
        """Rebuild settings from the result of `to_dict`.

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
    listed = {name: values[name] for name in ("classes", "text") if values.get(name) is not None}
    return DataSettings(**{**values, **{name: tuple(names) for name, names in listed.items()}})
