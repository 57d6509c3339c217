"""Name the files of a model folder, and check that a folder may become one."""

import os
import shutil
from pathlib import Path

import yaml

from finetune.datasets.findings import listed
from finetune.disk.atomic import replacing
from finetune.disk.filesystems import no_pipe, text_of
from finetune.errors import CheckpointError

FORMAT = 2
"""Version of model.yaml. Version 1 has no `calibration`; its models answer with the temperature 1."""
FILES = ("model.safetensors", "model.yaml", "bom.json", "README.md")
"""Files of a model folder, in the order in which they are written: the card comes last."""
TEXT = "text.json"
"""Words of the text encoder, in the folder of a model that reads text."""
SIGNATURE = "model.sig"
DERIVED = ("model.onnx", "model.pt2", SIGNATURE)
"""Files that may be added to a model folder, made from its model; the last one is the signature of all."""


def claim(to: Path) -> None:
    """Create the folder of a model, or check that an existing one holds only a model folder or parts of one.

    Raises:
        CheckpointError: the folder holds other files, or cannot be created or written.
    """
    try:
        to.mkdir(parents=True, exist_ok=True)
        names = {path.name.removesuffix(".tmp") for path in to.iterdir() if path.name[0] != "."}
        if not os.access(to, os.W_OK):
            raise PermissionError("no permission to write there")
    except OSError as error:
        raise CheckpointError(
            f"{to}: a model folder must be a folder that can be written, got {type(error).__name__}: "
            f"{error}. Choose another."
        ) from error
    begun = names <= {*FILES[:-1], TEXT}  # an export that was interrupted; the card comes last
    if not begun and not _is_ours(to / FILES[1]):
        raise CheckpointError(
            f"{to}: a model folder must be new, empty or a model folder, got one with "
            f"{listed(sorted(names))}. Choose another: its README.md would be replaced."
        )


def _is_ours(path: Path) -> bool:
    """Return True if `path` is a model.yaml that `write` made."""
    try:
        facts = yaml.safe_load(text_of(path))
    except (OSError, ValueError, yaml.YAMLError):
        return False
    return isinstance(facts, dict) and {"format", "backbone", "strategy", "classes"} <= facts.keys()


def copy(model: Path, to: Path) -> None:
    """Copy weights and description of a model to another folder; what was made from a model there is removed.

    The card and the list of parts are left to `describe`.

    Raises:
        CheckpointError: `to` cannot become a model folder, or `model` lacks a file.
    """
    claim(to)
    try:
        for name in DERIVED:
            (to / name).unlink(missing_ok=True)
        (to / TEXT).unlink(missing_ok=True)
        for name in (*FILES[:2], *[TEXT] * (model / TEXT).exists()):
            with replacing(to / name) as path:
                shutil.copyfile(no_pipe(model / name), path)
    except OSError as error:
        raise CheckpointError(
            f"{model}: the files of a model folder must be readable, got {type(error).__name__}: {error}. "
            "Export the model again."
        ) from error
