"""The sections of a config file: what each key means, which values it takes, what it is if left out."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
)

from finetune.errors import did_you_mean
from finetune.filesystems import is_url
from finetune.settings import OnError
from finetune.torchvision_sets import NO_DOWNLOAD, SETS
from search.domain import (
    Amount,
    AugmentName,
    BlockCount,
    Count,
    Domain,
    Fraction,
    ImbalanceName,
    MixName,
    Names,
    OptimizerName,
    Pixels,
    Rate,
    Scale,
    ScheduleName,
    Section,
    Size,
    StrategyName,
    Switch,
    Word,
    between,
    per_strategy,
    refused,
    values_of,
)
from search.record import RECALL

METRICS = ("val/accuracy", "val/loss", "val/balanced_accuracy", "val/macro_f1", "val/top5", "val/ece")
"""What a study may optimise: every epoch of every trial reports all of them (top5: where classes > 5)."""
LESS_IS_BETTER = ("val/loss", "val/ece")
WEIGHT_FILES = (".pth", ".pt", ".safetensors")
RANDOM_WEIGHTS = "none"
SECONDS = {"s": 1, "m": 60, "h": 3600}

Mode = Literal["max", "min"]
Baseline = Literal["recipe", "scratch"]
Kind = Literal["folder", "manifest", "torchvision", "digits"]


def absolute(path: str) -> str:
    """The path from the root; `~` is the home folder. Relative ones start at the current folder."""
    return os.path.abspath(os.path.expanduser(path))


def is_weights_file(weights: object) -> bool:
    """True if `model.weights` names a file."""
    return isinstance(weights, str) and Path(weights).suffix in WEIGHT_FILES


def _weights(name: str) -> str:
    if is_weights_file(name):
        return _absolute_or_url(name)
    if name != RANDOM_WEIGHTS and not re.fullmatch(r"[A-Z][A-Z0-9_]*", name):
        rule = "must be `none`, a torchvision weights name in capitals or a weights file"
        raise refused(rule, repr(name), f"Write DEFAULT, or a file ending in {', '.join(WEIGHT_FILES)}.")
    return name


def _metric(name: str) -> str:
    if name not in METRICS and not (name.startswith(RECALL) and len(name) > len(RECALL)):
        known = did_you_mean(name, [*METRICS, f"{RECALL}<class>"])
        raise refused("must be a metric that every epoch reports", repr(name), known)
    return name


def _mode_of(metric: str) -> "Mode":
    return "min" if metric in LESS_IS_BETTER else "max"


def _budget(text: object) -> object:
    if not re.fullmatch(r"\d+(\.\d+)?[smh]", str(text)) or not float(str(text)[:-1]):
        raise refused("must be a number above 0 with s, m or h", repr(text), "Write 90s, 10m or 2h.")
    return text


def _name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", text):
        rule = "must be a folder name of at most 64 letters, digits, `.`, `_` and `-`"
        raise refused(rule, repr(text), "Rename it, such as flowers-2.")
    return text


Metric = Annotated[
    str,
    AfterValidator(_metric),
    WithJsonSchema({"anyOf": [{"enum": list(METRICS)}, {"type": "string", "pattern": f"^{RECALL}.+"}]}),
]
FilePath = Annotated[str, Field(min_length=1), AfterValidator(absolute)]


class Study(Section):
    """What is searched for, and for how long."""

    name: Annotated[str, AfterValidator(_name)]
    """Names the study's folder: `<results>/<name>`."""
    metric: Metric = "val/accuracy"
    """What the search optimises, also `val/recall/<class>`; a trial counts with its best epoch."""
    mode: Mode = Field(default_factory=lambda study: _mode_of(study.get("metric", "")))
    """Left out: `min` for val/loss and val/ece, `max` for the others."""
    trials: Annotated[int, Field(ge=1)] = 24
    """How many settings are tried, baselines included."""
    epochs: Annotated[int, Field(ge=1)] = 8
    """Passes over the training images of a trial that is not stopped early."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of the sampler, of the split and, with the trial's number, of each trial."""
    budget: Annotated[str, BeforeValidator(_budget)] | None = None
    """Wall time after which no new trial starts: `90s`, `10m`, `2h`; null: no limit."""
    baselines: Annotated[tuple[Baseline, ...], Field(strict=False)] = ("recipe", "scratch")
    """Trials that are set, not sampled, and run first: the founding recipe; training from random weights."""
    warm_start: bool = True
    """Then, for each strategy, one setting that did well elsewhere, where the space reaches it; these are
    judged and learned from like sampled trials."""
    sampler: Literal["tpe", "random"] = "tpe"
    """Who suggests: Optuna's TPE, or chance."""
    isolation: Literal["slot", "process"] = "slot"
    """Where trials run: one after another in warm slots, or each in processes of its own (slow)."""
    keep_checkpoints: Annotated[int, Field(ge=1)] = 5
    """Models of the best trials that stay on disk."""

    @field_validator("mode")
    @classmethod
    def _mode_fits_metric(cls, mode: Mode, info: ValidationInfo) -> Mode:
        metric = info.data.get("metric")
        if metric is not None and mode != _mode_of(metric):
            raise refused(f"{metric} cannot be optimised this way", repr(mode), "Delete `mode`: it follows.")
        return mode

    @field_validator("baselines")
    @classmethod
    def _baselines_fit(cls, names: tuple[Baseline, ...], info: ValidationInfo) -> tuple[Baseline, ...]:
        trials = info.data.get("trials")
        if len(set(names)) < len(names):
            raise refused("must name each baseline once", list(names), "Delete the second one.")
        if trials is not None and len(names) > trials:
            raise refused(
                f"must be at most as many as study.trials ({trials})",
                list(names),
                "Ask for more trials, or write [] for no baselines.",
            )
        return names

    @property
    def budget_seconds(self) -> float | None:
        """The budget in seconds; None: no limit."""
        return None if self.budget is None else float(self.budget[:-1]) * SECONDS[self.budget[-1]]


def _absolute_or_url(path: str) -> str:
    return path if is_url(path) else absolute(path)


Classes = Annotated[Names, Field(min_length=2)]


class Images(Section):
    """Which images a task has."""

    kind: Kind = "folder"
    """`folder`: one folder per class; `manifest`: a CSV or Parquet file with the columns image, label and,
    if wanted, split and weight; `torchvision`: one of its sets; `digits`: scikit-learn's, no download."""
    name: str | None = None
    """For kind `torchvision`: the set by torchvision's class, such as CIFAR10 or Flowers102."""
    path: Annotated[str, Field(min_length=1), AfterValidator(_absolute_or_url)] | None = None
    """The folder with the images, or the manifest, both also as a URL (s3://...); or the folder with the
    torchvision sets. What a URL or a network file system holds is copied once to each node's own disk."""
    download: bool = False
    """For kind `torchvision`: fetch the set where it is not below `path`."""
    classes: Classes | None = None
    """Use only these classes, in this order; null: all."""
    on_error: OnError = "fail"
    """A broken image: `fail` stops the trial that reads it and names it; `skip` decodes all images once
    at the start, leaves out the broken ones and counts them in the record."""

    @field_validator("name")
    @classmethod
    def _name_fits(cls, name: str | None, info: ValidationInfo) -> str | None:
        kind = info.data.get("kind")
        if kind == "torchvision" and name not in SETS:
            got = "nothing" if name is None else repr(name)
            raise refused("must name one of torchvision's sets", got, did_you_mean(name or "", SETS))
        if name is not None and kind not in ("torchvision", None):
            raise refused("goes with kind 'torchvision'", repr(name), "Delete it, or change `kind`.")
        return name

    @field_validator("path")
    @classmethod
    def _path_fits(cls, path: str | None, info: ValidationInfo) -> str | None:
        kind = info.data.get("kind")
        if path is None and kind in _PATHS:
            raise refused(f"must be given for kind '{kind}'", "nothing", f"Add {_PATHS[kind]}.")
        if path is not None and is_url(path) and kind == "torchvision":
            fix = "Write a path, or use kind 'folder' or 'manifest'."
            raise refused("must be a folder of this machine for kind 'torchvision'", repr(path), fix)
        return path

    @field_validator("download")
    @classmethod
    def _download_fits(cls, download: bool, info: ValidationInfo) -> bool:
        if download and info.data.get("kind") not in ("torchvision", None):
            raise refused("goes with kind 'torchvision'", "true", "Delete it, or change `kind`.")
        if download and info.data.get("name") in NO_DOWNLOAD:
            fix = "Put its files below `path`."
            raise refused(f"torchvision cannot download {info.data['name']}", "true", fix)
        return download

    @property
    def images(self) -> dict[str, Any]:
        """What says which images there are, by the names of `DataSettings`."""
        return {field: getattr(self, field) for field in Images.model_fields}


_PATHS = {
    "folder": "the folder of the images",
    "manifest": "the CSV or Parquet file",
    "torchvision": "the folder of the sets",
}
"""Kind -> what its path is; the others take none."""


class Data(Images):
    """Which images the new task has, and how the model sees them."""

    image_size: Pixels = 224
    """Side of the square that the model sees, in pixels."""
    batch_size: Count = 32
    """Images per optimiser step, over all workers of a trial together."""
    validation_share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the training images taken for validation where no `val` split is given."""
    test_share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share taken for the test where neither `val` nor `test` is given."""
    horizontal_flip: Switch = True
    """Mirror half of the training images; false for digits, letters and everything with a direction."""
    views: Annotated[int, Field(ge=0)] = 0
    """Different views of each training image, taken in turn by the epochs; 0: a new one each epoch."""
    crop_scale: Scale = 1.0
    """Smallest share of the image's area that a random crop keeps; 1.0: no random crop."""
    augment: AugmentName = "none"
    """`trivial`: TrivialAugment, one random operation of random strength per training image."""

    @field_validator("test_share")
    @classmethod
    def _training_images_are_left(cls, share: float, info: ValidationInfo) -> float:
        total = share + info.data.get("validation_share", 0.0)
        if total >= 1:
            rule = "validation_share and test_share together must be below 1"
            raise refused(rule, f"{total:g}", "Lower one of them.")
        return share


class Source(Images):
    """A task to pretrain the backbone on, once; the result is kept in the cache."""

    epochs: Annotated[int, Field(ge=1)] = 5
    """Passes over the source images."""
    learning_rate: Annotated[float, Field(gt=0)] = 0.01
    """Peak rate of SGD with momentum 0.9 and a cosine schedule."""


class Pretraining(Section):
    """Weights that are trained here."""

    source: Source
    """The task they are trained on."""


def _weights_form(value: object) -> str:
    if isinstance(value, Pretraining) or (isinstance(value, Mapping) and "source" in value):
        return "<pretraining>"
    return "<backbones>" if isinstance(value, Mapping) else "<name>"


def _own_form(value: object) -> str:
    return "<pretraining>" if isinstance(value, Mapping | Pretraining) else "<name>"


_OneWeights = (
    Annotated[str, AfterValidator(_weights), Tag("<name>")] | Annotated[Pretraining, Tag("<pretraining>")]
)
_WeightsByBackbone = dict[str, Annotated[_OneWeights, Discriminator(_own_form)]]
Weights = Annotated[
    _OneWeights | Annotated[_WeightsByBackbone, Tag("<backbones>")], Discriminator(_weights_form)
]


class Model(Section):
    """Which pretrained model is transferred."""

    backbone: Word = "resnet18"
    """Name of a torchvision classification model."""
    weights: Weights = "DEFAULT"
    """A name from torchvision, a `.pth`, `.pt` or `.safetensors` file or its URL, `none` (random), or a
    source task; for several backbones also a mapping backbone -> one of these."""

    @field_validator("weights", mode="before")
    @classmethod
    def _every_backbone_has_weights(cls, weights: object, info: ValidationInfo) -> object:
        if _weights_form(weights) != "<backbones>" or "backbone" not in info.data:
            return weights
        given, names = tuple(map(str, cast(Mapping[object, object], weights))), _names(info.data["backbone"])
        rule = "a mapping must give weights to each backbone of the study"
        for name in given:
            if name not in names:
                hint = did_you_mean(name, (*names, *Pretraining.model_fields))
                raise refused(rule, f"some for {name!r}", hint)
        lacking = [name for name in names if name not in given]
        if lacking:
            raise refused(rule, f"none for {', '.join(lacking)}", f"Add `{lacking[0]}: DEFAULT`, or a file.")
        return weights

    precision: Literal["auto", "exact", "float32", "bfloat16"] = "auto"
    """`auto`: bfloat16 on GPUs that have it; elsewhere float32, but for frozen blocks in training the fastest
    pass that the machine has. `exact`: float32, and features are the same to the bit, stored or not."""

    @field_validator("weights")
    @classmethod
    def _one_file_fits_one_backbone(cls, weights: object, info: ValidationInfo) -> object:
        names = _names(info.data.get("backbone", ()))
        if is_weights_file(weights) and len(names) > 1:
            fix = f"Give each its own: `weights: {{{names[0]}: FILE, {names[1]}: DEFAULT}}`."
            raise refused("a weights file fits one backbone", f"one for {', '.join(names)}", fix)
        return weights

    @property
    def backbones(self) -> tuple[str, ...]:
        """Every backbone that a trial may use."""
        return _names(self.backbone)

    def weights_of(self, backbone: str) -> "str | Pretraining":
        """The weights of one of the backbones."""
        return self.weights[backbone] if isinstance(self.weights, dict) else self.weights


def _names(backbone: Domain) -> tuple[str, ...]:
    return tuple(str(name) for name in values_of(backbone))


class SpaceSection(Section):
    """What is searched. Each key: a value, a list, a range, or a mapping strategy -> those."""

    strategy: StrategyName = ("replace", "load", "fuse")
    """How the source FC becomes the new head, and what trains."""
    learning_rate: Rate = per_strategy(
        replace={"low": 1e-3, "high": 1e-1, "log": True},
        load={"low": 1e-3, "high": 3e-2, "log": True},
        fuse={"low": 1e-3, "high": 3e-2, "log": True},
    )
    """Peak rate of the head. Around the best rates of a probe (.01) and of full fine-tuning (.001)."""
    head_size: Size = per_strategy(replace=(0, 64, 256, 1024), fuse=(0, 1024))
    """Hidden units of the new head; 0: one Linear. Not used by `load`."""
    frozen_layers: BlockCount = per_strategy(replace="all", load="all", fuse={"low": 0, "high": "all"})
    """How many leading blocks of the backbone stay as they are: a number, a share of them (0.5: half, for
    backbones of different depth), or `all`."""
    backbone_rate: Rate = (0.1, 1.0)
    """Rate of the trained blocks as a multiple of `learning_rate`. Not used where all are frozen."""
    optimizer: OptimizerName = "sgd"
    """Who takes the steps."""
    momentum: Fraction = 0.9
    """Of `sgd`; not used by the others."""
    weight_decay: Amount = 1e-4
    """Pull of all weights towards zero."""
    dropout: Fraction = 0.0
    """Before the last layer of a new head. Not used by `load`."""
    schedule: ScheduleName = "cosine"
    """How the rate goes on after the warm-up."""
    warmup_epochs: Amount = 0.0
    """Epochs over which the rate rises from zero."""
    label_smoothing: Fraction = 0.0
    """Share of each label spread over all classes. Not used with `imbalance: focal`."""
    imbalance: ImbalanceName = "none"
    """What is done about classes of unequal size."""
    focal_gamma: Amount = 2.0
    """Of `focal`: how strongly images that are classified well are discounted."""
    class_balanced_beta: Fraction = 0.999
    """Of `class_balanced`: 0 weighs all classes alike, towards 1 by 1 / images."""
    logit_adjustment_tau: Rate = between(0.5, 2.0)
    """Of `logit_adjustment`: multiple of the log prior; at 1 it is `balanced_softmax`."""
    layer_decay: Scale = 1.0
    """Rate of each trained block as a multiple of that of the next one towards the head. Not used where
    all are frozen."""
    unfreeze_epochs: Size = 0
    """Epochs between two thaws, the head alone first, then block by block from the last one down to
    `frozen_layers`; 0: all of them train from the start. Not used where all are frozen."""
    l2_sp: Amount = 0.0
    """Pull of pretrained weights towards where they started, in place of their `weight_decay`; not used
    where none of them trains."""
    ema_decay: Fraction = 0.0
    """Per step, of a moving average of the weights that is evaluated and kept in their place; 0: none."""
    clip_norm: Amount = 0.0
    """Largest norm of the gradient; 0: no limit."""
    accumulate: Count = 1
    """Parts that each batch is computed in, one after another, to save memory."""
    mix: MixName = "none"
    """Blend each training image and its label with another one's of the batch."""
    mix_alpha: Rate = 0.2
    """Of `mix`: at 1 any share of the two images is as likely; towards 0 one of them nearly fills it."""


class Features(Section):
    """What is kept of frozen blocks, so that trials share it: decides what trials cost."""

    mode: Literal["auto", "off"] = "auto"
    """`auto`: features that save time are stored on each node and used again; `off`: all are computed."""
    budget_gib: Annotated[float, Field(gt=0)] = 10.0
    """On each node, for all studies together; what is least useful makes room."""
    dir: FilePath | None = None
    """Of each node alone, not shared. Left out: `features` in the node's cache."""


class EarlyStopping(Section):
    """Trials that lag behind others of their strategy are stopped (asynchronous successive halving)."""

    enabled: bool = True
    """False: every trial runs all its epochs."""
    grace: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Epochs that every trial gets; `auto`: an eighth of study.epochs, and at least 2."""
    factor: Annotated[int, Field(ge=2)] = 3
    """One in `factor` trials of a strategy goes on at each rung: after `grace` epochs, `grace * factor`..."""


class Resources(Section):
    """What a trial gets of the machine or cluster."""

    slots: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Trials at the same time; `auto`: as many as fit. On a cluster nodes are asked for and waited for:
    for this number, or for all that the autoscaler of `ray up` may start."""
    workers_per_trial: Annotated[int, Field(ge=1)] = 1
    """Processes that train one trial together (DDP)."""
    gpu: bool | Literal["auto"] = "auto"
    """Train on GPUs; `auto`: if the cluster has any."""
    gpu_per_worker: Annotated[float, Field(gt=0)] = 1.0
    """GPUs of each worker, where it trains on them; 0.5: two workers share one."""
    cpus_per_worker: Annotated[int, Field(ge=1)] = 1
    """Cores for each worker."""

    @field_validator("gpu_per_worker")
    @classmethod
    def _share_fits(cls, share: float, info: ValidationInfo) -> float:
        if share > 1 and share != int(share):
            raise refused("must be a whole number above 1", share, "Write 1, 2, ... or a share below 1.")
        workers = info.data.get("workers_per_trial", 1)
        if share < 1 and workers > 1:
            rule = "workers of one trial cannot share a GPU (NCCL refuses that)"
            raise refused(rule, share, "Write 1, or workers_per_trial: 1 and more slots.")
        return share
