"""The seconds of each long test, by which tests/conftest.py puts the longest files first.

Written again after tests have become much longer or shorter, from a report of a whole run:

    python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --thorough --lab --junitxml=report.xml
    python -m tests.durations report.xml
"""

import json
import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

FILE = Path(__file__).with_name("durations.json")
LEAST_SECONDS = 2.0
"""Tests that take less are not in the file."""
OTHERS_SECONDS = 0.1
"""What a test takes that is not in the file."""


def read() -> dict[str, float]:
    """Return the seconds of the tests in the file, by `FILE::NAME`; cases of one test are added up."""
    found: dict[str, float] = json.loads(FILE.read_text(encoding="utf-8"))
    return found


def of_report(report: Path) -> dict[str, float]:
    """Return the seconds of the long tests of a JUnit report, as pytest writes one."""
    seconds: Counter[str] = Counter()
    for case in ElementTree.parse(report).iter("testcase"):
        folder, *rest = case.attrib["classname"].split(".")
        name = case.attrib["name"].partition("[")[0]
        file, *classes = rest
        seconds["::".join([f"{folder}/{file}.py", *classes, name])] += float(case.attrib["time"])
    return {name: round(sum_, 1) for name, sum_ in sorted(seconds.items()) if sum_ >= LEAST_SECONDS}


if __name__ == "__main__":
    FILE.write_text(json.dumps(of_report(Path(sys.argv[1])), indent=0) + "\n", encoding="utf-8")
