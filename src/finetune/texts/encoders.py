"""Find the text encoder that a setting names, and encode the texts of a data set with it.

Shapes: N samples of a split, E numbers of a text's vector.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from finetune.datasets.catalog import Catalog
from finetune.disk.array_file import Layout
from finetune.disk.array_store import Store
from finetune.texts import hub, static
from finetune.texts.static import Static
from finetune.texts.tfidf import Tfidf

FORMAT = 1
"""Version of the stored vectors, a part of their key."""


class Encoder(Protocol):
    """A function from texts to vectors."""

    name: str

    @property
    def size(self) -> int:
        """E, the numbers of a vector."""

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Return the vectors of texts, float32 (N, E)."""

    def tensors(self) -> dict[str, Tensor]:
        """Return the arrays of the encoder, by name, for a model folder."""

    def words(self) -> str:
        """Return the rest of the encoder as JSON."""


def rebuilt(name: str, tensors: Mapping[str, Tensor], words: str) -> Encoder:
    """Return an encoder from what a model folder holds of it.

    Raises:
        DataError: the model of `hub` cannot be read.
        ValueError: the parts do not fit together.
        MissingPackage: a package is missing.
    """
    kind = name.partition(":")[0]
    if kind == "hub":
        return hub.read(str(json.loads(words)))
    return (Static if kind == "static" else Tfidf).rebuilt(tensors, words)


def encoder(name: str, texts: Sequence[str]) -> Encoder:
    """Return the encoder `tfidf`, `static:FOLDER` or `hub:NAME`.

    Args:
        name: name of the encoder.
        texts: texts of the training samples, on which `tfidf` is fitted; the others do not use them.

    Raises:
        DataError: its files cannot be read, or a package is missing.
    """
    kind, _, where = name.partition(":")
    if kind == "static":
        return static.read(Path(where))
    if kind == "hub":
        return hub.read(where)
    return Tfidf.fit([text for text in texts if text])


class Texts:
    """The texts of one catalog as vectors, encoded once for each split.

    Args:
        catalog: the samples.
        name: name of the encoder.
        store: store in which all processes of the node share the vectors; None: memory of this process.
    """

    def __init__(self, catalog: Catalog, name: str, store: Store | None) -> None:
        self.name, self._catalog, self._store = name, catalog, store
        self.encoder = encoder(name, [example.text for example in catalog.splits["train"]])
        self._vectors: dict[str, tuple[Tensor, Tensor]] = {}

    @property
    def size(self) -> int:
        """E, the numbers of a vector."""
        return self.encoder.size

    def vectors(self, split: str) -> tuple[Tensor, Tensor]:
        """Return the vectors of a split, float32 (N, E), and whether each sample has a text, bool (N,)."""
        if split not in self._vectors:
            texts = [example.text for example in self._catalog.splits[split]]
            there = torch.tensor([bool(text) for text in texts], dtype=torch.bool)
            self._vectors[split] = self._stored(split, texts), there
        return self._vectors[split]

    def _stored(self, split: str, texts: Sequence[str]) -> Tensor:
        # Fitted counts are encoded faster than a file is read.
        if self._store is None or not texts or isinstance(self.encoder, Tfidf):
            return self.encoder.encode(texts)
        facts = (FORMAT, self._catalog.fingerprint, split, self.encoder.name, self.size)
        key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]
        layout = Layout(rows=len(texts), shape=(self.size,), dtype="float32")

        def make(begin: int, end: int) -> Tensor:
            return self.encoder.encode(texts[begin:end])

        told = {"what": "texts", "encoder": self.encoder.name, "split": split, "images": len(texts)}
        rows = self._store.get(key, layout, make, worth=1e-6, facts=told, step=f"encode texts of {split}")
        return self.encoder.encode(texts) if rows is None else rows
