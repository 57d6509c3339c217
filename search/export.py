"""Make a model folder of a trial, in this process: the best trial's is made by the study itself."""

from pathlib import Path
from typing import Any

from finetune import filesystems
from search import ledger
from search.errors import StudyError
from search.layout import StudyFolder
from search.record import StudyRecord, TrialRecord


def export_trial(folder: StudyFolder, number: int | None, to: Path) -> dict[str, Any]:
    """Write the model folder of trial `number`, or of the best, and return what its model.yaml says.

    Raises:
        StudyError: the study has no such trial, or none that completed; or `to` cannot take a model.
        CheckpointError: the trial's weights were not kept.
    """
    record = ledger.read_study(folder)
    trial = _chosen(record, number)
    _check_target(to)
    import torch

    from finetune import model_folder
    from finetune.loop import World

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    provenance = record.provenance | {"study": record.name, "trial": trial.id}
    try:
        return model_folder.write(folder.best_weights(trial.id), to, provenance, world=World(device=device))
    except OSError as error:
        raise StudyError(f"--to: {to} must be writable, got {error.strerror}. Name another folder.") from None


def _check_target(to: Path) -> None:
    """Raise a StudyError unless `to` can be made, is empty or holds a model that is to be replaced."""
    got = filesystems.not_writable(to)
    if got is None and to.is_dir() and any(to.iterdir()) and not (to / "model.yaml").is_file():
        got = "a folder that holds other files"
    if got is not None:
        raise StudyError(f"--to: {to} must be a new folder or a model folder, got {got}. Name another one.")


def _chosen(record: StudyRecord, number: int | None) -> TrialRecord:
    if number is None:
        if record.best is None:
            raise StudyError(
                f"{record.folder}: a trial must have completed to be exported, got none. "
                "See `results` for why, or name one with --trial."
            )
        return record.best
    for trial in record.trials:
        if trial.number == number:
            return trial
    raise StudyError(f"{record.folder}: --trial must be one of 0 to {len(record.trials) - 1}, got {number}.")
