"""Where everything of one study lies: the only place that knows the names in a results folder."""

import fcntl
import os
from dataclasses import dataclass
from pathlib import Path

from search.errors import StudyError

ROOM_BYTES = 2**20
"""What a study needs at least to begin: SQLite's log and its index, and a trial or two."""


@dataclass(frozen=True)
class StudyFolder:
    """A results folder, by its path."""

    root: Path

    @property
    def config(self) -> Path:
        """The resolved config that ran."""
        return self.root / "study.yaml"

    @property
    def database(self) -> Path:
        """Optuna's storage: the record."""
        return self.root / "optuna.db"

    @property
    def lock(self) -> Path:
        """Held by the process that runs the study."""
        return self.root / ".lock"

    def is_held(self) -> bool:
        """True while a process runs the study; looking changes no file."""
        try:
            lock = os.open(self.lock, os.O_RDONLY)
        except FileNotFoundError:
            return False
        except OSError:  # another user's: its record says more
            return True
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:  # held; where no file can be, filelock makes the file itself the lock
            return True
        finally:
            os.close(lock)
        return False

    def check_room(self) -> None:
        """Raise a StudyError if nothing can be written here, or next to nothing."""
        probe = self.root / f".room.{os.getpid()}.tmp"
        try:
            try:
                probe.write_bytes(bytes(ROOM_BYTES))
            finally:
                probe.unlink(missing_ok=True)
        except OSError as error:
            raise StudyError(
                f"{self.root}: a results folder must be writable and have room, got {error.strerror}. "
                "See to the disk, then resume."
            ) from None

    @property
    def marker(self) -> Path:
        """Written by the driver and read on every node, to see whether they share this folder."""
        return self.root / ".shared"

    @property
    def tune(self) -> Path:
        """Tune's experiments, one per run of the study."""
        return self.root / "tune"

    @property
    def slots(self) -> Path:
        """Where Train keeps what it writes of the slots' runs."""
        return self.root / "slots"

    @property
    def tensorboard(self) -> Path:
        """One event folder per trial."""
        return self.root / "tensorboard"

    @property
    def table(self) -> Path:
        """The trials as CSV."""
        return self.root / "trials.csv"

    @property
    def test_reads(self) -> Path:
        """Which trials' models were measured on the test split, a line each."""
        return self.root / "test_reads.jsonl"

    @property
    def best(self) -> Path:
        """The model folder of the best trial."""
        return self.root / "best"

    def trial(self, trial_id: str) -> Path:
        """The folder of one trial's own files."""
        return self.root / "trials" / trial_id

    def best_weights(self, trial_id: str) -> Path:
        """The trained part of a trial's model at its best epoch."""
        return self.trial(trial_id) / "best.safetensors"

    def last_weights(self, trial_id: str) -> Path:
        """What a trial needs to go on after an interruption; gone once it has ended."""
        return self.trial(trial_id) / "last.safetensors"

    def error(self, trial_id: str) -> Path:
        """The full trace of a failed trial."""
        return self.trial(trial_id) / "error.txt"

    @classmethod
    def create(cls, results: Path, name: str) -> "StudyFolder":
        """Make a fresh folder `results/name`, or `name-2`, `name-3`, ... where that one is taken."""
        try:
            results.mkdir(parents=True, exist_ok=True)
            for number in range(1, 10_000):
                folder = cls(results / (name if number == 1 else f"{name}-{number}"))
                try:
                    folder.root.mkdir()
                except FileExistsError:
                    continue
                return folder
        except OSError as error:
            raise StudyError(
                f"results: the folder {results} must be writable, got {error.strerror}. "
                "Choose it with --results DIR."
            ) from None
        raise StudyError(
            f"{results}: a free name for the study must be left, got 9,999 of '{name}'. Clear up."
        )

    @classmethod
    def open(cls, root: Path) -> "StudyFolder":
        """Return the folder of an existing study.

        Raises:
            StudyError: there is none.
        """
        folder = cls(root.resolve())
        if not folder.config.is_file():
            near = ", ".join(sorted(str(p.parent) for p in root.glob("*/study.yaml"))) or "none below it"
            raise StudyError(
                f"{root}: a results folder must hold study.yaml, got none. Studies found: {near}."
            )
        return folder


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all; names in it that are not UTF-8 are written out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def trial_id(number: int) -> str:
    """Return the name of a trial's folders."""
    return f"trial-{number:04d}"
