"""The secret key of a private study, from which all its draws follow; it is kept until the study is over."""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.private import noise
from search.config.study import StudyConfig
from search.errors import StudyError

SPENT = "spent"
NOTICE = (
    "PRIVATE: not to be given to anybody. These files tell more about the images than the study's epsilon."
)


@dataclass(frozen=True)
class Draws:
    """The folder with a study's private files."""

    root: Path

    @property
    def file(self) -> Path:
        """File with the key."""
        return self.root / "draws.json"

    @property
    def trials(self) -> Path:
        """File with the settings and noisy scores of all trials."""
        return self.root / "trials.jsonl"

    def key(self, config: StudyConfig, fingerprint: str) -> bytes:
        """Return the study's key; the first call draws it and writes it to the disk before it is used.

        Raises:
            StudyError: the key was drawn for another config or other images, or is used up.
        """
        digest = hashlib.sha256(f"{_drawn_by(config)}\0{fingerprint}".encode()).hexdigest()
        if self.file.exists():
            told = self._read()
            if told.get("state") == SPENT:
                raise StudyError(
                    f"{self.file}: a private study draws once, got one that is over. Run a new study."
                )
            if told.get("for") != digest:
                raise StudyError(
                    f"{self.file}: a private study must go on with the config and images that it began with, "
                    "got others. Put them back; a new study costs a new budget."
                )
            return bytes.fromhex(told["key"])
        key = noise.new_key()
        self._write(self.file, {"notice": NOTICE, "for": digest, "key": key.hex()})
        return key

    def spend(self) -> None:
        """Remove the key: with it, the noise could be taken away from what was released."""
        if self.file.exists():
            self._write(self.file, {"notice": NOTICE, "state": SPENT})

    def note(self, outcomes: list[dict[str, Any]]) -> None:
        """Write down the trials for whoever owns the images."""
        self._write(self.trials, *({"notice": NOTICE}, *outcomes))

    def _read(self) -> dict[str, Any]:
        try:
            told: dict[str, Any] = json.loads(self.file.read_text(encoding="utf-8"))
            bytes.fromhex(told.get("key", ""))
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise StudyError(
                f"{self.file}: the draws of a private study must be whole, got {type(error).__name__}. "
                "Restore the file; without it the study cannot go on."
            ) from error
        return told

    def _write(self, path: Path, *rows: dict[str, Any]) -> None:
        """Write a file that only its owner can read, and have it on the disk before this returns."""
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp")
        file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(file, "w", encoding="utf-8") as out:
            out.writelines(json.dumps(row) + "\n" for row in rows)
            out.flush()
            os.fsync(out.fileno())
        temporary.replace(path)
        folder = os.open(self.root, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _drawn_by(config: StudyConfig) -> str:
    """Return everything of a config that decides what trials draw and what they read."""
    said = config.model_dump(mode="json")
    kept = {name: said[name] for name in ("privacy", "model", "space")}
    return json.dumps(
        kept | {"trials": said["study"]["trials"], "size": said["data"]["image_size"]}, sort_keys=True
    )
