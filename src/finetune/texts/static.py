"""Text encoder `static`: the mean of one vector per token, from a matrix and a tokenizer file.

The folder holds `tokenizer.json` and one matrix in a `.safetensors` file, as model2vec writes them.

Shapes: N texts, V tokens of the vocabulary, E numbers of a vector.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from finetune import extras
from finetune.errors import DataError


class Static:
    """The mean of the vectors of a text's tokens.

    Args:
        name: name that tells this matrix from others.
        matrix: a vector for each token, float32 (V, E).
        tokenizer: a `tokenizers.Tokenizer`.
    """

    def __init__(self, name: str, matrix: Tensor, tokenizer: Any) -> None:
        self.name, self._matrix, self._tokenizer = name, matrix, tokenizer

    @property
    def size(self) -> int:
        """E, the numbers of a vector."""
        return int(self._matrix.shape[1])

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Return the vectors of texts, float32 (N, E); a text without a token is a vector of zeros."""
        found = torch.zeros(len(texts), self.size)
        for place, told in enumerate(self._tokenizer.encode_batch(list(texts), add_special_tokens=False)):
            if told.ids:
                found[place] = self._matrix[torch.tensor(told.ids)].mean(0)
        return found

    def tensors(self) -> dict[str, Tensor]:
        """Return the arrays of the encoder, by name."""
        return {"matrix": self._matrix}

    def words(self) -> str:
        """Return the tokenizer as JSON."""
        return str(self._tokenizer.to_str())

    @classmethod
    def rebuilt(cls, tensors: Mapping[str, Tensor], words: str) -> "Static":
        """Rebuild an encoder from `tensors` and `words`.

        Raises:
            ValueError: they do not fit together.
            MissingPackage: the package `tokenizers` is missing.
        """
        extras.require("text", "a model with a static text encoder", ["tokenizers"])
        from tokenizers import Tokenizer

        matrix, tokenizer = tensors["matrix"], Tokenizer.from_str(words)
        if matrix.ndim != 2 or tokenizer.get_vocab_size() > len(matrix):
            raise ValueError("a tokenizer that does not fit its matrix")
        return cls("static", matrix.float(), tokenizer)


def read(folder: Path) -> Static:
    """Return the encoder in a folder.

    Raises:
        DataError: the folder does not hold a tokenizer and a matrix that fit together.
        MissingPackage: the package `tokenizers` is missing.
    """
    extras.require("text", "model.text_encoder: static", ["tokenizers"])
    from tokenizers import Tokenizer

    try:
        file = next(iter(sorted(folder.glob("*.safetensors"))))
        tensors = load_file(file)
        (matrix,) = (tensor.float() for tensor in tensors.values() if tensor.ndim == 2)
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        if tokenizer.get_vocab_size() > len(matrix):
            raise ValueError(f"{tokenizer.get_vocab_size()} tokens for {len(matrix)} rows")
    except Exception as error:  # `tokenizers` raises bare Exceptions
        why = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"model.text_encoder: {folder} must hold tokenizer.json and one matrix in a .safetensors file, "
            f"got {why}. Correct the folder."
        ) from error
    digest = hashlib.sha256(file.read_bytes() + (folder / "tokenizer.json").read_bytes()).hexdigest()
    return Static(f"static {digest}", matrix, tokenizer)
