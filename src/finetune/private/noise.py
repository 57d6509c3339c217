"""Random numbers of a private study: all of them follow from one secret key, by SHAKE-256.

So an interrupted study cannot draw again, and nobody can compute the noise from what is released, which the
state of an ordinary generator would allow. Whoever has the key can take the noise away: it is removed once
the study is over.
"""

import hashlib
import secrets

import numpy as np
from scipy.special import ndtri

KEY_BYTES = 32


def new_key() -> bytes:
    """Return a fresh secret key from the operating system."""
    return secrets.token_bytes(KEY_BYTES)


class Draws:
    """A stream of random numbers for one purpose, a pure function of the key and the purpose.

    Args:
        key: the study's secret key.
        purpose: what the numbers are for. No two uses of a key may share a purpose.
    """

    def __init__(self, key: bytes, purpose: str) -> None:
        self._seed = hashlib.sha256(key + purpose.encode()).digest()
        self._calls = 0

    def uniform(self, count: int) -> np.ndarray:
        """Return `count` numbers in the open interval (0, 1), float64."""
        self._calls += 1
        stream = hashlib.shake_256(self._seed + self._calls.to_bytes(8, "big")).digest(8 * count)
        return ((np.frombuffer(stream, "<u8") >> 11) + 0.5) * 2.0**-53

    def normal(self, *shape: int) -> np.ndarray:
        """Return independent standard normal numbers, float64."""
        drawn: np.ndarray = ndtri(self.uniform(int(np.prod(shape)))).reshape(shape)
        return drawn

    def one_of(self, count: int) -> int:
        """Return a whole number from 0 to `count` - 1, all equally likely."""
        return min(int(self.uniform(1)[0] * count), count - 1)
