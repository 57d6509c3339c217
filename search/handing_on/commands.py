"""Commands for a model that is there: `export`, `predict`, `explain` and `serve`."""

import shlex
import sys
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from search.commands import Exit, JsonFlag, check_output, print_json, say
from search.handing_on import trust
from search.record.study_folder import StudyFolder
from search.views.phases import Phases
from search.views.predictions import Counted
from search.views.terminal import console, print_line


class Format(str, Enum):
    """Files that an export can write."""

    SAFETENSORS = "safetensors"
    TORCH = "torch"
    ONNX = "onnx"


def export(
    folder: Annotated[Path, typer.Argument(help="A results folder, or a model folder to convert.")],
    to: Annotated[Path, typer.Option(help="Where the model folder goes.")],
    trial: Annotated[int | None, typer.Option(help="A trial's number; left out: the best.")] = None,
    formats: Annotated[
        list[Format] | None, typer.Option("--format", help="Add the model as another program reads it.")
    ] = None,
    sign: Annotated[
        Path | None, typer.Option("--sign", metavar="KEY", help="Sign all files with this private key (PEM).")
    ] = None,
    ensemble: Annotated[
        bool, typer.Option("--ensemble", help="Join heads on one frozen backbone, if that beats the best.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Write the best model, or that of another trial, with its card, and measure it on the test images."""
    from search.views import export as exports

    if sign is not None:
        trust.check("export --sign")
    asked = [one.value for one in dict.fromkeys(formats or ()) if one is not Format.SAFETENSORS]
    with Phases().phase("export"):
        if ensemble:
            facts = _ensemble(folder, to, trial, asked, as_json)
        elif exports.is_model(folder):
            if trial is not None:
                raise typer.BadParameter("--trial goes with a results folder; this is a model folder")
            facts = exports.convert(folder, to, asked)
        else:
            facts = exports.export_trial(StudyFolder.open(folder), trial, to, asked)
    if sign is not None:
        trust.sign(to, sign)
    if as_json:
        print_json(facts)
    else:
        for line in exports.lines(facts):
            print_line(console(), line)
    if facts["provenance"].get("test_reads", 0) is None:
        say(f"{folder}: this read of the test split is not counted: the folder cannot be written")
    say(f"next: python -m search predict {shlex.quote(str(to))} IMAGES...")


def _ensemble(folder: Path, to: Path, trial: int | None, asked: list[str], as_json: bool) -> dict[str, Any]:
    """Export an ensemble and return the content of its model.yaml.

    Raises:
        typer.Exit: it is not worth it; the answer is printed.
    """
    from search.handing_on import ensemble
    from search.views import export as exports

    if trial is not None or exports.is_model(folder):
        raise typer.BadParameter("--ensemble goes with a results folder and without --trial")
    found = ensemble.export(StudyFolder.open(folder), to)
    say(found.sentence)
    if found.facts is None:
        if as_json:
            print_json({"ensemble": None, "gain": found.judged.gain, "error": found.judged.error})
        raise typer.Exit(Exit.STUDY_FAILED)
    return exports.convert(to, to, asked) if asked else found.facts


def predict(
    model: Annotated[Path, typer.Argument(help="A model folder.")],
    images: Annotated[
        list[Path] | None,
        typer.Argument(help="Images or clips, folders that are searched for them, tables with texts."),
    ] = None,
    text: Annotated[str, typer.Option(help="Text of the samples, for a model that reads text.")] = "",
    as_json: JsonFlag = False,
    csv: Annotated[
        Path | None, typer.Option(help="Write a CSV file: path, class, probability, error.")
    ] = None,
    parquet: Annotated[Path | None, typer.Option(help="Write a Parquet file.")] = None,
    top: Annotated[int | None, typer.Option(min=1, help="How many of the most probable classes.")] = None,
) -> None:
    """Classify images with an exported model; the exit code is 1 if some of them cannot be read."""
    from search.views import predictions

    if as_json + (csv is not None) + (parquet is not None) > 1:
        raise typer.BadParameter("give --json, --csv or --parquet, one of them")
    check_output("--csv", csv)
    check_output("--parquet", parquet)
    found = Counted(predictions.predict(model, images or [], top or 5, text=text))
    if csv is None and parquet is None and not as_json and sys.stdout.isatty():
        for row in found:  # the lines themselves are the progress
            print(predictions.line(row, top or 1), flush=True)
    else:
        with Phases().phase("classify"):
            if csv is not None:
                predictions.write_csv(found, csv, top or 1)
            elif parquet is not None:
                predictions.write_parquet(found, parquet)
            elif as_json:
                rows = list(found)
            else:
                for row in found:
                    print(predictions.line(row, top or 1), flush=True)
    if as_json:
        print_json(rows)
    if file := csv or parquet:
        say(f"{file}: {found.images} images")
    _all_readable(found)


def explain(
    model: Annotated[Path, typer.Argument(help="A model folder.")],
    images: Annotated[
        list[Path] | None, typer.Argument(help="Images, and folders that are searched for them.")
    ] = None,
    to: Annotated[Path, typer.Option(help="Folder for the pictures and explain.json.")] = Path("explained"),
    method: Annotated[
        str, typer.Option(help="grad-cam, integrated-gradients, occlusion or random.")
    ] = "grad-cam",
    about: Annotated[
        str | None, typer.Option("--class", help="Class to look for; left out: each image's answer.")
    ] = None,
    train: Annotated[
        list[Path] | None,
        typer.Option(help="Training images, or folders of them: the most alike stand beside each image."),
    ] = None,
    text: Annotated[
        str, typer.Option(help="Text of each sample, for a model that reads text; it stays as it is.")
    ] = "",
    probed: Annotated[
        bool,
        typer.Option(
            "--probe", help="Also say how well the classes of --train can be told apart behind each block."
        ),
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Draw what speaks for an answer: a map over each image, with a random map beside it."""
    from search.views import explanations

    if probed and not train:
        raise typer.BadParameter("--probe goes with --train, the folder of the training images")
    rows = explanations.explain(
        model, images or [], to, method=method, about=about, train=train or (), text=text
    )
    found = Counted(rows)
    with Phases().phase("explain"):
        if as_json:
            told = list(found)
        else:
            for row in found:
                print(explanations.line(row), flush=True)
    if as_json:
        print_json(told)
    say(f"{to}: {found.images - found.unreadable} pictures, and explain.json")
    if probed:
        say(f"{to / explanations.BLOCKS}: {explanations.probe(model, train or (), to)}")
    _all_readable(found)


def _all_readable(found: Counted) -> None:
    """Exit with an error if some images could not be read."""
    if found.unreadable:
        say(f"error: every image must be readable, got {found.unreadable} of {found.images} that are not")
        raise typer.Exit(Exit.STUDY_FAILED)


def serve(
    model: Annotated[Path, typer.Argument(help="A model folder.")],
    host: Annotated[
        str, typer.Option(help="Address to listen at; others than loopback see it.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    replicas: Annotated[int, typer.Option(min=1, help="Processes of Ray Serve that hold the model.")] = 1,
    alone: Annotated[bool, typer.Option("--alone", help="Serve from this process, without Ray.")] = False,
    most_mib: Annotated[int, typer.Option("--max-mib", min=1, help="Largest image file.")] = 20,
    most_megapixels: Annotated[int, typer.Option("--max-megapixels", min=1, help="Largest image.")] = 50,
    queue: Annotated[int, typer.Option(min=1, help="Requests in work; others are turned away.")] = 64,
    batch: Annotated[int, typer.Option(min=1, help="Images that go through the model together.")] = 16,
    signed: Annotated[
        Path | None,
        typer.Option(
            "--require-signature", metavar="KEY", help="Refuse a folder not signed by this public key (PEM)."
        ),
    ] = None,
) -> None:
    """Answer HTTP requests with an exported model, by Ray Serve, until Ctrl-C."""
    from finetune.serving.limits import Limits
    from search.handing_on import serving

    serving.check()
    if alone and replicas > 1:
        raise typer.BadParameter("--alone is one process, so it goes without --replicas")
    if signed is not None:
        trust.verified(model, signed)
    limits = Limits(body_bytes=most_mib * 2**20, pixels=most_megapixels * 10**6, queue=queue, batch=batch)
    if host not in serving.LOOPBACK:
        say(f"{host}: whoever reaches this address can use the model: there is no password")

    def ready(url: str) -> None:
        print_line(console(), url)
        say(f"try: curl --data-binary @IMAGE {url}/predict    (also /healthz, /metadata, /openapi.json)")

    try:
        if alone:
            serving.alone(model, host, port, limits, ready, signed=signed)
        else:
            serving.with_ray(model, host, port, limits, replicas, ready, signed=signed)
    except KeyboardInterrupt:
        say("stopped")


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    for command in (export, predict, explain, serve):
        app.command()(command)
