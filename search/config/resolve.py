"""Turn a StudyConfig into the settings objects that the rest of the code takes."""

import os
from pathlib import Path

from finetune.disk.filesystems import is_url
from finetune.settings import FeatureSettings, SampleSettings
from search.config.domain import choices, values_of
from search.config.sections import RANDOM_WEIGHTS, is_weights_file
from search.config.study import StudyConfig


def data_settings(config: StudyConfig) -> SampleSettings:
    """Return the settings that select the study's images and split them."""
    data = config.data
    return SampleSettings(
        **data.samples,
        validation_share=data.validation_share,
        test_share=data.test_share,
        seed=config.study.seed,
    )


def cache_dir() -> Path:
    """Return a node's cache folder: weights, features, decoded images and copies of remote files."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "finetune"


def feature_settings(config: StudyConfig) -> FeatureSettings:
    """Return the settings of the feature store: folder, limit, and how many trials can share features."""
    said = config.features
    return FeatureSettings(
        folder=said.dir or str(cache_dir() / "features"),
        budget_bytes=int(said.budget_gib * 2**30),
        mode=said.mode,
        trials=config.study.trials,
        alike=_alike(config, "backbone", "image_size"),
        alike_views=_alike(config, "backbone", "image_size", "crop_scale", "horizontal_flip", "augment")
        * _unmixed(config),
    )


def _alike(config: StudyConfig, *fields: str) -> float:
    """Return the expected share of trials that agree with a given trial in all of these fields."""
    if all(config.model.weights_of(backbone) == RANDOM_WEIGHTS for backbone in config.backbones):
        return 0.0  # each trial draws its own random weights, so no features can be shared
    said = {**dict(config.data), **dict(config.model)}
    share = 1.0
    for field in fields:
        share /= choices(said[field])
    return share


def _unmixed(config: StudyConfig) -> float:
    """Return the share of trials that blend no images; the others read no stored features in training."""
    ways = values_of(config.space.mix)
    return ways.count("none") / len(ways)


def copies_bytes(config: StudyConfig) -> int:
    """Return the limit on each node, in bytes, for copies of remote files."""
    return int(config.data.copies_gib * 2**30)


def weight_locations(config: StudyConfig) -> list[str]:
    """Return the paths and URLs of the study's weight files."""
    given = [config.model.weights_of(backbone) for backbone in config.backbones]
    return [str(weights) for weights in given if is_weights_file(weights)]


def weight_files(config: StudyConfig) -> list[str]:
    """Return the paths of those weight files that are not URLs."""
    return [location for location in weight_locations(config) if not is_url(location)]
