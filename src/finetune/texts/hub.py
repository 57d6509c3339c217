"""Text encoder `hub:NAME`: a frozen model of the package transformers, its last states averaged over tokens.

Shapes: N texts, E numbers of a vector.
"""

import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from finetune import extras
from finetune.errors import DataError

BATCH = 32
MOST_TOKENS = 256
"""Tokens of a text that are read."""


class Hub:
    """Mean of the last hidden states of a frozen transformer."""

    def __init__(self, name: str, model: Any, tokenizer: Any) -> None:
        self.name, self._model, self._tokenizer = f"hub {name}", model, tokenizer

    @property
    def size(self) -> int:
        """E, the numbers of a vector."""
        return int(self._model.config.hidden_size)

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Tensor:
        """Return the vectors of texts, float32 (N, E)."""
        parts = [torch.zeros(0, self.size)]
        for begin in range(0, len(texts), BATCH):
            tokens = self._tokenizer(
                list(texts[begin : begin + BATCH]),
                padding=True,
                truncation=True,
                max_length=MOST_TOKENS,
                return_tensors="pt",
            )
            states = self._model(**tokens).last_hidden_state
            mask = tokens["attention_mask"][..., None].to(states)
            parts.append(((states * mask).sum(1) / mask.sum(1).clamp(min=1)).float())
        return torch.cat(parts)

    def tensors(self) -> dict[str, Tensor]:
        """Return no arrays: the model is read from the hub again."""
        return {}

    def words(self) -> str:
        """Return the name of the model as JSON."""
        return json.dumps(self.name.removeprefix("hub "))


def read(name: str) -> Hub:
    """Return the encoder of a model on the hub, or in a local folder.

    Raises:
        DataError: it cannot be read.
        MissingPackage: the package `transformers` is missing.
    """
    extras.require("text-hub", "model.text_encoder: hub", ["transformers"])
    from transformers import AutoModel, AutoTokenizer  # type: ignore[import-not-found, unused-ignore]

    try:
        # No code of the model's author is run, and no pickle is read.
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        model = AutoModel.from_pretrained(name, trust_remote_code=False, use_safetensors=True)
    except Exception as error:  # the hub and its formats raise errors of many kinds
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"model.text_encoder: hub:{name} must be a text model that can be read, got {why:.200}. "
            "Correct the name."
        ) from error
    return Hub(name, model.eval().requires_grad_(False), tokenizer)
