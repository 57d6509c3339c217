"""On one GPU: is training right there, and is it fast.

    python -m benchmarks.gpu [--images DIR --weights FILE] [--quick] [--only PART ...] [--out FILE]

right.*  frozen blocks, features against the CPU's, bfloat16 against float32, repetition, replayed steps, too
         little memory, two processes, what waits for the device
fast.*   steps of training against a plain loop as torchvision's and timm's scripts have it, extraction of
         features against a bare forward pass, decoding, heads side by side, heads in closed form

Needs `finetune` alone: no Ray, no network. Images and weights are made where none are given; the weights are
mobilenet_v2's. Each part has its own time limit; one that fails, hangs or spoils the GPU for its process
leaves the others as they are. `--quick` is small enough for a CPU. The last line is JSON; `--out` gets the
same, part by part.
"""

import argparse
import gc
import json
import os
import platform
import queue
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path
from typing import Any

import torch
import torchvision

from benchmarks import report
from benchmarks.gpu_setup import Setup, say

SECONDS = {
    **{"right.frozen": 40, "right.features": 60, "right.precision": 60, "right.seed": 60},
    **{
        "right.graphs": 40,
        "right.memory": 40,
        "right.syncs": 40,
        **{"right.models": 40, "right.exact": 40, "right.samples": 60},
        "right.processes": 60,
        "right.families": 90,
    },
    **{"fast.heads": 60, "fast.exact": 60, "fast.steps": 120, "fast.small": 60},
    **{"fast.extraction": 90, "fast.pipeline": 60, "fast.compiled": 100, "fast.cold": 90},
}
"""Part -> seconds after which it is given up."""
ON_CPU = 5
"""Times as many on a CPU, which may have other work."""
ASKED_FOR = ("right.families", "fast.compiled")
"""Parts that run only by name."""
SPOILT = 3
"""Exit status of a process whose GPU no longer answers."""


def main() -> int:
    """Run the parts that were asked for; return 1 if one failed."""
    options = _options()
    usual = [part for part in SECONDS if part not in ASKED_FOR]
    parts = options.only.split(",") if options.only else usual
    if unknown := [part for part in parts if part not in SECONDS]:
        print(f"--only: must name parts, got {unknown}. Known: {', '.join(SECONDS)}.", file=sys.stderr)
        return 2
    if options.child:
        return _run_parts(parts, options)
    found = _supervise(parts, options)
    rows = [[part, found[part].get("state", "?"), f"{found[part].get('seconds', 0):.1f}"] for part in parts]
    report.table(["part", "", "seconds"], rows)
    _write(options.out, found)
    report.last_line({"device": device_name(), "torch": torch.__version__, "load": report.load(), **found})
    return int(any(found[part]["state"] != "ok" for part in parts))


def device_name() -> str:
    """Return what the parts run on."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, help="folder with train and val")
    parser.add_argument("--weights", type=Path, help="mobilenet_v2's, to go with --images")
    parser.add_argument("--quick", action="store_true", help="small enough for a CPU")
    parser.add_argument("--only", help="parts, with commas between them")
    parser.add_argument("--out", type=Path, help="file for the results")
    parser.add_argument("--seconds", type=float, default=600, help="for all parts together")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def _supervise(parts: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """Run parts in a process, in another one behind a part that took the first with it."""
    ends = time.monotonic() + options.seconds
    found: dict[str, Any] = {}
    todo = list(parts)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "results"
        while todo and time.monotonic() < ends:
            command = [sys.executable, "-u", "-m", "benchmarks.gpu", "--only", ",".join(todo)]
            command += [word for name in ("images", "weights") for word in _given(name, options)]
            command += ["--child", str(log), *(["--quick"] if options.quick else [])]
            _watch(command, todo, log, ends)
            found |= _read(log)
            _write(options.out, found)
            left = [part for part in todo if found.get(part, {}).get("state", "running") == "running"]
            if left and left[0] in found:  # it took the process with it
                found[left[0]]["state"] = "killed"
                _append(log, left[0], found[left[0]])
                left = left[1:]
            elif left == todo:
                break  # not even one began
            todo = left
    return {part: found.get(part, {"state": "not run"}) for part in parts} | {"setup": found.get("setup", {})}


def _given(name: str, options: argparse.Namespace) -> list[str]:
    value = getattr(options, name)
    return [f"--{name}", str(value)] if value else []


def _watch(command: list[str], parts: list[str], log: Path, ends: float) -> None:
    """Pass on what a process says; kill it where a part goes past its time."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    lines: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    slow = 1 if torch.cuda.is_available() else ON_CPU
    limit = min(ends, time.monotonic() + 120 * slow)  # until the first part begins
    while True:
        try:
            line = lines.get(timeout=max(0.1, limit - time.monotonic()))
        except queue.Empty:
            say(f"## given up, {len(parts)} parts asked for")
            os.killpg(process.pid, 9)
            break
        if line is None:
            break
        say(line.rstrip("\n"))
        if line.startswith("## begin "):
            limit = min(ends, time.monotonic() + SECONDS[line.split()[2]] * slow)
    process.wait()


def _run_parts(parts: list[str], options: argparse.Namespace) -> int:
    """Run parts in this process, each on its own."""
    from benchmarks import gpu_fast, gpu_right

    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    kinds: dict[str, dict[str, Any]] = {"right": gpu_right.PARTS, "fast": gpu_fast.PARTS}
    if device.type == "cpu":
        torch.set_num_threads(1)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        setup = Setup(device, options.quick, options.images, options.weights, Path(scratch))
        setup.photos()
        _append(options.child, "setup", _facts() | {"seconds": time.perf_counter() - began})
        say(f"{device_name()}, torch {torch.__version__}, images made in {time.perf_counter() - began:.1f} s")
        for part in parts:
            say(f"## begin {part}")
            _append(options.child, part, {"state": "running"})
            began = time.perf_counter()
            kind, _, name = part.partition(".")
            try:
                found = kinds[kind][name](setup)
                found = {"state": "ok" if found.pop("ok") else "not ok"} | found
            except Exception as error:
                traceback.print_exc(file=sys.stdout)
                found = {"state": "failed", "error": f"{type(error).__name__}: {str(error)[:300]}"}
            found["seconds"] = time.perf_counter() - began
            _append(options.child, part, found)
            say(f"## end {part}: {found['state']}, {found['seconds']:.1f} s")
            if found["state"] == "failed" and not _answers(device):
                say("## the GPU no longer answers this process")
                return SPOILT
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()
    return 0


def _answers(device: torch.device) -> bool:
    try:
        return bool(torch.ones(1, device=device).item() == 1)
    except RuntimeError:
        return False


def _facts() -> dict[str, Any]:
    return {
        "device": device_name(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torchvision": torchvision.__version__,
        "cudnn": torch.backends.cudnn.version() if torch.cuda.is_available() else None,
        "cpus": os.cpu_count(),
    }


def _append(log: Path, part: str, found: dict[str, Any]) -> None:
    with log.open("a") as file:
        file.write(json.dumps([part, found]) + "\n")


def _read(log: Path) -> dict[str, Any]:
    """Return the last that is known of each part."""
    return dict(json.loads(line) for line in log.read_text().splitlines()) if log.exists() else {}


def _write(out: Path | None, found: dict[str, Any]) -> None:
    if out is not None:
        out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
