"""Text encoder `tfidf`: weighted counts of words, reduced to at most DIMENSIONS numbers by an SVD.

Shapes: N texts, W words of the vocabulary, E numbers of a vector.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

DIMENSIONS = 256
MOST_WORDS = 20_000
"""Largest vocabulary; rarer words are left out."""
_OPTIONS: dict[str, Any] = {"sublinear_tf": True, "strip_accents": "unicode"}


class Tfidf:
    """TF-IDF vectors of words, projected to their main directions.

    Args:
        vocabulary: word -> its place.
        idf: inverse document frequencies, float32 (W,).
        directions: the projection, float32 (E, W).
    """

    name = "tfidf"

    def __init__(self, vocabulary: Mapping[str, int], idf: Tensor, directions: Tensor) -> None:
        self.vocabulary, self.idf, self.directions = dict(vocabulary), idf, directions
        self._words: Any = None

    @classmethod
    def fit(cls, texts: Sequence[str]) -> "Tfidf":
        """Return the encoder of these texts, which should be those of the training samples alone."""
        # Half a second of import that a study without texts need not wait for.
        from sklearn.decomposition import TruncatedSVD
        from sklearn.feature_extraction.text import TfidfVectorizer

        words = TfidfVectorizer(**_OPTIONS, max_features=MOST_WORDS)
        try:
            counted = words.fit_transform(texts)
        except ValueError:  # no text has a word
            return cls({}, torch.zeros(0), torch.zeros(1, 0))
        vocabulary = {word: int(place) for word, place in words.vocabulary_.items()}
        idf = torch.tensor(words.idf_, dtype=torch.float32)
        size = min(DIMENSIONS, *(side - 1 for side in counted.shape))
        if size < 1:
            return cls(vocabulary, idf, torch.eye(len(idf))[: max(1, len(idf))])
        directions = TruncatedSVD(size, random_state=0).fit(counted).components_
        return cls(vocabulary, idf, torch.tensor(directions, dtype=torch.float32))

    @property
    def size(self) -> int:
        """E, the numbers of a vector."""
        return len(self.directions)

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Return the vectors of texts, float32 (N, E); a text without a known word is a vector of zeros."""
        if not self.vocabulary:
            return torch.zeros(len(texts), self.size)
        if self._words is None:
            from sklearn.feature_extraction.text import TfidfVectorizer

            self._words = TfidfVectorizer(**_OPTIONS, vocabulary=self.vocabulary)
            self._words.idf_ = self.idf.double().numpy()
        counted = self._words.transform(texts)
        return torch.tensor(counted @ self.directions.T.double().numpy(), dtype=torch.float32)

    def tensors(self) -> dict[str, Tensor]:
        """Return the arrays of the encoder, by name."""
        return {"idf": self.idf, "directions": self.directions}

    def words(self) -> str:
        """Return the vocabulary as JSON, the words in the order of their places."""
        return json.dumps(sorted(self.vocabulary, key=self.vocabulary.__getitem__), ensure_ascii=False)

    @classmethod
    def rebuilt(cls, tensors: Mapping[str, Tensor], words: str) -> "Tfidf":
        """Rebuild an encoder from `tensors` and `words`.

        Raises:
            ValueError: they do not fit together.
        """
        known, idf, directions = json.loads(words), tensors["idf"], tensors["directions"]
        listed = isinstance(known, list) and all(isinstance(word, str) for word in known)
        if not listed or len(set(known)) != len(known) or idf.shape != (len(known),):
            raise ValueError("a vocabulary that does not fit its text encoder")
        if directions.ndim != 2 or directions.shape[1] != len(known) or not len(directions):
            raise ValueError("a text encoder whose arrays do not fit together")
        return cls({word: place for place, word in enumerate(known)}, idf, directions)
