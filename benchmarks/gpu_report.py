"""Enter what `benchmarks.gpu` found into `benchmarks/RESULTS.md`.

    python -m benchmarks.gpu_report FILE [FILE ...] [--print]

Each FILE is what `--out` wrote; of a part that several have, the last one counts.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import __main__ as results

LEFT_OUT = ("state", "seconds", "by_family")


def main() -> int:
    """Enter the section, or print it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--print", action="store_true", dest="prints", help="write nothing")
    options = parser.parse_args()
    found: dict[str, Any] = {}
    for file in options.files:
        ran = {part: values for part, values in json.loads(file.read_text()).items() if _has_run(values)}
        found |= ran
    text = rendered(found)
    if options.prints:
        print(text)
    else:
        parts = ",".join(part for part in found if part != "setup")
        results.enter("gpu", ["python", "-m", "benchmarks.gpu", "--only", parts], text)
    return 0


def rendered(found: Mapping[str, Any]) -> str:
    """Return the device and, part by part, every number, a line for each model or way."""
    setup = found.get("setup", {})
    facts = ("torch", "torchvision", "cudnn", "cpus", "python")
    lines = [f"{setup.get('device', '?')}; " + ", ".join(f"{name} {setup.get(name, '?')}" for name in facts)]
    for part, values in found.items():
        if part == "setup":
            continue
        lines.append(f"{part}: {values['state']}, {values.get('seconds', 0):.1f} s")
        rows = {name: value for name, value in values.items() if name not in LEFT_OUT}
        alone = {name: value for name, value in rows.items() if not isinstance(value, Mapping)}
        nested = {name: value for name, value in rows.items() if isinstance(value, Mapping)}
        lines += [f"    {_line(row)}" for row in ([alone] if alone else [])]
        lines += [f"    {name}: {_line(row)}" for name, row in nested.items()]
    return "\n".join(lines)


def _has_run(values: Any) -> bool:
    return isinstance(values, Mapping) and values.get("state") not in ("not run", "running")


def _line(row: Mapping[str, Any]) -> str:
    return "  ".join(f"{name} {_short(value)}" for name, value in row.items())


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return "(" + _line(value) + ")"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
