"""Fixed settings of trials that are not sampled: the baselines of a search.

The baselines are what a search has to beat. `recipe` is the founding recipe on the pretrained backbone;
`scratch` trains the whole backbone from random weights, and so shows what the transfer is worth. The values
of `scratch` are those of torchvision's classification references: SGD, momentum 0.9, weight decay 1e-4, and
their learning rate of 0.1 for 256 images scaled to 32. Measured on the first version of the quickstart, which
trained on 70 % of the images (one seed, 8 epochs): best accuracy .983 with 0.0125, .966 with 0.05, .978 with
0.1.
"""

from collections.abc import Mapping
from types import MappingProxyType

from finetune.strategy import Value
from search.config.domain import ALL_WORD
from search.config.sections import EXACT, RANDOM_WEIGHTS, SETTINGS

SEEN_BY_EXACT = ("image_size", "crop_scale", "horizontal_flip", "augment")
_COMMON: Mapping[str, Value] = MappingProxyType(
    {name: setting.baseline for name, setting in SETTINGS.items() if setting.baseline is not None}
)
_LINEAR: Mapping[str, Value] = MappingProxyType(
    {
        "head_size": 0,
        "frozen_layers": ALL_WORD,
        "optimizer": "sgd",
        "learning_rate": 0.01,
        "weight_decay": 1e-4,
        "schedule": "cosine",
        "warmup_epochs": 0.0,
    }
)
BASELINES: Mapping[str, Mapping[str, Value]] = MappingProxyType(
    {
        # Frozen VGG16, pooling, Dense(1024, relu), softmax, Adam at Keras' default rate.
        "recipe": {
            **_COMMON,
            "head_size": 1024,
            "frozen_layers": ALL_WORD,
            "optimizer": "adam",
            "learning_rate": 1e-3,
            "weight_decay": 0.0,
            "schedule": "constant",
            "warmup_epochs": 0.0,
        },
        "scratch": {
            **_COMMON,
            "head_size": 0,
            "frozen_layers": 0,
            "optimizer": "sgd",
            "learning_rate": 0.1 * 32 / 256,
            "weight_decay": 1e-4,
            "schedule": "cosine",
            "warmup_epochs": 1.0,
            "weights": RANDOM_WEIGHTS,
        },
        # One part alone, where samples have text: what a fusion of both has to beat.
        **{f"{part}_only": {**_COMMON, **_LINEAR, "fusion": part} for part in ("image", "text")},
        # No training: the head on a frozen backbone is solved for (finetune/exact).
        EXACT: {"strategy": EXACT, "frozen_layers": ALL_WORD, "crop_scale": 1.0, "augment": "none"},
    }
)
EXACT_FIELDS = frozenset({"strategy", "backbone", "frozen_layers", "text_encoder", *SEEN_BY_EXACT})
"""Fields that `exact` uses."""

START_NEAR = 1 / 8
"""Share of the blocks by which the frozen blocks of a start may differ from its strategy's `start_frozen`, at
least one block. Where that is 1, no difference is allowed."""
