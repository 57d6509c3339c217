"""The study of most tests: digits 5 to 7, a small backbone pretrained on 0 and 1, a second per trial."""

from typing import Any

STUDY: dict[str, Any] = {
    "study": {"name": "small", "trials": 4, "epochs": 3, "baselines": [], "sampler": "random"},
    "data": {
        "kind": "digits",
        "classes": ["5", "6", "7"],
        "image_size": 32,
        "batch_size": 32,
        "validation_share": 0.4,
        "test_share": 0.3,
        "horizontal_flip": False,
    },
    "verdict": {"seeds": 0},
    "model": {
        "backbone": "shufflenet_v2_x0_5",
        "weights": {"source": {"kind": "digits", "classes": ["0", "1"], "epochs": 2}},
    },
}


def merged(values: dict[str, Any], sections: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return a config with keys of some of its sections added or replaced."""
    return values | {name: values.get(name, {}) | keys for name, keys in sections.items()}
