"""A study on disk, written by no trial, and ways to look at it."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from search.__main__ import app, guarded
from search.config.study import StudyConfig
from search.record.ledger import Ledger
from search.record.study_folder import StudyFolder, write_text
from search.suggest import sampler

TRIALS = 6
Make = Callable[..., StudyFolder]


def write(
    results: Path,
    study: dict[str, Any] | None = None,
    facts: Callable[[int], dict[str, Any]] = lambda number: {},
) -> StudyFolder:
    """Write a study that was interrupted after half of its trials.

    Args:
        results: folder of all studies.
        study: further keys of the config's section `study`.
        facts: returns further facts about a trial.
    """
    folder = StudyFolder.create(results, "pets")
    config = StudyConfig.from_dict(
        {
            "study": {"name": folder.root.name, "trials": 2 * TRIALS, "epochs": 3} | (study or {}),
            "data": {"kind": "digits", "classes": ["0", "1"], "image_size": 32},
            "results": str(results),
        }
    )
    write_text(folder.config, config.to_yaml())
    book = Ledger(folder.database, metric="val/accuracy", sampler=sampler.make("random", seed=0))
    for number in range(TRIALS):
        trial = book.ask()
        trial.suggest_float("learning_rate", 1e-4, 1e-1, log=True)
        book.suggested(trial.number, {"params": {"learning_rate": 0.01, "strategy": "fuse"}})
        epochs = [{"epoch": epoch, "val/accuracy": epoch / 10 + number / 100} for epoch in (1, 2, 3)]
        for epoch in epochs:
            book.report(trial.number, int(epoch["epoch"]), epoch["val/accuracy"])
        metrics = {"best": epochs[-1], "last": epochs[-1]}
        book.end(
            number,
            "COMPLETE",
            epochs[-1]["val/accuracy"],
            {"metrics": metrics, "epochs": 3, "history": epochs} | facts(number),
        )
    book.set_fact("state", "interrupted")
    book.set_fact("seconds", 3.5)
    book.set_fact("provenance", {"job": "pets-1"})
    book.close()
    return folder


def everything(folder: Path) -> dict[str, tuple[int, str]]:
    """Return each file and folder with its time of change and what it holds."""
    return {
        str(path.relative_to(folder)): (
            path.stat().st_mtime_ns,
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "",
        )
        for path in (folder, *folder.rglob("*"))
    }


def call(*words: object) -> int:
    return guarded(lambda: app([str(word) for word in words], prog_name="search", standalone_mode=False))
