"""Section `model`: the pretrained model that is transferred."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, cast

from pydantic import AfterValidator, Discriminator, Tag, ValidationInfo, field_validator

from finetune.errors import did_you_mean
from finetune.model.known_backbones import OUTLINES
from search.config.domain import Domain, Searched, Section, refused, values_of
from search.config.sections.data import Source
from search.config.sections.paths import absolute_or_url
from search.config.setting import Setting

WEIGHT_FILES = (".pth", ".pt", ".safetensors")
RANDOM_WEIGHTS = "none"


def is_weights_file(weights: object) -> bool:
    """Return True if this value of `model.weights` names a file."""
    return isinstance(weights, str) and Path(weights).suffix in WEIGHT_FILES


def _weights(name: str) -> str:
    if is_weights_file(name):
        return absolute_or_url(name)
    if name != RANDOM_WEIGHTS and not re.fullmatch(r"[A-Z][A-Z0-9_]*", name):
        rule = "must be `none`, a torchvision weights name in capitals or a weights file"
        raise refused(rule, repr(name), f"Write DEFAULT, or a file ending in {', '.join(WEIGHT_FILES)}.")
    return name


def _backbone(name: str) -> str:
    if name not in OUTLINES:
        hint = did_you_mean(name, OUTLINES)
        raise refused("must be a torchvision classifier that can be cut", repr(name), hint)
    return name


BackboneName = Annotated[
    Domain, Searched("Backbone", Annotated[str, AfterValidator(_backbone)], ranges=False)
]


def _encoder(name: str) -> str:
    kind, _, where = name.partition(":")
    if name != "tfidf" and (kind not in ("static", "hub") or not where):
        rule = "must be `tfidf`, `static:FOLDER` or `hub:NAME`"
        raise refused(rule, repr(name), "Write tfidf, which needs no files.")
    return f"static:{Path(where).expanduser().absolute()}" if kind == "static" else name


TextEncoder = Annotated[
    Domain, Searched("TextEncoder", Annotated[str, AfterValidator(_encoder)], ranges=False)
]


class Pretraining(Section):
    """Weights that the study trains itself, on a source task."""

    source: Source
    """The task on which the weights are trained."""


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
    """The pretrained model that is transferred."""

    backbone: Annotated[BackboneName, Setting()] = "resnet18"
    """Name of a torchvision classification model of images or, with `data.frames`, of clips; docs/models.md
    lists them."""
    weights: Weights = "DEFAULT"
    """The name of torchvision weights, a `.pth`, `.pt` or `.safetensors` file or its URL, `none` (random
    weights), or a source task. With several backbones, a mapping may give each backbone one of these."""
    text_encoder: Annotated[TextEncoder, Setting(needs="text")] = "tfidf"
    """Way from a text to a vector, for samples with text. `tfidf` weighs words and is fitted on the
    training texts; `static:FOLDER` is the mean of one vector per token, from a matrix and a tokenizer file;
    `hub:NAME` is a frozen model of the package transformers, or a folder with one."""
    precision: Literal["auto", "exact", "float32", "bfloat16"] = "auto"
    """`auto`: bfloat16 on GPUs that support it, elsewhere float32; but if only a head trains, the frozen
    blocks may run by a faster pass that changes the features a little. `exact`: float32, and features are
    the same to the bit whether they are stored or computed anew."""

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

    @field_validator("weights")
    @classmethod
    def _one_file_fits_one_backbone(cls, weights: object, info: ValidationInfo) -> object:
        names = _names(info.data.get("backbone", ()))
        if is_weights_file(weights) and len(names) > 1:
            fix = f"Give each its own: `weights: {{{names[0]}: FILE, {names[1]}: DEFAULT}}`."
            raise refused("a weights file fits one backbone", f"one for {', '.join(names)}", fix)
        return weights

    @field_validator("weights")
    @classmethod
    def _torchvision_has_named_weights(cls, weights: "Weights", info: ValidationInfo) -> "Weights":
        for backbone in _names(info.data.get("backbone", ())):
            name = weights.get(backbone) if isinstance(weights, dict) else weights
            if not isinstance(name, str) or name == RANDOM_WEIGHTS or is_weights_file(name):
                continue
            known = ("DEFAULT", *OUTLINES[backbone].weights)
            if name not in known:
                path = ("model", "weights", *([backbone] if isinstance(weights, dict) else []))
                rule = f"must name some of torchvision's weights for {backbone}"
                raise refused(rule, repr(name), did_you_mean(name, known), path)
        return weights

    @property
    def backbones(self) -> tuple[str, ...]:
        """All backbones that a trial may use."""
        return _names(self.backbone)

    def weights_of(self, backbone: str) -> "str | Pretraining":
        """Return the weights for one of the backbones."""
        return self.weights[backbone] if isinstance(self.weights, dict) else self.weights


def _names(backbone: Domain) -> tuple[str, ...]:
    return tuple(str(name) for name in values_of(backbone))
