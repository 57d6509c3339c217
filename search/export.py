"""Make a model folder of a trial, in this process: the best trial's is made by the study itself."""

from pathlib import Path
from typing import Any

from search import ledger, reads
from search.errors import StudyError
from search.layout import StudyFolder
from search.record import StudyRecord, TrialRecord


def export_trial(folder: StudyFolder, number: int | None, to: Path) -> dict[str, Any]:
    """Write the model folder of trial `number`, or of the best, and return what its model.yaml says.

    Raises:
        StudyError: the study has no such trial, or none that completed.
        CheckpointError: the trial's weights were not kept.
    """
    import torch

    from finetune import model_folder
    from finetune.errors import FinetuneError
    from finetune.loop import World

    record = ledger.read_study(folder)
    trial = _chosen(record, number)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    entered = reads.enter(folder, record, trial.id)
    provenance = record.provenance | {"study": record.name, "trial": trial.id} | entered
    try:
        return model_folder.write(folder.best_weights(trial.id), to, provenance, world=World(device=device))
    except FinetuneError:
        reads.withdraw(folder, entered)
        raise


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
