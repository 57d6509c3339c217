"""Paths of all files of one study. No other module knows the file names in a results folder."""

import errno
import fcntl
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune.disk.atomic import replacing
from search.errors import RecordLost, StudyError

ROOM_BYTES = 2**20
"""Bytes that must be free for a study to begin: SQLite's log and its index, and a trial or two."""
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
"""Errors of a disk that is full or broken: nothing that the study does can mend it."""


@dataclass(frozen=True)
class StudyFolder:
    """The results folder of one study, with the paths of the files in it."""

    root: Path

    @property
    def config(self) -> Path:
        """The resolved config of the study."""
        return self.root / "study.yaml"

    @property
    def database(self) -> Path:
        """The record: Optuna's storage in an SQLite file."""
        return self.root / "optuna.db"

    @property
    def lock(self) -> Path:
        """File that the process which runs the study keeps locked."""
        return self.root / ".lock"

    def is_held(self) -> bool:
        """Return True while a process runs the study. This changes no file."""
        try:
            lock = os.open(self.lock, os.O_RDONLY)
        except FileNotFoundError:
            return False
        except OSError:  # not readable, such as another user's: assume that it runs
            return True
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:  # it is locked, or locks do not work here; then filelock takes the file itself as one
            return True
        finally:
            os.close(lock)
        return False

    def check_room(self) -> None:
        """Raise a StudyError unless ROOM_BYTES can be written to the folder."""
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

    def lost(self, error: OSError) -> RecordLost:
        """Return an error of the disk, met while the study ran, as the study's own error."""
        return RecordLost(
            f"{self.root}: a results folder must take files while its study runs, got {error.strerror} "
            f"({error.filename or 'some file'}). The record is whole up to then: see to the disk, then "
            f"`python -m search resume {self.root}`."
        )

    @property
    def marker(self) -> Path:
        """File that the driver writes and every node reads, to check that all nodes share this folder."""
        return self.root / ".shared"

    @property
    def tune(self) -> Path:
        """Folder of Ray Tune's experiments, one for each run of the study."""
        return self.root / "tune"

    @property
    def slots(self) -> Path:
        """Folder in which Ray Train stores the runs of the slots."""
        return self.root / "slots"

    @property
    def tensorboard(self) -> Path:
        """Folder of TensorBoard's event files, with a folder for each trial."""
        return self.root / "tensorboard"

    @property
    def table(self) -> Path:
        """The table of all trials as CSV."""
        return self.root / "trials.csv"

    @property
    def test_reads(self) -> Path:
        """List of the reads of the test split, a JSON line for each; see reads.py."""
        return self.root / "test_reads.jsonl"

    @property
    def latencies(self) -> Path:
        """Folder of the latencies that the slots have measured, for a study with several objectives."""
        return self.root / "latencies"

    @property
    def best(self) -> Path:
        """The model folder of the best trial."""
        return self.root / "best"

    @property
    def final(self) -> Path:
        """The model folder of the best trial's settings, trained on training and validation images."""
        return self.root / "final"

    @property
    def report(self) -> Path:
        """The page that `report` writes."""
        return self.root / "report.html"

    def trial(self, trial_id: str) -> Path:
        """Return the folder of one trial's own files."""
        return self.root / "trials" / trial_id

    def best_weights(self, trial_id: str) -> Path:
        """Return the path of the trained part of a trial's model at its best epoch."""
        return self.trial(trial_id) / "best.safetensors"

    def last_weights(self, trial_id: str) -> Path:
        """Return the path of the checkpoint from which a trial resumes; it is deleted once the trial ends."""
        return self.trial(trial_id) / "last.safetensors"

    def answers(self, trial_id: str) -> Path:
        """Return the path of what a measured model answered on each validation and test image."""
        return self.trial(trial_id) / "answers.npz"

    def mistakes(self, trial_id: str) -> Path:
        """Return the path of an exported model's most confident mistakes, with pictures."""
        return self.trial(trial_id) / "mistakes.json"

    def explained(self, trial_id: str) -> Path:
        """Return the path of what explains an exported model's mistakes, and of doubtful labels."""
        return self.trial(trial_id) / "explained.json"

    def error(self, trial_id: str) -> Path:
        """Return the path of the full trace of a failed trial."""
        return self.trial(trial_id) / "error.txt"

    def hand_over(self, old: Sequence[str], new: str) -> None:
        """Move the checkpoints of interrupted trials to the trial that continues them.

        Args:
            old: the trial that it continues, then the one that that one continued, and so on: a driver that
                was killed may have moved one file and not the other.
            new: the trial that continues them.
        """
        self.trial(new).mkdir(parents=True, exist_ok=True)
        for weights in (self.best_weights, self.last_weights):
            there = next((path for path in map(weights, old) if path.exists()), None)
            if there is not None:
                os.replace(there, weights(new))

    def remove_unknown(self, trials: int) -> list[str]:
        """Remove the files of trials that a record of so many trials does not know; return their names.

        A later trial of the same name would find a checkpoint that is not its own, and fail.
        """
        known = {trial_id(number) for number in range(trials)}
        found = sorted({path.name for path in self.trial("").glob("trial-*")} - known)
        for name in found:
            shutil.rmtree(self.trial(name), ignore_errors=True)
        return found

    @classmethod
    def create(cls, results: Path, name: str) -> "StudyFolder":
        """Make a new folder `results/name`, or `name-2`, `name-3`, ... if that name is taken.

        Raises:
            StudyError: the folder cannot be written, or no name is free.
        """
        try:
            results.mkdir(parents=True, exist_ok=True)
            for number in range(1, 10_000):
                folder = cls(results / (name if number == 1 else f"{name}-{number}"))
                # mkdir decides: of two studies that begin at once, only one gets this name.
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
            StudyError: `root` holds no study.
        """
        folder = cls(root.resolve())
        if not folder.config.is_file():
            near = ", ".join(sorted(str(p.parent) for p in root.glob("*/study.yaml"))) or "none below it"
            raise StudyError(
                f"{root}: a results folder must hold study.yaml, got none. Studies found: {near}."
            )
        return folder


def write_text(path: Path, text: str) -> None:
    """Write a file atomically; characters that UTF-8 cannot encode are written as escapes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, durable=True) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def trial_id(number: int) -> str:
    """Return the name of a trial's folders."""
    return f"trial-{number:04d}"
