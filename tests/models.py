"""Small trained models for tests: a second of training on scikit-learn's digits."""

from pathlib import Path
from typing import Any

from finetune.messages import Keep
from finetune.settings import DataSettings, TrialSettings, WeightsSettings
from finetune.training import loop


def train(folder: Path, **changes: Any) -> Path:
    """Train a small model on the digits 6 and 7 and return the checkpoint of its best weights."""
    data = DataSettings(
        kind="digits", classes=("6", "7"), image_size=32, validation_share=0.8, test_share=0.1
    )
    values: dict[str, Any] = {
        "data": data,
        "backbone": "shufflenet_v2_x0_5",
        "weights": WeightsSettings(),
        "strategy": "replace",
        "epochs": 1,
        "learning_rate": 0.01,
        "cache_dir": str(folder / "cache"),
    }
    keep = Keep(metric="val/loss", best=folder / "best", last=folder / "last")
    loop.train(TrialSettings(**values | changes), keep=keep, report=lambda _: None)
    return folder / "best"
