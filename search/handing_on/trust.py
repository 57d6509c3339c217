"""Commands about the trust in a model folder: `audit` and `verify`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from search.commands import JsonFlag, print_json, say
from search.views.phases import Phases
from search.views.terminal import console, print_line


def audit(
    model: Annotated[Path, typer.Argument(help="A model folder.")],
    data: Annotated[
        str | None, typer.Option(help="Its images; left out: those of the study beside it.")
    ] = None,
    shadows: Annotated[int, typer.Option(min=8, help="Shadow heads: more are exacter and slower.")] = 64,
    as_json: JsonFlag = False,
) -> None:
    """Attack a model: say how well its training images can be told from others, and which best."""
    from search.views import audits

    with Phases().phase("audit"):
        told, kept = audits.audit(model, data=data, shadows=shadows)
    if as_json:
        print_json(told)
    else:
        for line in audits.lines(told):
            print_line(console(), line)
    say(kept)


def verify(
    model: Annotated[Path, typer.Argument(help="A model folder.")],
    key: Annotated[Path, typer.Option(help="Public key (PEM) of whoever signed it.")],
) -> None:
    """Check that a model folder is the one that was signed by `export --sign`."""
    verified(model, key)
    print_line(console(), f"{model}: every file is as it was signed")


def check(where: str) -> None:
    """Check that this machine can sign and verify; see `finetune.handing_on.signature`."""
    from finetune.handing_on import signature

    signature.check(where)


def sign(model: Path, key: Path) -> None:
    """Sign a model folder; see `finetune.handing_on.signature`."""
    from finetune.handing_on import signature

    say(f"signed: {signature.sign(model, key)}")


def verified(model: Path, key: Path) -> None:
    """Check the signature of a model folder; see `finetune.handing_on.signature`."""
    from finetune.handing_on import signature

    signature.verify(model, key)


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    commands: tuple[Any, ...] = (audit, verify)
    for command in commands:
        app.command()(command)
