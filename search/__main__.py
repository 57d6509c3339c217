"""The command line: `python -m search COMMAND`.

Payload goes to stdout, everything else to stderr. Exit codes: 0 done; 1 the study failed (no trial
completed, or it could not run to its end), or `predict` could not read an image; 2 bad input; 130
interrupted, `resume` goes on.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from finetune.errors import FinetuneError
from search import cluster_commands, config_file, results
from search.cluster_commands import Address, Cluster, Wait
from search.commands import Exit, JsonFlag, Overrides, print_json, say
from search.errors import CapacityError, ClusterError, PreflightError, SearchError, StudyError
from search.layout import StudyFolder
from search.problems import ConfigErrors
from search.record import StudyRecord
from search.study import StudyConfig
from search.terminal import console, print_line

app = typer.Typer(
    help="Search how best to transfer a pretrained image classifier to your own images.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help and errors, also in pipes
)


@app.command()
def run(
    config: Annotated[Path | None, typer.Argument(help="A config file; or give --data.")] = None,
    data: Annotated[
        str | None, typer.Option(help="A folder of images or its URL, one folder per class; no config.")
    ] = None,
    backbone: Annotated[str | None, typer.Option(help="With --data: a torchvision model.")] = None,
    weights: Annotated[str | None, typer.Option(help="With --data: a name, a file or none.")] = None,
    trials: Annotated[int | None, typer.Option(help="With --data: how many trials.")] = None,
    budget: Annotated[str | None, typer.Option(help="With --data: wall time, such as 10m.")] = None,
    overrides: Overrides = None,
    results_dir: Annotated[Path | None, typer.Option("--results", help="Folder of all studies.")] = None,
    only_trial: Annotated[
        int | None, typer.Option(help="Run only trial N of the study again: alone, in this process.")
    ] = None,
    go_on: Annotated[
        bool, typer.Option("--continue", help="Go on with the study that this config has begun, if any.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Run a study: search, print the ranked trials, export the best model."""
    if data is not None and overrides:
        raise typer.BadParameter("--set goes with a config file; with --data use the options")
    given = {"backbone": backbone, "weights": weights, "trials": trials, "budget": budget}
    options = {name: value for name, value in given.items() if value is not None}
    if (config is None) == (data is None):
        raise typer.BadParameter("give a config file or --data FOLDER, one of them")
    if config is not None and options:
        names = ", ".join(f"--{name}" for name in options)
        raise typer.BadParameter(f"{names} go with --data; with a config file use --set")
    if config is not None and only_trial is not None:
        from search.only import run_only

        run_only(config, only_trial, say)
        return
    from search import begun as begun_studies
    from search import runner

    root = str(results_dir.absolute()) if results_dir else None
    if config is not None:
        loaded = config_file.load(
            config, [*(overrides or []), *([f"results={json.dumps(root)}"] if root else [])]
        )
    else:
        loaded = StudyConfig.from_folder(str(data), **options, **({"results": root} if root else {}))
    begun = begun_studies.find(loaded) if go_on else None
    if begun is None:
        finish(runner.run(loaded), as_json)
    else:
        go_on_with(begun, as_json)


def go_on_with(folder: StudyFolder, as_json: bool) -> None:
    """Go on with a study that a config has begun, or show it where it has finished."""
    from search import ledger, runner

    if (record := ledger.read_study(folder)).state == "finished":
        say(f"{folder.root}: this study has finished; `submit --new` begins another with its config")
    else:
        say(f"{folder.root}: going on with this study")
        record = runner.resume(folder.root)
    finish(record, as_json)


@app.command()
def resume(
    folder: Annotated[Path, typer.Argument(help="A results folder; with a cluster, a folder there.")],
    address: Address = None,
    cluster: Cluster = None,
    wait: Wait = False,
    as_json: JsonFlag = False,
) -> None:
    """Go on with an interrupted study: here, or as a job of a cluster."""
    if address or cluster:
        cluster_commands.resume_there(str(folder), address, cluster, wait=wait, as_json=as_json)
        return
    if wait:
        raise typer.BadParameter("--wait goes with --cluster or --address")
    from search import runner

    finish(runner.resume(folder), as_json)


def finish(record: StudyRecord, as_json: bool) -> None:
    """Print a study that has just run, what to do next, and end with its exit code."""
    show(record, as_json)
    folder = shown_path(record.folder)
    say(f"record: {folder} (study.yaml, optuna.db, trials.csv)")
    say(f"look: tensorboard --logdir {folder}/tensorboard")
    if record.state == "interrupted":
        say(f"next: python -m search resume {folder}")
        raise typer.Exit(Exit.INTERRUPTED)
    if record.best is None:
        say(f"next: python -m search run {folder}/study.yaml --only-trial 0")
        raise typer.Exit(Exit.STUDY_FAILED)
    say(f"model: {folder}/best (the card is its README.md)")
    say(f"next: python -m search predict {folder}/best IMAGES...")


@app.command("results")
def results_command(
    folder: Annotated[Path, typer.Argument(help="A results folder; with a cluster, a folder there.")],
    address: Address = None,
    cluster: Cluster = None,
    as_json: JsonFlag = False,
    history: Annotated[bool, typer.Option(help="With --json: every epoch of every trial.")] = False,
) -> None:
    """Print the ranked trials of a study, also while it runs."""
    if address or cluster:
        flags = ["--json"] * as_json + ["--history"] * history
        cluster_commands.results_there(str(folder), flags, address, cluster)
        return
    from search import ledger

    record = ledger.read_study(StudyFolder.open(folder))
    show(record, as_json, history=history)
    shown = shown_path(record.folder)
    following = "resume" if record.state == "interrupted" else "export"
    say(f"next: python -m search {following} {shown}" + (" --to MODEL_DIR" if following == "export" else ""))


@app.command()
def check(
    config: Annotated[Path, typer.Argument(help="A config file.")],
    overrides: Overrides = None,
    as_json: JsonFlag = False,
) -> None:
    """Check config, every image, weights and capacity without training, and print the plan."""
    from search import check as checker

    planned = checker.plan(config_file.load(config, overrides or []))
    if as_json:
        print_json(planned)
    else:
        for line in checker.lines(planned):
            print_line(console(), line)
    for error in (found := checker.errors(planned)):
        say(f"error: data: {error}")
    if found:
        raise typer.Exit(Exit.BAD_INPUT)
    say(f"next: python -m search run {config}")


@app.command()
def blocks(
    name: Annotated[str, typer.Argument(help="A torchvision model, such as resnet18.")],
    image_size: Annotated[int, typer.Option(min=1, help="Side of the images, for the shapes.")] = 224,
    as_json: JsonFlag = False,
) -> None:
    """List the blocks of a backbone, which frozen_layers counts, with parameters and output shapes."""
    from search import blocks as lister

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
    """List what this node keeps for later trials: features, decoded images, copies of far files."""
    from search import cache as keeper
    from search.needs import cache_dir

    if folder is not None:
        keeper.check(folder)
    place = folder or cache_dir() / "features"
    if clear:
        say(f"{keeper.clear(place, copies=folder is None) / 2**20:.1f} MiB freed")
    listed = keeper.listing(place)
    if as_json:
        print_json(listed)
    elif not clear:
        keeper.show(listed)


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(help="A results folder.")],
    to: Annotated[Path, typer.Option(help="Where the model folder goes.")],
    trial: Annotated[int | None, typer.Option(help="A trial's number; left out: the best.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Write the best model, or that of another trial, with its card; reads the test split."""
    from search.export import export_trial

    facts = export_trial(StudyFolder.open(folder), trial, to)
    if as_json:
        print_json(facts)
    else:
        for split, scores in facts["metrics"].items():
            text = ", ".join(
                f"{k} {v:.4f}" if isinstance(v, float) else f"{k} {v}" for k, v in (scores or {}).items()
            )
            print_line(console(), f"{split}: {text or 'no such split'}")
    say(f"next: python -m search predict {to} IMAGES...")


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(help="A model folder.")],
    images: Annotated[list[Path], typer.Argument(help="Images, and folders that are searched for them.")],
    as_json: JsonFlag = False,
    csv: Annotated[
        Path | None, typer.Option(help="Write a CSV file: path, class, probability, error.")
    ] = None,
) -> None:
    """Classify images with an exported model; 1 where some of them cannot be read."""
    from search import predictions

    found = predictions.Counted(predictions.predict(model, images))
    if as_json:
        print_json(list(found))
    elif csv is not None:
        predictions.write_csv(found, csv)
        say(f"{csv}: {found.images} images")
    else:
        for row in found:
            print(predictions.line(row), flush=True)
    if found.unreadable:
        say(f"error: every image must be readable, got {found.unreadable} of {found.images} that are not")
        raise typer.Exit(Exit.STUDY_FAILED)


def show(record: StudyRecord, as_json: bool, *, history: bool = False) -> None:
    """Print a record on stdout, for machines or for people."""
    if as_json:
        print_json(results.to_json(record, history=history))
    else:
        results.show(record, console())


def shown_path(path: str) -> str:
    """Return a path as a person here would type it."""
    relative = os.path.relpath(path)
    return path if relative.startswith("..") else relative


cluster_commands.register(app)


def main() -> int:
    """Run a command; return its exit code, with our own errors as one message instead of a trace."""
    return guarded(lambda: app(prog_name="python -m search", standalone_mode=False))


def guarded(command: Callable[[], Any]) -> int:
    """Return the exit code of a command."""
    try:
        code = command()
        return int(code or Exit.DONE)
    except typer.Exit as done:
        return done.exit_code
    except typer.TyperException as error:
        say(f"error: {error}")
        return Exit.BAD_INPUT
    except (typer.Abort, KeyboardInterrupt):
        say("interrupted; `python -m search resume DIR` goes on where a study had begun")
        return Exit.INTERRUPTED
    except ConfigErrors as errors:
        say(str(errors))
        return Exit.BAD_INPUT
    except (FinetuneError, CapacityError, ClusterError, PreflightError, StudyError) as error:
        say(f"error: {error}")
        return Exit.BAD_INPUT
    except SearchError as error:
        say(f"error: {error}")
        return Exit.STUDY_FAILED


if __name__ == "__main__":
    sys.exit(main())
