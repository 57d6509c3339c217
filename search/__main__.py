"""The command line: `python -m search COMMAND`, or `transfer-search COMMAND` if it is installed.

Results go to stdout, everything else to stderr. Exit codes: 0 done; 1 the study failed (no trial
completed, or it could not run to its end), or `predict` could not read an image; 2 bad input; 130
interrupted, and `resume` continues.
"""

import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from finetune.errors import FinetuneError, clipped
from search.cluster import commands
from search.cluster.commands import Address, Cluster, Wait
from search.commands import (
    Backbone,
    Budget,
    Config,
    Data,
    Exit,
    Extend,
    JsonFlag,
    Overrides,
    Results,
    Trials,
    Wanted,
    Weights,
    check_output,
    print_json,
    say,
)
from search.config.problems import ConfigErrors
from search.config.study import StudyConfig
from search.errors import CapacityError, ClusterError, PreflightError, SearchError, StudyError
from search.handing_on import commands as handing_on
from search.handing_on import trust
from search.record.records import StudyRecord
from search.record.study_folder import StudyFolder
from search.unforeseen import line_of
from search.views import table
from search.views.phases import Phases
from search.views.terminal import console, print_line

PROGRAM = "transfer-search" if Path(sys.argv[0]).stem == "transfer-search" else "python -m search"
"""Name under which this process was started: the command that pip installs, or the module."""
INTERRUPTED = "interrupted; `python -m search resume DIR` goes on where a study had begun"
LONGEST_LINE = 2000
"""Largest length of a line in an error message, in characters."""


class Interrupted(Exception):
    """A command was ended by Ctrl-C; typer would answer a KeyboardInterrupt itself, without a word."""


class Commands(TyperGroup):
    """All commands; Ctrl-C in one raises Interrupted."""

    def invoke(self, *context: Any) -> Any:
        """Run the command that was named."""
        try:
            return super().invoke(*context)
        except KeyboardInterrupt:
            raise Interrupted from None


app = typer.Typer(
    cls=Commands,
    help="Search how best to transfer a pretrained image classifier to your own images.",
    no_args_is_help=True,
    add_completion=PROGRAM == "transfer-search",  # a shell completes commands, not modules
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help and errors, also in pipes
)


@app.command()
def run(
    config: Config = None,
    data: Data = None,
    backbone: Backbone = None,
    weights: Weights = None,
    trials: Trials = None,
    budget: Budget = None,
    overrides: Overrides = None,
    results_dir: Results = None,
    only_trial: Annotated[
        int | None, typer.Option(help="Run only trial N of the study again: alone, in this process.")
    ] = None,
    go_on: Annotated[
        bool, typer.Option("--continue", help="Go on with the study that this config has begun, if any.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Run a study: search, print the ranked trials, export the best model."""
    options = {"backbone": backbone, "weights": weights, "trials": trials, "budget": budget}
    wanted = Wanted(config=config, data=data, options=options, overrides=overrides or [], results=results_dir)
    if only_trial is not None and (config is None or go_on):
        raise typer.BadParameter("--only-trial goes with a config file, and without --continue")
    loaded = wanted.load()
    if only_trial is not None:
        _run_only(wanted, loaded, only_trial, as_json)
        return
    phases = Phases()
    with phases.phase("program", "loads Ray and Optuna"):
        from search.driver import runner
        from search.record import studies as begun_studies

    begun = begun_studies.find(loaded) if go_on else None
    if begun is None:
        if go_on and (line := begun_studies.near(loaded)):
            say(line)
        finish(runner.run(loaded, phases), as_json)
    else:
        go_on_with(begun, as_json, phases)


def _run_only(wanted: Wanted, config: StudyConfig, number: int, as_json: bool) -> None:
    """Run one trial again, of the study beside the config file, or else in the config's results folder."""
    from search.driver.rerun import run_only

    beside = StudyFolder(Path(str(wanted.config)).resolve().parent)
    is_beside = wanted.results is None and beside.database.exists()
    last = run_only(beside if is_beside else StudyFolder.open(config.folder), config, number, say)
    if as_json:
        print_json(last)


def go_on_with(folder: StudyFolder, as_json: bool, phases: Phases | None = None) -> None:
    """Resume the earlier study of a config, or show it if it has finished."""
    from search.config import config_file
    from search.driver import runner
    from search.driver.ending import is_over
    from search.record import reader

    trials, facts = reader.read(folder.database)
    if is_over(trials, facts, config_file.load(folder.config).study):
        say(f"{folder.root}: this study has finished; `submit --new` begins another with its config")
    else:
        say(f"{folder.root}: going on with this study")
    finish(runner.resume(folder.root, phases), as_json)


@app.command()
def resume(
    folder: Annotated[Path, typer.Argument(help="A results folder; with a cluster, a folder there.")],
    address: Address = None,
    cluster: Cluster = None,
    wait: Wait = False,
    extend: Extend = None,
    as_json: JsonFlag = False,
) -> None:
    """Resume an interrupted study, or extend a finished one, here or as a job on a cluster."""
    if extend and (address or cluster):
        raise typer.BadParameter("--extend goes without --cluster and --address: run it there by `ray job`")
    if address or cluster:
        commands.resume_there(str(folder), address, cluster, wait=wait, as_json=as_json)
        return
    if wait:
        raise typer.BadParameter("--wait goes with --cluster or --address")
    phases = Phases()
    with phases.phase("program", "loads Ray and Optuna"):
        from search.driver import runner

    if extend:
        say(f"{folder}: going on with this study, extended by {extend}")
    finish(runner.resume(folder, phases, extend), as_json)


def finish(record: StudyRecord, as_json: bool) -> None:
    """Print a study that has just run and the next command, and exit with the study's exit code."""
    show(record, as_json)
    folder = shown_path(record.folder)
    say(f"record: {folder} (study.yaml, optuna.db, trials.csv)")
    if record.privacy is None:
        say(f"look: tensorboard --logdir {folder}/tensorboard")
    else:
        say(f"private: {folder}/private must not be given to anybody; {folder}/best may")
    if record.state == "interrupted":
        say(f"next: python -m search resume {folder}")
        raise typer.Exit(Exit.INTERRUPTED)
    if record.best is None:
        say(f"next: python -m search run {folder}/study.yaml --only-trial 0")
        raise typer.Exit(Exit.STUDY_FAILED)
    model = "final" if record.refit else "best"
    say(f"model: {folder}/{model} (the card is its README.md)")
    say(f"next: python -m search predict {folder}/{model} IMAGES...")


@app.command("results")
def results_command(
    folder: Annotated[Path, typer.Argument(help="A results folder; with a cluster, a folder there.")],
    address: Address = None,
    cluster: Cluster = None,
    as_json: JsonFlag = False,
    history: Annotated[bool, typer.Option(help="With --json: every epoch of every trial.")] = False,
) -> None:
    """Print the ranked trials of a study, also while it runs."""
    if history and not as_json:
        raise typer.BadParameter("--history goes with --json")
    if address or cluster:
        flags = ["--json"] * as_json + ["--history"] * history
        commands.results_there(str(folder), flags, address, cluster)
        return
    from search.record import reader

    record = reader.read_study(StudyFolder.open(folder))
    show(record, as_json, history=history)
    shown = shown_path(record.folder)
    following = "resume" if record.state == "interrupted" else "export"
    say(f"next: python -m search {following} {shown}" + (" --to MODEL_DIR" if following == "export" else ""))


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="A results folder.")],
    to: Annotated[
        Path | None, typer.Option(help="File to write; left out: report.html in the folder.")
    ] = None,
    shareable: Annotated[bool, typer.Option(help="Leave out images, paths and names.")] = False,
) -> None:
    """Write one page about a study: verdict, ranked trials, curves, mistakes. It needs no network."""
    from search.report import page

    check_output("--to", to, parents=True)
    with Phases().phase("report"):
        written = page.write(StudyFolder.open(folder), to, shareable=shareable)
    print_line(console(), str(written))
    say(f"{written.stat().st_size / 2**20:.1f} MiB, self-contained: open it in a browser, or send it")


@app.command()
def check(
    config: Config = None,
    data: Data = None,
    backbone: Backbone = None,
    weights: Weights = None,
    trials: Trials = None,
    budget: Budget = None,
    overrides: Overrides = None,
    results_dir: Results = None,
    timed: Annotated[
        bool, typer.Option("--time", help="Time a few batches here, and say what the study will cost.")
    ] = False,
    suspects: Annotated[
        Path | None, typer.Option(help="Write a list of images whose label may be wrong, for data.exclude.")
    ] = None,
    probed: Annotated[
        bool, typer.Option("--probe", help="Say how well classes can be told apart behind each block.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Check config, every image, weights and capacity without training, and print the plan."""
    from search.driver.checks import check as checker
    from search.driver.checks import check_text

    options = {"backbone": backbone, "weights": weights, "trials": trials, "budget": budget}
    wanted = Wanted(config=config, data=data, options=options, overrides=overrides or [], results=results_dir)
    loaded = wanted.load()
    check_output("--suspects", suspects)
    with Phases().phase("check"):
        planned = checker.plan(loaded, timed=timed, suspects=suspects, probed=probed)
    if as_json:
        print_json(planned)
    else:
        for line in check_text.lines(planned):
            print_line(console(), line)
    for error in (found := checker.errors(planned)):
        say(f"error: data: {error}")
    if found:
        raise typer.Exit(Exit.BAD_INPUT)
    say(f"next: {shlex.join(['python', '-m', 'search', 'run', *wanted.words])}")


@app.command()
def blocks(
    name: Annotated[str, typer.Argument(help="A torchvision model, such as resnet18.")],
    image_size: Annotated[int, typer.Option(min=1, help="Side of the images, for the shapes.")] = 224,
    as_json: JsonFlag = False,
) -> None:
    """List the blocks of a backbone, which frozen_layers counts, with parameters and output shapes."""
    from search.views import blocks as lister

    listed = lister.listing(name, image_size)
    if as_json:
        print_json(listed)
    else:
        lister.show(listed)


@app.command()
def cache(
    folder: Annotated[
        Path | None, typer.Option("--dir", help="The study's features.dir, where it names one.")
    ] = None,
    clear: Annotated[
        bool, typer.Option("--clear", help="Remove everything; with --dir, what is in that folder.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """List what this node keeps for later trials: features, decoded images, copies of remote files."""
    from search.config.resolve import cache_dir
    from search.views import cache as cache_view

    if folder is not None:
        cache_view.check(folder)
    place = folder or cache_dir() / "features"
    if clear:
        say(f"{cache_view.clear(place, copies=folder is None) / 2**20:.1f} MiB freed")
    listed = cache_view.listing(place)
    if as_json:
        print_json(listed)
    elif not clear:
        cache_view.show(listed)


def show(record: StudyRecord, as_json: bool, *, history: bool = False) -> None:
    """Print a record on stdout, as JSON or as a table."""
    if as_json:
        print_json(table.to_json(record, history=history))
    else:
        table.show(record, console())


def shown_path(path: str) -> str:
    """Return a path quoted for the shell, relative to the current folder if it lies below."""
    relative = os.path.relpath(path)
    return shlex.quote(path if relative.startswith("..") else relative)


handing_on.register(app)
trust.register(app)
commands.register(app)


def main() -> int:
    """Run the command line and return its exit code."""
    return guarded(lambda: app(prog_name=PROGRAM, standalone_mode=False))


def guarded(command: Callable[[], Any]) -> int:
    """Run a command and return its exit code; print our own errors as a message instead of a trace."""
    try:
        code = command()
        return int(code or Exit.DONE)
    except typer.Exit as ended:
        return int(ended.exit_code)
    except (typer.Abort, KeyboardInterrupt, Interrupted):
        say(INTERRUPTED)
        return Exit.INTERRUPTED
    except ConfigErrors as errors:
        say(str(errors))
        return Exit.BAD_INPUT
    except Exception as error:
        return _told(error)


def _told(error: Exception) -> Exit:
    """Print an error in one line and return the exit code; raise one that is a bug."""
    match error:
        case BrokenPipeError():  # whoever read the output has gone, as `| head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return Exit.STUDY_FAILED
        case typer.TyperException():
            told = getattr(error, "format_message", error.__str__)()  # names the option
            tell(told or str(error))
        case FinetuneError() | CapacityError() | ClusterError():
            tell(error)
        case PreflightError() | StudyError():
            tell(error)
        case SearchError():
            tell(error)
            return Exit.STUDY_FAILED
        case _ if (line := line_of(error)) is not None:
            tell(line)
        case _:
            raise error
    return Exit.BAD_INPUT


def tell(error: Exception | str) -> None:
    """Print an error; the middle of lines that are longer than LONGEST_LINE is left out."""
    say("error: " + "\n".join(clipped(line, LONGEST_LINE) for line in str(error).splitlines()))


if __name__ == "__main__":
    sys.exit(main())
