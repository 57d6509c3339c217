"""Provenance of a study: the code, data, seed and package versions with which it ran."""

import hashlib
import importlib.metadata
import os
import platform
import subprocess
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import finetune
from search.errors import StudyError

if TYPE_CHECKING:
    from finetune.datasets.catalog import Catalog

ROOT = Path(__file__).parents[1]
"""The root of the checkout, or the folder of installed packages."""
COMMIT_VARIABLE = "SEARCH_COMMIT"
"""Environment variable with the commit that was submitted, for a job, which has no checkout."""
JOB_VARIABLE = "SEARCH_JOB"
"""Environment variable with a job's submission id."""
FOLDER_LINE = "study: "
"""Start of the line in which a job's driver prints its results folder, for commands on a laptop to find."""
PACKAGES = ("ray", "optuna", "torch", "torchvision", "tensorboard", "pydantic")


def check_code() -> None:
    """Check that the `finetune` in use is the one beside this `search`.

    Raises:
        StudyError: it is another copy, such as an older one that is installed on this node.
    """
    used, beside = Path(finetune.__file__).parent.resolve(), code_folders()["src/finetune"].resolve()
    if used != beside:
        raise StudyError(
            f"finetune: must be the copy beside search ({beside}), got {used}. "
            "Set PYTHONPATH=src, or uninstall the other copy."
        )


def code_folders(root: Path = ROOT) -> dict[str, Path]:
    """Return the folders of `search` and `finetune` by their paths in a checkout.

    `root` is the root of a checkout or a folder of installed packages.
    """
    beside = root / "src" / "finetune"
    return {
        "search": root / "search",
        "src/finetune": beside if beside.is_dir() else root / "finetune",
    }


def code_files(root: Path = ROOT) -> dict[str, Path]:
    """Return the files of `search` and `finetune` by their paths in a checkout.

    Files that Python and tools leave there are skipped, so that a checkout and its wheel have the same files.
    """
    found = {
        f"{name}/{path.relative_to(folder).as_posix()}": path
        for name, folder in code_folders(root).items()
        for path in folder.rglob("*")
        if path.is_file() and not any(_is_left_over(part) for part in path.relative_to(folder).parts)
    }
    return dict(sorted(found.items()))


def _is_left_over(part: str) -> bool:
    return part.startswith(".") or part == "__pycache__" or part.endswith((".egg-info", ".pyc"))


def code_hash() -> str:
    """Return a hash of every source file of `search` and `finetune`, the same on every node."""
    digest = hashlib.sha256()
    for name, path in code_files().items():
        digest.update(name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def collect(*, seed: int, data_fingerprint: str) -> dict[str, Any]:
    """Return the facts that must be equal for two runs of a study to give the same results.

    The submission id of the job is among them, though it changes no result.
    """
    return {
        "code": code_hash(),
        "commit": commit(),
        "job": os.environ.get(JOB_VARIABLE),
        "data_fingerprint": data_fingerprint,
        "seed": seed,
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def of_study(seed: int, images: "Catalog", slots: dict[str, Any]) -> dict[str, Any]:
    """Return the provenance of a run of a study.

    Args:
        seed: the study's seed.
        images: its images.
        slots: facts of each slot that is up, by name.
    """
    known = collect(seed=seed, data_fingerprint=images.fingerprint)
    counts = {split: len(images.splits[split]) for split in images.splits}
    skipped = [{"path": image.path, "reason": image.reason} for image in images.skipped]
    told: dict[str, Any] = {"images": counts, "chance": chance(images), "excluded": len(images.excluded)}
    return known | told | {"classes": list(images.classes), "skipped": skipped, "slots": slots}


def chance(images: "Catalog") -> dict[str, float]:
    """Return the scores on the validation images of a model that does not look at them, by metric."""
    sizes = Counter(image.label for image in images.splits["val"])
    if not sizes:
        return {}
    most = max(sizes.values()) / sizes.total()
    return {"val/accuracy": most, "val/balanced_accuracy": 1 / len(sizes)}


def commit() -> str | None:
    """Return the checkout's commit, with `+changes` if files differ from it; None outside a checkout."""
    if submitted := os.environ.get(COMMIT_VARIABLE):
        return submitted
    if not (ROOT / "src" / "finetune").is_dir():  # installed: a checkout around it would be another project's
        return None
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        return head + ("+changes" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*words: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()
