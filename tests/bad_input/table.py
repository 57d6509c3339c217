"""All cases by name, and what the command line says to each."""

import contextlib
import io
import os
import re
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import typer
from PIL import Image

from finetune import model_folder, safe_text
from finetune.errors import clipped
from search.__main__ import app, guarded
from search.config import config_file
from tests import models, written
from tests.bad_input import contents, places
from tests.bad_input.contents import Words

SECONDS = 60
"""Seconds for a case; the command line is to answer in less than one."""
MADE = ("missing", "a_folder", "escapes", "not_utf8", "nothing", "long_path")
SLOW = {
    *(("check --suspects", name) for name in ("text", "empty", "binary", "dangling_link", "circle")),
    *(("logs --cluster", name) for name in ("text", "empty", "binary", "of_the_kernel")),
    ("predict IMAGE", "of_the_kernel"),
}
"""Cases that are left out: features are computed, maps are drawn, `ray dashboard` is started, or Pillow
leaves the file open, which is a warning."""
WRITING = ("report --to", "export --to", "predict --csv", "predict --parquet", "explain --to", "results")
DEVICES = ("zero", "of_the_kernel")
"""Places that no case of WRITING names: a fault would replace a device where this runs as root."""
READERS: tuple[tuple[str, ...], ...] = (("results",), ("export", "--to", "{place}/out"), ("report",))


_COMMAND = typer.main.get_command(app)


def _do(words: list[str]) -> Any:
    """Run a command; `load FILE` only reads a config, as every command with a config does first."""
    if words[0] == "load":
        return config_file.load(words[1]) and 0
    return _COMMAND.main(words, prog_name="search", standalone_mode=False)


class Started(BaseException):
    """A case got past all checks, and would have started Ray."""


class Hangs(BaseException):
    """A case has not been answered in time."""


@dataclass(frozen=True)
class Answer:
    """What the user gets."""

    code: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """The answer as the table shows it: the error, or that the input was taken."""
        errors = [line for line in self.err.splitlines() if not PHASE.match(line)]
        told = NUMBERS.sub("N", " ".join(" ".join(errors).split()))
        return clipped(safe_text.terminal(told), LINE) if self.code else "taken"


LINE = 150
"""Length at which the table cuts a line."""
NUMBERS = re.compile(r"0x[0-9a-f]{6,}|(?<=in )\d+\.\d+ s|(?<=offset for tensor `)\w")
"""Parts of a line that change from run to run."""
PHASE = re.compile(
    r" *(program|check|images|report|export|read|model|Ray|checks|slots|pictures)\b[^:]*: |.*: \d\S* s$"
)
"""Lines about the phases of a command, with their seconds."""


def _at(use: Callable[[Path, str], list[str]], put: places.Put) -> Words:
    return lambda place: use(place, put(place))


def cases() -> dict[str, Words]:
    """Return all cases by name."""
    return {**_of_paths(), **_of_configs(), **_of_files(), **_of_lines()}


def _of_paths() -> dict[str, Words]:
    return {
        f"{use} is {put.__name__}": _at(places.USES[use], put)
        for use in places.USES
        for put in places.PLACES
        if (use, put.__name__) not in SLOW
        and not (use == "explain --to" and put.__name__ in MADE)
        and not (use in WRITING and put.__name__ in DEVICES)
    }


def _of_configs() -> dict[str, Words]:
    texts = {f"config: {name}": contents.with_text(text) for name, text in contents.YAMLS.items()}
    keys = {
        f"{path} is {name}": contents.with_value(path, value)
        for path in contents.every_key()
        for name, value in contents.VALUES.items()
    }
    return texts | keys


def _of_files() -> dict[str, Words]:
    found: dict[str, Words] = {"model.safetensors: no numbers": contents.without_numbers}
    for name, text in contents.MANIFESTS.items():
        found[f"manifest: {name}"] = contents.with_manifest(text)
    for name, content in contents.WEIGHTS.items():
        file, _, what = name.partition(" ")
        found[f"weights: {name}"] = contents.with_weights(file, content)
        if file == "x.safetensors":
            found[f"model.safetensors: {what}"] = contents.with_model_file("model.safetensors", content)
    for name, values in contents.MODEL_FACTS.items():
        for value in values:
            found[f"model.yaml: {name} is {value!r:.40}"] = contents.with_fact(name, value)
    for name, text in contents.YAMLS.items():
        content = text.encode() if isinstance(text, str) else text
        found[f"model.yaml: {name}"] = contents.with_model_file("model.yaml", content)
    for name, damage in contents.RECORDS.items():
        for words in READERS:
            found[f"{words[0]}: a record with {name}"] = contents.with_record(damage, *words)
    return found


def _of_lines() -> dict[str, Words]:
    return {f"$ {' '.join(words)!r}"[:100]: (lambda place, words=words: [*words]) for words in contents.LINES}


def ask(words: list[str], place: Path) -> Answer:
    """Run a command in this process, in a folder; it is stopped if it hangs.

    Raises:
        Hangs: it has not ended after SECONDS.
    """
    out, err = io.StringIO(), io.StringIO()

    def hang(*_: Any) -> None:
        raise Hangs(" ".join(words))

    before, here, variables = signal.signal(signal.SIGALRM, hang), os.getcwd(), dict(os.environ)
    signal.alarm(SECONDS)
    try:
        os.chdir(place)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = guarded(lambda: _do(words))
    except Started:
        code = 0
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        os.chdir(here)
        os.environ.clear()  # `status --address` leaves a variable behind, which the next case would read
        os.environ.update(variables)
    said = [stream.getvalue().replace(str(place), "DIR") for stream in (out, err)]
    return Answer(code, *said)


def sound(place: Path) -> None:
    """Put images, a model and a study into a folder."""
    for name in ("cat", "dog"):
        (place / "images" / name).mkdir(parents=True)
        for number in range(6):
            colour = (number * 9, ord(name[0]), number)
            Image.new("RGB", (40, 40), colour).save(place / "images" / name / f"{number}.png")
    with tempfile.TemporaryDirectory() as trained:
        model_folder.write(models.train(Path(trained)), place / "model", {})
    study = written.write(place / "results")
    study.root.rename(place / "study")
    (place / "results").rmdir()


@contextlib.contextmanager
def refusing_ray() -> Iterator[None]:
    """Raise Started where Ray would start."""
    start = ray.init

    def started(*_: Any, **__: Any) -> None:
        raise Started

    ray.init = started
    try:
        yield
    finally:
        ray.init = start


@contextlib.contextmanager
def folder(template: Path) -> Iterator[Path]:
    """Yield a copy of a folder that `sound` made, with a config."""
    # A short place: a long one would be cut in messages, and sockets could not lie in it.
    with tempfile.TemporaryDirectory(prefix="b", dir="/tmp") as name:
        place = Path(name) / "d"
        shutil.copytree(template, place)
        places.config(place)
        yield place
