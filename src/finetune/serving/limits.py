"""Limits of a server, which protect its memory from those who send images."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of the requests that a server accepts."""

    body_bytes: int = 20 * 2**20
    """Largest size of an image file."""
    pixels: int = 50_000_000
    """Largest width times height of an image."""
    queue: int = 64
    """Largest number of requests in work; others are answered with 503."""
    batch: int = 16
    """Largest number of images that go through the model together."""
    seconds: float = 30.0
    """Time for a client to send its image."""
