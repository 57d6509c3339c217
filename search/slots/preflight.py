"""Check each node before it gets a slot: it must see the same files and run the same code as the driver.

`join` connects to the cluster. `expect` collects the driver's facts, `examine` starts a task that collects
the same facts on a node, and `problems` compares them. `check` does so for all nodes that are up when a study
starts; the supervisor does so for each node that joins later. On a cluster of one node there is
nothing to compare, and no task is run.
"""

import contextlib
import gc
import hashlib
import importlib.metadata
import os
import platform
import re
import secrets
import socket
import subprocess
import sys
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.exceptions import AuthenticationError, GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from finetune.datasets.catalog import Catalog
from finetune.datasets.sources import Reader
from finetune.errors import DataError
from search import provenance
from search.errors import PreflightError
from search.record.study_folder import DISK_ERRORS, write_text
from search.slots.nodes import Node

STARTS = 4
"""Attempts to start Ray on this machine."""
TOO_SLOW = "timed out during startup"
"""Part of Ray's message where the machine was too busy to start it in time."""
PACKAGES = ("ray", "torch", "torchvision", "optuna")
"""Packages whose versions affect what a trial computes, or whether nodes can talk to one another."""
ANSWER_SECONDS = 120.0
"""Seconds for the tasks of all nodes together; they import nothing heavy except torch, on nodes with GPUs."""
REACH_SECONDS = 10.0
"""Seconds for a connection to the head, which normally takes milliseconds."""
COUNT_GPUS = "import torch; print(torch.cuda.device_count() if torch.cuda.is_available() else 0)"
GPU_SECONDS = 90.0
"""Seconds for a process that runs COUNT_GPUS, most of which is the import of torch."""


@dataclass(frozen=True)
class Expected:
    """Facts of the driver that every node must share; sent to the nodes."""

    facts: Mapping[str, str]
    """Versions of Python, the packages and our own code, by name."""
    marker: Path
    """File in the results folder that every node must be able to read."""
    content: str
    """Random content of the marker, so that an old file does not pass for it."""
    reader: Reader
    images: Mapping[str, str]
    """A few images: path -> size and hash of a sample of the content."""
    files: Mapping[str, int]
    """Weight files: path -> size in bytes."""
    gpu: bool
    """True if trials train on GPUs."""
    passed: tuple[str, ...] = ()
    """Ids of the nodes that have passed the check."""


def join(address: str, **options: Any) -> None:
    """Connect this process to the Ray at `address`, or start one here (`local`).

    Raises:
        PreflightError: the address is malformed, nothing answers there, the cluster asks for a token that
            this process does not have, or no Ray starts here.
    """
    if address == "local":
        _start(**options)
        return
    if address != "auto":
        _reach(address)
    token = "Copy its token to ~/.ray/auth_token or set RAY_AUTH_TOKEN_PATH, and set RAY_AUTH_MODE=token."
    try:
        ray.init(address=address, **options)
    except AuthenticationError:
        raise PreflightError(
            f"cluster {address}: RAY_AUTH_MODE=token needs a token, got none. {token}"
        ) from None
    except (ConnectionError, RuntimeError, ValueError) as error:  # RuntimeError: another version of Ray
        mode = os.environ.get("RAY_AUTH_MODE", "none")
        raise PreflightError(
            f"cluster {address}: Ray must answer and take our token, got {error} (RAY_AUTH_MODE: {mode}). "
            f"See that it is up (`ray status`). {token}"
        ) from None


def _start(**options: Any) -> None:
    """Start Ray here; where its processes are not up in the 30 s that Ray gives them, begin again."""
    for attempts_left in reversed(range(STARTS)):
        before = _children()
        try:
            ray.init(address="local", **options)
            return
        except Exception as error:
            if not attempts_left or TOO_SLOW not in str(error):
                raise _not_started(error) from error
            for process in _children() - before:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ResourceWarning)  # Ray did not wait for those processes
                error.__traceback__ = None
                gc.collect()


def _children() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


def _not_started(error: Exception) -> Exception:
    """Return what to raise when Ray does not start here: a PreflightError where the user can do something.

    Ray raises a plain `Exception` if one of its processes is not up within 30 s.
    """
    if isinstance(error, TypeError | ValueError) or (
        isinstance(error, OSError) and error.errno in DISK_ERRORS
    ):
        return error
    told = next(iter(str(error).splitlines()), type(error).__name__)[:300].rstrip(".")
    return PreflightError(
        f"Ray: must start on this machine, got {told}. Run the command again when the machine is less busy, "
        "and see that memory and /tmp have room. Nothing was trained."
    )


def _reach(address: str) -> None:
    """Raise a PreflightError at once unless something listens at an address; Ray would try for a minute."""
    host, _, port = address.rpartition(":")
    if not re.fullmatch(r"[\w.-]+|\[[0-9a-fA-F:.%]+\]", host) or not port.isdecimal():
        raise PreflightError(
            f"RAY_ADDRESS: must be HOST:PORT of a running Ray, `auto` or `local`, got {address[:80]!r}. "
            "Unset it to run here; `submit --address` takes the address of a dashboard."
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), REACH_SECONDS).close()
    except (OSError, OverflowError, UnicodeError) as error:
        raise PreflightError(
            f"cluster {address}: Ray must answer, got {error}. See that it is up (`ray status`), "
            "or unset RAY_ADDRESS to run here."
        ) from None


def expect(marker: Path, images: Catalog, files: Iterable[str], *, gpu: bool) -> Expected:
    """Collect the facts that every node must share, and write a new marker to the results folder.

    Args:
        marker: path of the marker.
        images: the study's images; a few of them must be readable on every node.
        files: local weight files; a file that is missing here is reported later, by the slot that needs it.
        gpu: whether trials train on GPUs.
    """
    content = secrets.token_hex(16)
    write_text(marker, content)
    # The first and the last image of each split: a copy that was cut short would lack the last one.
    examples = [split[i] for split in images.splits.values() if split for i in {0, len(split) - 1}]
    return Expected(
        facts=_facts(),
        marker=marker,
        content=content,
        reader=images.reader,
        images={example.path: _hash(images.reader, example.path) for example in examples},
        files={file: os.path.getsize(file) for file in files if os.path.isfile(file)},
        gpu=gpu,
    )


def check(expected: Expected, nodes: list[Node]) -> Expected:
    """Check all nodes that are up when a study starts; return `expected` with their ids in `passed`.

    Raises:
        PreflightError: a node differs; the message has a line for each fact of each node that does.
    """
    if len(nodes) > 1:
        answers = [examine(expected, node) for node in nodes]
        ray.wait(answers, num_returns=len(answers), timeout=ANSWER_SECONDS)
        pairs = zip(nodes, answers, strict=True)
        found = [problem for node, answer in pairs for problem in problems(expected, node, answer)]
        if found:
            raise PreflightError("\n".join(found))
    return replace(expected, passed=tuple(node.id for node in nodes))


def examine(expected: Expected, node: Node) -> Any:
    """Start `look` as a task on a node; return the reference to its answer."""
    there = NodeAffinitySchedulingStrategy(node.id, soft=False)
    task = ray.remote(look).options(num_cpus=0, scheduling_strategy=there, max_retries=1)
    return task.remote(expected, node.id, expected.gpu and node.gpus > 0)


def look(expected: Expected, node_id: str, count_gpus: bool) -> dict[str, Any]:
    """Run on a node: return its versions, marker content, image hashes, file sizes and number of GPUs."""
    return {
        "facts": _facts(),
        "marker": _answer(expected.marker, node_id),
        "images": {path: _sample(expected.reader, path) for path in expected.images},
        "files": {file: os.path.getsize(file) if os.path.isfile(file) else None for file in expected.files},
        "gpus": _gpus() if count_gpus else None,
    }


def problems(expected: Expected, node: Node, answer: Any) -> list[str]:
    """Return a line for each problem of a node, with node, fact and fix.

    Args:
        expected: the driver's facts.
        node: the node.
        answer: reference that `examine` returned for the node; one that is not ready counts as no answer.
    """
    try:
        return compare(expected, node, ray.get(answer, timeout=0))
    except GetTimeoutError:
        return [_line(node, f"must answer within {ANSWER_SECONDS:.0f} s", "nothing", "Look at its Ray logs.")]
    except RayError as error:
        reason = str(error).strip().splitlines()[-1]
        fix = "Start its Ray with PYTHONPATH=src, or install the same packages as on the driver's node."
        return [_line(node, "must run the driver's code", reason, fix)]


def compare(expected: Expected, node: Node, found: Mapping[str, Any]) -> list[str]:
    """Return a line for each fact that `look` found on a node and that differs from the driver's."""
    lines = [
        _line(node, f"{name} must be {want} as on the driver's node", found["facts"].get(name), _FIX[name])
        for name, want in expected.facts.items()
        if found["facts"].get(name) != want
    ]
    # A node that reads the marker may yet see a copy of the folder; its answer arrives only in the real one.
    folder = expected.marker.parent
    if found["marker"] != expected.content:
        lines.append(_line(node, f"the results folder {folder} must be shared", found["marker"], _SHARE))
    elif not _answered(expected, node.id):
        lines.append(_line(node, f"what it writes to {folder} must be seen here", "nothing", _SHARE))
    for path, want in expected.images.items():
        if found["images"].get(path) != want:
            got = "another" if found["images"].get(path) else "none"
            fix = "Put the images where every node sees the same ones (data.path)."
            lines.append(_line(node, f"image {path} must be as on the driver's node", got, fix))
    for file, size in expected.files.items():
        if found["files"].get(file) != size:
            fix = "Put it where every node sees it (model.weights)."
            got = found["files"].get(file) or "no file"
            lines.append(_line(node, f"{file} must have {size} bytes as on the driver's node", got, fix))
    if found["gpus"] is not None and found["gpus"] < node.gpus:
        fix = "Check its driver with nvidia-smi, or start its Ray with fewer --num-gpus."
        lines.append(_line(node, f"torch must see the {node.gpus:g} GPU(s) that Ray has", found["gpus"], fix))
    return lines


def _line(node: Node, rule: str, got: object, fix: str) -> str:
    return f"node {node.address} ({node.id[:8]}): {rule}, got {got}. {fix}"


def _facts() -> dict[str, str]:
    versions = {name: _version(name) for name in PACKAGES}
    return {"Python": platform.python_version(), **versions, "code": provenance.code_hash()}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


_SHARE = "Put the results on storage that all nodes mount at the same path: --results /shared/results."
_FIX = {
    "Python": "Use one Python on all nodes.",
    **{name: f"Install the same {name} on all nodes." for name in PACKAGES},
    "code": "Submit the study as a job (`python -m search submit`), or check out the same code everywhere.",
}


def _answer(marker: Path, node_id: str) -> str:
    """Return the marker's content as this node reads it, and write the same content to a file beside it."""
    try:
        content = marker.read_text(encoding="utf-8")
        if marker.parent.is_dir():
            write_text(_answer_file(marker, node_id), content)
        return content
    except OSError as error:
        return f"{type(error).__name__} ({error.strerror})"


def _answered(expected: Expected, node_id: str) -> bool:
    """True if the file that a node wrote beside the marker has arrived; removes it."""
    file = _answer_file(expected.marker, node_id)
    there = file.is_file() and file.read_text(encoding="utf-8") == expected.content
    file.unlink(missing_ok=True)
    return there


def _answer_file(marker: Path, node_id: str) -> Path:
    return marker.with_name(f"{marker.name}.{node_id}")


def _sample(reader: Reader, path: str) -> str | None:
    try:
        return _hash(reader, path)
    except DataError:
        return None


def _hash(reader: Reader, path: str) -> str:
    size, content = reader.sample(path)
    return f"{size} {hashlib.sha256(content).hexdigest()}"


def _gpus() -> int:
    """Return how many GPUs torch sees on this node; a new process counts, as Ray may hide GPUs from tasks."""
    free = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    asked = [sys.executable, "-c", COUNT_GPUS]
    try:
        done = subprocess.run(asked, env=free, capture_output=True, text=True, timeout=GPU_SECONDS)
        return int(done.stdout)
    except (subprocess.SubprocessError, ValueError):
        return 0
