"""Parts that the commands of the command line share: exit codes, common options, printing."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from finetune import safe_text
from finetune.disk.filesystems import not_replaceable
from search.config import config_file
from search.config.study import StudyConfig, overrides
from search.errors import StudyError
from search.views.terminal import console, print_line


class Exit(IntEnum):
    """Exit codes of the command line."""

    DONE = 0
    STUDY_FAILED = 1
    BAD_INPUT = 2
    INTERRUPTED = 130


JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON value on stdout, nothing else.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one key, such as study.trials=8."),
]

Config = Annotated[Path | None, typer.Argument(help="A config file; or give --data.")]
Data = Annotated[
    str | None, typer.Option(help="A folder of images or its URL, one folder per class; no config.")
]
Backbone = Annotated[str | None, typer.Option(help="With --data: a torchvision model.")]
Weights = Annotated[str | None, typer.Option(help="With --data: a name, a file or none.")]
Trials = Annotated[int | None, typer.Option(help="With --data: how many trials.")]
Budget = Annotated[
    str | None, typer.Option(help="With --data: wall time (10m), GPU-hours (3gpuh) or money (5usd).")
]
Extend = Annotated[
    str | None, typer.Option(metavar="MORE", help="Give the study more trials (10) or a larger budget (10m).")
]
Results = Annotated[Path | None, typer.Option("--results", help="Folder of all studies.")]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A study as the command line describes it: a config file, or a folder of images with options."""

    config: Path | None
    data: str | None
    options: Mapping[str, Any]
    """Options by name, allowed with `data` only; the value is None for an option that is not given."""
    overrides: Sequence[str]
    """Values of `--set`, allowed with `config` only."""
    results: Path | None

    def load(self) -> StudyConfig:
        """Return the config of the study.

        Raises:
            BadParameter: the arguments exclude each other.
            ConfigErrors: with every mistake of the config.
        """
        options = {name: value for name, value in self.options.items() if value is not None}
        root = {"results": str(self.results.absolute())} if self.results else {}
        if (self.config is None) == (self.data is None):
            raise typer.BadParameter("give a config file or --data FOLDER, one of them")
        if self.config is None:
            if self.overrides:
                raise typer.BadParameter("--set goes with a config file; with --data use the options")
            return StudyConfig.from_folder(str(self.data), **options, **root)
        if options:
            names = ", ".join(f"--{name}" for name in options)
            verb = "goes" if len(options) == 1 else "go"
            raise typer.BadParameter(f"{names} {verb} with --data; with a config file use --set")
        return config_file.load(self.config, [*self.overrides, *overrides(root)])

    @property
    def words(self) -> list[str]:
        """The arguments that describe this study to another command, to be joined by `shlex`."""
        given = {"data": self.data, **self.options, "results": self.results}
        words = [] if self.config is None else [str(self.config)]
        words += [word for text in self.overrides for word in ("--set", text)]
        return words + [
            word for name, value in given.items() if value is not None for word in (f"--{name}", str(value))
        ]


def check_output(option: str, path: Path | None, *, parents: bool = False) -> None:
    """Check a file that a command is to write, before the work that is to go into it.

    Args:
        option: the option that names it.
        path: the file; None: there is none.
        parents: whether folders that are missing are made.

    Raises:
        StudyError: it cannot be written.
    """
    if path is not None and (got := not_replaceable(path, parents=parents)) is not None:
        raise StudyError(f"{path}: {option} must be a file that can be written, got '{got}'. Choose another.")


def say(text: str) -> None:
    """Print a message on stderr, so that stdout holds results only."""
    for line in text.split("\n"):
        print_line(console(stderr=True), line)


def print_json(value: Any) -> None:
    """Print one JSON value on stdout."""
    print(safe_text.json_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)))
