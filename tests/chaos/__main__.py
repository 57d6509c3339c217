"""Inject faults, one study after another: `python -m tests.chaos --minutes 5 [--kinds worker driver]`."""

import argparse
import time
from pathlib import Path

from tests.chaos import harness


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kinds", nargs="*", default=list(harness.KINDS), choices=list(harness.KINDS))
    parser.add_argument("--minutes", type=float, default=60.0, help="begin no study after that")
    parser.add_argument("--rounds", type=int, default=10**6, help="studies of each kind")
    parser.add_argument("--seed", type=int, default=0, help="of the first round")
    parser.add_argument("--outcomes", type=Path, default=Path("chaos.jsonl"), help="file to add outcomes to")
    given = parser.parse_args()
    end, wrong = time.monotonic() + 60 * given.minutes, 0
    for seed in range(given.seed, given.seed + given.rounds):
        for name in given.kinds:
            if time.monotonic() > end:
                return int(wrong > 0)
            began = time.monotonic()
            outcome = harness.run(harness.KINDS[name], seed)
            with given.outcomes.open("a") as file:
                file.write(outcome.line() + "\n")
            wrong += bool(outcome.wrong)
            took = time.monotonic() - began
            told = f"{outcome.hit} of {outcome.injected} hit, codes {outcome.codes}, {took:.0f} s"
            print(f"{name} {seed}: {told} {outcome.wrong or ''}", flush=True)
    return int(wrong > 0)


if __name__ == "__main__":
    raise SystemExit(main())
