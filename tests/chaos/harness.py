"""One study with its faults: started, hit, resumed until it is finished, and checked."""

import contextlib
import functools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos import checker, processes
from tests.chaos.processes import until

ROOT = Path(__file__).parents[2]
TRIALS, EPOCHS = 8, 4
RUN_SECONDS = 240.0
"""Seconds for one run of a study to end; one that does not is a hang."""
GONE_SECONDS = 90.0
"""Seconds for the processes of a study to be gone after its driver."""
RESUMES = 3
SLOW_DISK = {"CHAOS_WRITE_SECONDS": "0.6"}
"""A round of writing the record takes that long: what is not there yet when the driver dies, is lost."""


@dataclass
class Outcome:
    """What came of one study with its faults."""

    kind: str
    seed: int
    injected: int = 0
    hit: int = 0
    """Faults that met a process or file that was there."""
    codes: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    """For each fault, the seconds until the study went on or its driver had ended."""
    wrong: list[str] = field(default_factory=list)

    def line(self) -> str:
        return json.dumps(asdict(self))


class Study:
    """A study in a folder of its own, whose processes carry a mark.

    Args:
        place: an empty folder.
        tree: the source tree to run.
        trials: number of its trials.
        variables: variables of its environment, see program.py.
    """

    def __init__(
        self, place: Path, tree: Path = ROOT, trials: int = TRIALS, variables: Mapping[str, str] | None = None
    ) -> None:
        self.place, self.tree, self.trials, self.variables = place, tree, trials, dict(variables or {})
        self.mark = uuid.uuid4().hex
        self.results = place / "results"
        self.folder = self.results / "chaos"
        self.log = self.results / "trained.log"
        self.process: subprocess.Popen[str] | None = None
        self.outputs: list[tuple[Path, Path]] = []

    def config(self) -> Path:
        """Write the study's config and return its path."""
        path = self.place / "study.yaml"
        path.write_text(
            json.dumps(
                {
                    "study": {
                        "name": "chaos",
                        "trials": self.trials,
                        "epochs": EPOCHS,
                        "baselines": [],
                        "sampler": "random",
                        "retries": 20,
                        "trial_timeout": "15s",
                    },
                    "data": {
                        "kind": "digits",
                        "classes": ["0", "1"],
                        "image_size": 32,
                        "validation_share": 0.3,
                    },
                    "model": {"backbone": "squeezenet1_1", "weights": "none"},
                    "space": {"strategy": "replace"},
                    "early_stopping": {"enabled": False},
                    "verdict": {"seeds": 0},
                    "resources": {"slots": 2, "cpus_per_worker": 1},
                    "results": str(self.results),
                }
            )
        )
        return path

    def start(self, *words: object) -> None:
        """Start the command line with the made-up workers."""
        number = len(self.outputs)
        out, err = self.place / f"out-{number}", self.place / f"err-{number}"
        self.outputs.append((out, err))
        path = os.pathsep.join([str(self.tree / "src"), str(self.tree)])
        environment = processes.environment(self.mark) | {"PYTHONPATH": path, "RAY_worker_niceness": "0"}
        environment |= self.variables
        environment["RAY_TMPDIR"] = str(self.place)
        with out.open("w") as stdout, err.open("w") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.program", *map(str, words), "--json"],
                cwd=self.tree,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                text=True,
                start_new_session=True,
            )

    def trained(self) -> list[list[str]]:
        """Return the lines of the workers' log, as words."""
        return [line.split() for line in self.log.read_text().splitlines()] if self.log.exists() else []

    def ended(self) -> bool:
        """Return True once the driver has ended."""
        assert self.process is not None
        return self.process.poll() is not None

    def wait(self, seconds: float = RUN_SECONDS) -> int | None:
        """Wait for the end of the driver; return its exit code, or None if it hangs."""
        assert self.process is not None
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def stdout_is_json(self) -> bool:
        """Return True if every run has printed nothing or one JSON value on stdout."""
        for out, _ in self.outputs:
            text = out.read_text()
            try:
                if text:
                    json.loads(text)
            except ValueError:
                return False
        return True

    def said(self) -> str:
        """Return what the last run said on stderr."""
        return self.outputs[-1][1].read_text()


@contextlib.contextmanager
def in_memory(results: Path) -> Iterator[None]:
    """Give the results a file system in memory, which is soon full."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(results)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(results)], check=True)


@contextlib.contextmanager
def on_a_disk(results: Path) -> Iterator[None]:
    """Give the results a disk of their own, a file with ext4 on it."""
    image = results.with_suffix(".img")
    with image.open("wb") as file:
        file.truncate(64 << 20)
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(results)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(results)], check=True)


Mount = Callable[[Path], contextlib.AbstractContextManager[None]]
Inject = Callable[[Study, random.Random], bool]
"""Injects a fault; returns whether it met anything."""


@dataclass(frozen=True)
class Kind:
    """A kind of fault."""

    name: str
    inject: Inject
    codes: frozenset[int] = frozenset({0})
    """Exit codes with which the run that is hit may end."""
    most: int = 1
    """Faults of this kind in one run."""
    runs: int = 1
    """Runs of one study that are hit: the first, and each resume of it."""
    trials: int = TRIALS
    """Trials of the study."""
    says: str = ""
    """Words that the run's last lines must have if its exit code is not 0."""
    anew: int = 0
    """Epochs that one such fault may cost besides one of each slot."""
    spare: int = 4
    """Epochs that are left at least when the fault comes."""
    mounted: Mount | None = None
    """Makes the small file system of its own on which the study lies."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """Variables of the study's environment, see program.py."""


def killing(who: str, number: int = signal.SIGKILL) -> Inject:
    """Return what sends a signal to one process that plays a part."""
    return lambda study, chance: processes.kill(study.mark, who, chance, number) is not None


def to_driver(*numbers: int, group: bool = False, pause: float = 0.0) -> Inject:
    """Return what sends signals to the driver, or to its process group as a terminal does."""

    def inject(study: Study, chance: random.Random) -> bool:
        assert study.process is not None
        if study.ended():
            return False
        for number in numbers:
            (os.killpg if group else os.kill)(study.process.pid, number)
            time.sleep(pause)
        return True

    return inject


def everything(study: Study, chance: random.Random) -> bool:
    """Kill all processes of a study."""
    found = processes.of(study.mark)
    processes.kill_all(study.mark)
    return bool(found)


def paused(who: str, seconds: float) -> Inject:
    """Return what stops a process for some seconds."""

    def inject(study: Study, chance: random.Random) -> bool:
        pid = processes.kill(study.mark, who, chance, signal.SIGSTOP)
        if pid is None:
            return False
        time.sleep(seconds)
        os.kill(pid, signal.SIGCONT)
        return True

    return inject


def damaged(which: str) -> Inject:
    """Return what kills everything and damages files at a random place: checkpoints or the record's log."""

    def inject(study: Study, chance: random.Random) -> bool:
        everything(study, chance)
        study.wait()
        found = sorted(study.folder.glob(which))
        for path in found:
            content = bytearray(path.read_bytes())
            if not content:
                continue
            how = chance.choice(["cut", "flip", "blank", "empty"])
            at = chance.randrange(len(content))
            if how == "cut":
                content = content[:at]
            elif how == "flip":
                content[at] ^= 1 << chance.randrange(8)
            elif how == "blank":
                content[at : at + 64] = bytes(len(content[at : at + 64]))
            else:
                content = bytearray()
            path.write_bytes(content)
        return bool(found)

    return inject


def second_run(study: Study, chance: random.Random) -> bool:
    """Resume a study that runs: it is refused in one line, and nothing changes."""
    other = Study(study.place, study.tree)
    other.mark, other.outputs = study.mark, [*study.outputs, study.outputs[0]]
    other.start("resume", study.folder)
    code, said = other.wait(), other.said()
    study.outputs.append(other.outputs.pop())
    return code == 2 and "one process at a time" in said and not study.ended()


def full_disk(study: Study, chance: random.Random) -> bool:
    """Fill the disk of the results until the driver has ended, then free it."""
    ballast = study.results / "ballast"
    try:
        with ballast.open("wb", buffering=0) as file:
            while file.write(bytes(4096)) == 4096:
                pass
    except OSError:
        pass
    until(study.ended, RUN_SECONDS)
    ballast.unlink()
    return True


def read_only_disk(study: Study, chance: random.Random) -> bool:
    """Let the kernel find an error on the disk, after which nothing can be written; then repair the disk."""
    subprocess.run(["mount", "-o", "remount,abort", str(study.results)], check=True)
    until(study.ended, RUN_SECONDS)
    until(lambda: not processes.of(study.mark), GONE_SECONDS, 0.2)
    subprocess.run(["umount", str(study.results)], check=True)
    image = study.results.with_suffix(".img")
    # Exit code 1 says that errors were corrected.
    assert subprocess.run(["fsck.ext4", "-y", str(image)], capture_output=True).returncode in (0, 1)
    subprocess.run(["mount", "-o", "loop", str(image), str(study.results)], check=True)
    return True


RESUME = "resume"
STOPS = frozenset({130})
LOST = frozenset({0, 1, 130})
KILLED = frozenset({-9})
ending = functools.partial(Kind, runs=5, trials=24)
"""Makes a kind of fault that ends the driver: each resume of a study is hit, too."""
KINDS = {
    kind.name: kind
    for kind in (
        Kind("worker", killing("worker"), most=8, trials=24),
        Kind("worker stopped 3 s", paused("worker", 3.0), most=5, trials=16),
        Kind("worker stopped for good", killing("worker", signal.SIGSTOP), most=2, trials=12),
        Kind("Train controller", killing("controller"), most=5, trials=24),
        Kind("Tune process", killing("tune"), most=8, trials=24),
        ending("exchange", killing("exchange"), LOST, says=RESUME),
        ending("supervisor", killing("supervisor"), LOST, says=RESUME),
        ending("raylet", killing("raylet"), LOST, says=RESUME),
        ending("GCS", killing("gcs"), LOST, says=RESUME),
        ending("driver", to_driver(signal.SIGKILL), KILLED),
        ending("driver, slow disk", to_driver(signal.SIGKILL), KILLED, variables=SLOW_DISK),
        ending("everything", everything, KILLED),
        ending("SIGINT", to_driver(signal.SIGINT), STOPS, says=RESUME),
        ending("SIGINT twice", to_driver(signal.SIGINT, signal.SIGINT, pause=0.5), STOPS, says=RESUME),
        ending("SIGTERM", to_driver(signal.SIGTERM), STOPS, says=RESUME),
        ending("SIGHUP to the terminal", to_driver(signal.SIGHUP, group=True), STOPS),
        ending("checkpoint damaged", damaged("trials/*/last.safetensors"), KILLED, anew=2 * EPOCHS),
        Kind("resume of a running study", second_run, variables={"CHAOS_EPOCH_SECONDS": "3"}, spare=16),
        ending("results full", full_disk, frozenset({1}), says=RESUME, mounted=in_memory),
        ending("results read-only", read_only_disk, frozenset({1}), says=RESUME, mounted=on_a_disk),
    )
}


def run(kind: Kind, seed: int, tree: Path = ROOT) -> Outcome:
    """Run one study with faults of a kind, resume it until it is finished, and check it."""
    with tempfile.TemporaryDirectory(prefix="c", dir="/tmp", ignore_cleanup_errors=True) as name:
        study = Study(Path(name), tree, trials=kind.trials, variables=kind.variables)
        study.results.mkdir()
        with kind.mounted(study.results) if kind.mounted else contextlib.nullcontext():
            try:
                return _run(study, kind, seed)
            finally:
                processes.kill_all(study.mark)


def _run(study: Study, kind: Kind, seed: int) -> Outcome:
    chance, outcome = random.Random(f"{kind.name} {seed}"), Outcome(kind.name, seed)
    code: int | None = None
    for run in range(kind.runs + RESUMES):
        study.start(*(["resume", study.folder] if study.folder.exists() else ["run", study.config()]))
        before = outcome.hit
        if run < kind.runs:
            _inject(study, kind, chance, outcome, kind.runs - run)
        code = study.wait()
        outcome.codes.append(999 if code is None else code)
        if run < kind.runs:
            outcome.wrong += _of_end(study, kind, code, outcome.hit - before)
        if code == 0:
            break
    if code != 0:
        outcome.wrong.append(f"not finished after {RESUMES} resumes: {study.said()[-1000:]}")
    if not study.stdout_is_json():
        outcome.wrong.append("stdout with --json is not JSON only")
    if until(lambda: not processes.of(study.mark), GONE_SECONDS, 0.2) is None:
        left = [" ".join(process.cmdline())[:80] for process in processes.of(study.mark)]
        outcome.wrong.append(f"processes are left: {left}")
    try:
        outcome.wrong += checker.problems(
            study.folder,
            planned=study.trials,
            epochs=EPOCHS,
            hits=outcome.hit,
            anew=kind.anew * outcome.hit,
        )
    except Exception as error:
        outcome.wrong.append(f"the study's files cannot be read: {error!r}")
    return outcome


def _of_end(study: Study, kind: Kind, code: int | None, hit: int) -> list[str]:
    """Return what is wrong with the end of the run that was hit."""
    wrong = []
    if code is None:
        wrong.append(f"the run has not ended after {RUN_SECONDS:.0f} s: {study.said()[-500:]}")
        processes.kill_all(study.mark)
        study.wait()
    elif code not in kind.codes and not (code == 0 and hit == 0):
        wrong.append(f"exit code {code}: {study.said()[-1000:]}")
    if code not in (0, None) and kind.says not in "".join(study.said().splitlines()[-1:]):
        wrong.append(f"the last line says nothing of {kind.says}: {study.said()[-1000:]}")
    if "Traceback" in study.said():
        wrong.append(f"a traceback: {study.said()[-1500:]}")
    return wrong


def _inject(study: Study, kind: Kind, chance: random.Random, outcome: Outcome, runs: int) -> None:
    """Inject the faults of one run, each after some more epochs have been trained.

    Args:
        study: the study.
        kind: the kind of its faults.
        chance: chooses when.
        outcome: what has come of it so far.
        runs: runs that are still to be hit, this one included.
    """
    done = len(study.trained())
    room = (study.trials * EPOCHS - kind.spare - done) // runs
    if room <= kind.most:
        return
    after = sorted(chance.sample(range(done + 1, done + room), kind.most))
    for epochs in after:
        reached = until(lambda wanted=epochs: len(study.trained()) >= wanted or study.ended(), RUN_SECONDS)
        if reached is None or study.ended():
            return
        time.sleep(chance.random() * 0.15)
        outcome.injected += 1
        before, began = len(study.trained()), time.monotonic()
        if not kind.inject(study, chance):
            continue
        outcome.hit += 1
        slots = 2 if kind.codes == {0} else 10**9  # it goes on, or it ends
        until(lambda known=before, more=slots: study.ended() or len(study.trained()) >= known + more, 120)
        outcome.seconds.append(round(time.monotonic() - began, 2))


def copied_tree(to: Path) -> Path:
    """Copy the source tree, for a bug to be planted in it."""
    for name in ("search", "src", "tests"):
        shutil.copytree(ROOT / name, to / name, ignore=shutil.ignore_patterns("__pycache__"))
    return to


def facts_of(outcomes: list[Outcome]) -> dict[str, Any]:
    """Return the sums of outcomes of one kind."""
    return {
        "injected": sum(one.injected for one in outcomes),
        "hit": sum(one.hit for one in outcomes),
        "lost": sum(one.hit for one in outcomes if one.wrong),
        "seconds": sorted(s for one in outcomes for s in one.seconds),
    }
