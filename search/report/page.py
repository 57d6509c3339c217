"""Put the sections together into one self-contained page, which asks for nothing from anywhere."""

import base64
import hashlib
from importlib import import_module
from itertools import groupby
from pathlib import Path

from finetune import steps
from search.errors import StudyError
from search.record import reader
from search.record.study_folder import StudyFolder, write_text
from search.report.html import Markup, details, join, script_json, tag
from search.report.material import Material
from search.report.section import Figure, Section
from search.report.sections import PROVIDERS

HERE = Path(__file__).parent
INSTALL = "pip install 'transfer-search[report]'"


def write(folder: StudyFolder, to: Path | None = None, *, shareable: bool = False) -> Path:
    """Write the report of a study and return its path.

    Args:
        folder: the study's results folder.
        to: file to write; None: `report.html` in the folder.
        shareable: leave out images, paths and names.

    Raises:
        StudyError: plotly is not installed, the study has not begun, or its record is damaged.
    """
    plotly_js = _plotly_js()
    material = Material(reader.read_study(folder), shareable)
    place = to or folder.report
    write_text(place, page(material, plotly_js))
    return place


def page(material: Material, plotly_js: str) -> str:
    """Return the page as HTML."""
    sections = _sections(material)
    script = (HERE / "page.js").read_text(encoding="utf-8")
    hashes = " ".join(f"'sha256-{_digest(code)}'" for code in (plotly_js, script))
    policy = (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    head = join(
        [
            Markup('<meta charset="utf-8">'),
            tag_void("meta", http_equiv="Content-Security-Policy", content=policy),
            tag_void("meta", name="viewport", content="width=device-width, initial-scale=1"),
            tag_void("meta", name="referrer", content="no-referrer"),
            tag("title", f"{_title(material)}: report"),
            Markup(f"<style>{(HERE / 'page.css').read_text(encoding='utf-8')}</style>"),
        ]
    )
    body = join(
        [
            _header(material),
            tag("nav", *(tag("a", s.title, href=f"#{s.key}") for s in sections), aria_label="Sections"),
            tag("main", *map(_section, sections)),
            tag("footer", "Written by transfer-search. This page asks for nothing from any network."),
            Markup(f"<script>{plotly_js}</script>"),
            Markup(f"<script>{script}</script>"),
        ]
    )
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>{body}</body></html>\n'


def _sections(material: Material) -> list[Section]:
    """Return the sections that have something to show."""
    told = steps.counted(PROVIDERS, "write", len(PROVIDERS), "sections", patience=0.5)
    return [made for provider in told if (made := provider(material)) is not None]


def tag_void(element: str, /, **attributes: object) -> Markup:
    """Return an element without an end."""
    return Markup(tag(element, **attributes).removesuffix(f"</{element}>"))


def _header(material: Material) -> Markup:
    record = material.record
    of = [] if record.is_open else [" of ", material.number("d", "study", "planned")]
    exact = material.value("analysis", "counts", "exact")
    heads = [" and ", material.number("d", "analysis", "counts", "exact"), " exact head", "s"[: exact > 1]]
    told = [
        f"{record.state}, ",
        material.number("d", "analysis", "counts", "trials"),
        *of,
        " trials",
        *(heads if exact else []),
        " in ",
        material.duration("study", "seconds"),
    ]
    title = _title(material) if material.shareable else material.quote("study", "name")
    return tag(
        "header",
        tag("h1", title),
        tag("p", *told),
        tag("button", "light / dark", id="theme", type="button", hidden=True),
    )


def _title(material: Material) -> str:
    return "Study" if material.shareable else material.record.name


def _section(section: Section) -> Markup:
    parts: list[Markup] = []
    for small, some in groupby(section.parts, lambda part: isinstance(part, Figure) and part.small):
        made = [_figure(part) if isinstance(part, Figure) else part for part in some]
        parts += [tag("div", *made, class_="grid")] if small else made
    return tag("section", tag("h2", section.title), *parts, id=section.key)


def _figure(figure: Figure) -> Markup:
    data = Markup(
        f'<script type="application/json" id="data-{figure.key}">{script_json(figure.figure)}</script>'
    )
    plot = tag(
        "div",
        class_="plot",
        data_figure=f"data-{figure.key}",
        role="img",
        aria_label=figure.sentence,
        style=f"--height:{figure.height}px",
    )
    still = tag("noscript", figure.still) if figure.still is not None else Markup("")
    return tag(
        "figure",
        tag("figcaption", figure.sentence),
        plot,
        still,
        data,
        details("The numbers", figure.numbers),
        id=f"figure-{figure.key}",
    )


def _digest(code: str) -> str:
    return base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()


def _plotly_js() -> str:
    try:
        offline = import_module("plotly.offline")
    except ImportError:
        raise StudyError(
            f"report: plotly must be installed to write a report, got none. Run {INSTALL}."
        ) from None
    code: str = offline.get_plotlyjs()
    return code
