"""Record trials of the product's own space on real images, for replays and for the portfolio.

    python -m benchmarks.search_efficiency.own_space plan MATERIAL JOBS [--configs 100]
    python -m benchmarks.search_efficiency.own_space train MATERIAL JOBS RESULTS [--seconds 300]

`plan` draws settings at random from the default space and writes one job for each of them and each task;
all tasks share their settings, as far as their backbones have the blocks. `train` needs `finetune` alone, so
a machine with a GPU does it without Ray; what a time limit cuts off is missing evenly from all tasks.
MATERIAL is a folder with `data/` and `weights/`. Both files hold one JSON object per line; a result has

    task, number   which settings on which task
    values         the settings by the names of the search space, shares of blocks as fractions
    scores         validation scores after each epoch: a list of dicts
    seconds        of the whole trial
    facts          images, classes and validation images of the task
"""

import argparse
import json
import multiprocessing
import queue
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from finetune.messages import Epoch, Keep, Message
from finetune.settings import FeatureSettings, TrialSettings
from finetune.training import loop
from finetune.training.run import Run
from finetune.training.workers import World

ROOT = "@MATERIAL@"
"""Stands for the folder MATERIAL in a job."""
EPOCHS = 8
ORDER = ("fuse", "replace", "fuse", "load", "fuse")
"""Strategies of the settings, over and over: most of what there is to search lies in `fuse`."""
TASKS: dict[str, tuple[str, dict[str, Any]]] = {
    "flowers": ("mobilenet_v2", {"path": "flowers5"}),
    "trash": ("mobilenet_v2", {"path": "trashnet_lt"}),
    "flowers-squeezenet": ("squeezenet1_0", {"path": "flowers5"}),
    "trash-squeezenet": ("squeezenet1_0", {"path": "trashnet_lt"}),
    "emoji": ("mobilenet_v2", {"kind": "manifest", "path": "twemoji/manifest.csv", "image_size": 64}),
    "emoji-squeezenet": (
        "squeezenet1_0",
        {"kind": "manifest", "path": "twemoji/manifest.csv", "image_size": 64},
    ),
    "rose-tulip": ("mobilenet_v2", {"path": "flowers5", "classes": ["rose", "tulip"]}),
    "glass-metal-plastic": (
        "squeezenet1_0",
        {"path": "trashnet_lt", "classes": ["glass", "metal", "plastic"]},
    ),
    "digits": ("mobilenet_v2", {"kind": "digits", "image_size": 64, "validation_share": 0.5}),
    "digits-squeezenet": ("squeezenet1_0", {"kind": "digits", "image_size": 64, "validation_share": 0.5}),
}
"""Task -> backbone, and keys of its section `data`."""


def plan(material: Path, configs: int) -> Iterator[dict[str, Any]]:
    """Yield the jobs, each setting on all tasks before the next one."""
    import optuna

    from search.config import config_file
    from search.suggest.space import Space

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    spaces = {}
    with tempfile.TemporaryDirectory() as folder:
        for task, (backbone, data) in TASKS.items():
            written: dict[str, Any] = {
                "study": {"name": task, "trials": configs, "epochs": EPOCHS},
                "data": {"image_size": 128, **data},
                "model": {"backbone": backbone, "weights": str(material / f"weights/{backbone}.pth")},
                "space": {"head_init": {"replace": "random", "load": "random", "fuse": ["random", "exact"]}},
                "results": folder,
            }
            if "path" in data:
                written["data"] |= {"path": str(material / "data" / data["path"])}
            file = Path(folder) / f"{task}.yaml"
            file.write_text(json.dumps(written))
            spaces[task] = Space(config_file.load(file))
    studies = {task: optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)) for task in spaces}
    turns = [ORDER[turn % len(ORDER)] for turn in range(configs)]
    for number, strategy in enumerate(turns):
        for task, space in spaces.items():
            while (values := space.suggest(studies[task].ask()))["strategy"] != strategy:
                pass
            settings = space.settings(values, number=number, cache_dir=f"{ROOT}/cache").to_dict()
            moved = json.dumps(settings).replace(str(material), ROOT)
            yield {"task": task, "number": number, "values": values, "settings": json.loads(moved)}


def train(job: dict[str, Any], material: Path, device: torch.device, scratch: Path) -> dict[str, Any]:
    """Train a job's trial and return its result."""
    settings = _settings(job, material)
    folder = scratch / f"{job['task']}-{job['number']}"
    folder.mkdir()
    store = FeatureSettings(folder=str(scratch / "features"), budget_bytes=2**34, trials=100)
    said: list[Message] = []
    began = time.perf_counter()
    loop.train(
        settings,
        keep=Keep(metric="val/accuracy", best=folder / "best", last=folder / "last"),
        report=said.append,
        world=World(device=device),
        features=store,
    )
    seconds = time.perf_counter() - began
    for file in folder.iterdir():
        file.unlink()
    epochs = [message.metrics for message in said if isinstance(message, Epoch)]
    kept = ("val/accuracy", "val/balanced_accuracy", "val/loss")
    return {
        "frozen_layers": settings.frozen_layers,
        "scores": [{name: round(epoch[name], 5) for name in kept} for epoch in epochs],
        "seconds": round(seconds, 3),
    }


def _settings(job: dict[str, Any], material: Path) -> TrialSettings:
    text = json.dumps(job["settings"]).replace(ROOT, str(material))
    return TrialSettings.from_dict(json.loads(text))


def work(jobs: Sequence[dict[str, Any]], results: Any, material: Path, scratch: Path, ends: float) -> None:
    """Train the jobs of one task until they are done, or the time is over."""
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    torch.set_num_threads(1)
    settings = _settings(jobs[0], material)
    data = Run(settings, World(device=device)).data
    facts = {"images": data.size("train"), "val_images": data.size("val"), "classes": len(data.classes)}
    for job in jobs:
        if time.time() > ends:
            return
        known = {"task": job["task"], "number": job["number"], "facts": facts, "values": job["values"]}
        try:
            results.put(known | train(job, material, device, scratch))
        except Exception as error:
            traceback.print_exc()
            results.put(known | {"error": f"{type(error).__name__}: {str(error)[:200]}"})


def train_all(material: Path, jobs: Path, results: Path, seconds: float) -> None:
    """Train the jobs of a file, each task in a process of its own, and write what comes of them."""
    ends = time.time() + seconds
    spawn = multiprocessing.get_context("spawn")
    done = spawn.Queue()
    by_task: dict[str, list[dict[str, Any]]] = {}
    for line in jobs.read_text().splitlines():
        job = json.loads(line)
        by_task.setdefault(job["task"], []).append(job)
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch, results.open("w") as file:
        group = [
            spawn.Process(target=work, args=(own, done, material, Path(scratch), ends), daemon=True)
            for own in by_task.values()
        ]
        for one in group:
            one.start()
        while time.time() < ends + 5:
            try:
                found = done.get(timeout=1)
            except queue.Empty:
                if not any(one.is_alive() for one in group):
                    break
                continue
            counts[found["task"] if "error" not in found else "failed"] += 1
            file.write(json.dumps(found) + "\n")
            file.flush()
        for one in group:
            one.kill()
    print(f"trials: {dict(counts)}", flush=True)


def main() -> None:
    """Write jobs or train them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("plan", "train"))
    parser.add_argument("material", type=Path)
    parser.add_argument("jobs", type=Path)
    parser.add_argument("results", type=Path, nargs="?")
    parser.add_argument("--configs", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=300)
    asked = parser.parse_args()
    material = asked.material.resolve()
    if asked.what == "plan":
        asked.jobs.write_text("".join(json.dumps(job) + "\n" for job in plan(material, asked.configs)))
    else:
        train_all(material, asked.jobs, asked.results, asked.seconds)


if __name__ == "__main__":
    main()
