"""Run every benchmark and write what they print to `benchmarks/RESULTS.md`.

    python -m benchmarks [--quick | --rounds R] [--only NAME ...] [--images DIR --weights FILE]

Each runs as a command of its own, one after another. A benchmark that is not run keeps its section.
"""

import argparse
import datetime
import os
import platform
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from benchmarks import report

RESULTS = Path(__file__).with_name("RESULTS.md")
WITHOUT_IMAGES = ("trial_overhead", "scale", "layouts")
WITH_IMAGES = (
    *("head_search", "augmented_search", "mixed_search"),
    *("same_answer", "extraction", "second_search"),
)
BY_HAND = ("gpu",)
"""Entered on another machine's results (benchmarks/gpu_report.py)."""
PACKAGES = ("ray", "torch", "torchvision", "optuna")


def main() -> int:
    """Run what was asked for; return 1 if a benchmark failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="each under 10 minutes on 2 cores")
    parser.add_argument("--only", nargs="+", choices=(*WITHOUT_IMAGES, *WITH_IMAGES), metavar="NAME")
    parser.add_argument("--images", type=Path, help="folder with train and val; left out: digits")
    parser.add_argument("--weights", type=Path, help="mobilenet_v2's weights, to go with --images")
    parser.add_argument("--rounds", type=int, help="repetitions of those with images")
    options = parser.parse_args()
    failed = False
    for name in options.only or (*WITHOUT_IMAGES, *WITH_IMAGES):
        arguments = ["--quick"] if options.quick else []
        if name in WITH_IMAGES and options.images:
            arguments += ["--images", str(options.images), "--weights", str(options.weights)]
        if name in WITH_IMAGES and options.rounds:
            arguments += ["--rounds", str(options.rounds)]
        print(f"{name}: load {report.load()}", flush=True)
        command = [sys.executable, "-m", f"benchmarks.{name}", *arguments]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        output = "".join(line for line in done.stdout.splitlines(keepends=True) if "(raylet)" not in line)
        print(output, flush=True)
        if done.returncode:
            failed = True
        else:
            enter(name, ["python", *command[1:]], output)
    return int(failed)


def enter(name: str, command: list[str], output: str) -> None:
    """Put a benchmark's output into its section of the results, under the command that gave it."""
    shown = " ".join(word if not Path(word).is_dir() else "DIR" for word in command)
    shown = re.sub(r"--weights \S+", "--weights FILE", shown)
    today = datetime.datetime.now().astimezone().date()
    section = f"## {name}\n\n{today}, `{shown}`\n\n```text\n{output.strip()}\n```\n"
    sections = _sections()
    sections[name] = section
    order = [*WITHOUT_IMAGES, *WITH_IMAGES, *BY_HAND]
    text = _head() + "\n" + "\n".join(sections[n] for n in order if n in sections)
    RESULTS.write_text(text, encoding="utf-8")


def _sections() -> dict[str, str]:
    if not RESULTS.exists():
        return {}
    parts = re.split(r"(?m)^(?=## )", RESULTS.read_text(encoding="utf-8"))[1:]
    return {part.split()[1]: part.rstrip() + "\n" for part in parts}


def _head() -> str:
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    return (
        "# Benchmarks\n\n"
        "Written by `make bench`, section by section; what each one compares stands in its module. Seconds\n"
        "are this machine's; ratios were measured side by side in one run.\n\n"
        f"{machine}; {packages}.\n"
    )


if __name__ == "__main__":
    sys.exit(main())
