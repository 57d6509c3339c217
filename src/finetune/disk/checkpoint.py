"""Write and read checkpoints: written under another name, then renamed; read without unpickling.

A checkpoint is one safetensors file: tensors by name, and everything else as JSON in its header, with a
checksum of the tensors.
"""

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from finetune.disk.atomic import replacing
from finetune.disk.filesystems import no_pipe
from finetune.errors import CheckpointError

CHECKSUM = "crc32"
"""Name of the entry with the checksum, which `write` adds to the facts and `read` removes."""


def write(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write `tensors` and `facts`, which must be JSON values, to `path`, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # One string of metadata: safetensors writes several in any order, and equal checkpoints should be equal
    # files.
    told = json.dumps({**facts, CHECKSUM: _checksum(contiguous)})
    with replacing(path) as temporary:
        save_file(contiguous, temporary, metadata={"facts": told})


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and facts that were given to `write`.

    Raises:
        CheckpointError: the file is missing, damaged or was not written by `write`.
    """
    try:
        with safe_open(no_pipe(path), framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            facts = json.loads(file.metadata()["facts"])
        if facts.pop(CHECKSUM, None) not in (None, _checksum(tensors)):  # older files have none
            raise ValueError("other tensors than were written")
    except FileNotFoundError:
        raise CheckpointError(
            f"{path}: a checkpoint must be there, got no file. Was the trial's checkpoint removed? "
            "Run the trial again with `run --only-trial N`."
        ) from None
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: a checkpoint must be a whole safetensors file with facts, got {error}. "
            "Delete it and run the trial again."
        ) from error
    return tensors, facts


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    """Return a checksum of names and values; it detects damaged values and missing tensors."""
    total = 0
    for name in sorted(tensors):
        values = tensors[name].reshape(-1).view(torch.uint8).numpy()
        total = zlib.crc32(values.data, zlib.crc32(name.encode(), total))
    return f"{total:08x}"


def pack_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Return the optimiser's state as flat tensors, named `optimizer.<parameter>.<name>`, and its groups."""
    state = optimizer.state_dict()
    flat = {
        f"optimizer.{index}.{name}": torch.as_tensor(value)
        for index, values in state["state"].items()
        for name, value in values.items()
        if value is not None
    }
    return flat, state["param_groups"]


def unpack_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], groups: list[dict[str, Any]]
) -> None:
    """Restore the state that `pack_optimizer` returned; tensors with other names are ignored."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".", 2)
            state.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": groups})
