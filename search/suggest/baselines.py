"""Trials that are set, not sampled: what a search has to beat, and where it starts.

`recipe` is the founding recipe on the pretrained backbone; `scratch` trains the same backbone from
random weights, whole, and so shows what the transfer is worth. The values of `scratch` are those of
torchvision's classification references: SGD, momentum 0.9, weight decay 1e-4, and their rate of 0.1
for 256 images scaled to 32. Measured on the quickstart (one seed, 8 epochs): best accuracy .983 with
0.0125, .966 with 0.05, .978 with 0.1.

The starts are one setting for each strategy, near the best ones measured in docs/decisions.md. A search
that starts from what did well elsewhere needs fewer trials; the sampler learns from them as from its own.
"""

from collections.abc import Mapping
from types import MappingProxyType

from search.config.domain import ALL_WORD, Value
from search.config.sections import RANDOM_WEIGHTS

_COMMON: Mapping[str, Value] = MappingProxyType(
    {
        "strategy": "replace",
        "backbone_rate": 1.0,
        "dropout": 0.0,
        "label_smoothing": 0.0,
        "momentum": 0.9,
        # Everything that neither the recipe nor the references have.
        "imbalance": "none",
        "layer_decay": 1.0,
        "unfreeze_epochs": 0,
        "l2_sp": 0.0,
        "ema_decay": 0.0,
        "clip_norm": 0.0,
        "accumulate": 1,
        "mix": "none",
        "augment": "none",
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
    }
)

STARTS: Mapping[str, Mapping[str, Value]] = MappingProxyType(
    {
        "replace": {"optimizer": "sgd", "learning_rate": 0.01, "head_size": 0},
        "load": {"optimizer": "sgd", "learning_rate": 0.003},
        "fuse": {"optimizer": "sgd", "learning_rate": 0.006, "head_size": 0, "backbone_rate": 1.0},
    }
)
"""Strategy -> what its first trial is, with START_FROZEN; the rest is as the study says first."""
START_FROZEN: Mapping[str, float] = MappingProxyType({"replace": 1.0, "load": 1.0, "fuse": 0.5})
"""Strategy -> share of the blocks that its start freezes. `fuse`: the first blocks fit many tasks as they are
(Yosinski et al., NeurIPS 2014), and the fewer of them train, the higher a rate they bear."""
START_NEAR = 1 / 8
"""Share of the blocks by which a start that trains some of them may miss START_FROZEN; at least one block."""
