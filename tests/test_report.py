"""The report: one page, of which every number is one of the record's."""

import dataclasses
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from benchmarks import synthetic_study
from search.record import reader
from search.record.records import StudyRecord
from search.record.study_folder import StudyFolder
from search.report import page
from search.report.material import Material
from tests.pages import Page, faults
from tests.test_front import written_with_costs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> StudyFolder:
    return synthetic_study.write(tmp_path_factory.mktemp("studies") / "flowers", 30)


@pytest.fixture(scope="module")
def written(folder: StudyFolder) -> Path:
    return page.write(folder)


def results(folder: StudyFolder) -> Any:
    from typer.testing import CliRunner

    from search.__main__ import app

    done = CliRunner().invoke(app, ["results", str(folder.root), "--json", "--history"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def all_faults(folder: StudyFolder, page_text: str, *, shareable: bool = False) -> list[str]:
    return faults(page_text, results(folder), folder.config.read_text(), shareable=shareable)


def test_every_number_and_quotation_is_one_of_results_json(folder: StudyFolder, written: Path) -> None:
    text = written.read_text()
    assert len(Page(text).marks) > 500
    assert len(Page(text).figures) > 8
    assert all_faults(folder, text) == []


PLANTS = [
    (r'(<data value="[^"]*" data-json="/analysis/best_so_far/slot_seconds">)\d+', r"\g<1>7", "is shown as"),
    (r'(data-json="/verdict/sentence">)', r"\1It is 3.2 points better: ", "is shown as"),
    (r'(data-json="/analysis/model/wrong">)\d+', r"\g<1>1", "is shown as"),
    (r'value="[^"]*" (data-json="/analysis/model/recalls/0/low")', r'value="0.1" \1', "is given as"),
    (r"/analysis/model/recalls/0/low", r"/analysis/model/recalls/99/low", "not in the JSON"),
    (r"(answers are wrong\.)", r"\1 That is 12 %.", "classes <figcaption>: 12"),
    (r"(<caption>)(The best trials, and)", r"\1At most 99: \2", "trials <caption>: 99"),
    (r'(<img[^>]* alt=")', r"\g<1>0.97 ", "<alt>: 0.97"),
    (r'("name":"complete","x":\[)[\d.]+', r"\g<1>123456.5", "figure best-so-far: 123456"),
    (r"(This page asks for nothing)", r"Written in 2 s. \1", "<footer>: 2"),
]
"""What to replace in a page, and what the comparison then says."""


@pytest.mark.parametrize(("old", "new", "said"), PLANTS)
def test_a_planted_number_is_found(folder: StudyFolder, written: Path, old: str, new: str, said: str) -> None:
    planted, count = re.subn(old, new, written.read_text(), count=1)
    assert count == 1
    assert said in "\n".join(all_faults(folder, planted))


def test_every_number_holds_for_a_study_with_objectives_and_for_a_page_to_share(tmp_path: Path) -> None:
    costs = written_with_costs(tmp_path)
    assert all_faults(costs, page.write(costs).read_text()) == []
    assert "figure-front" in page.write(costs).read_text()
    shared = page.write(costs, tmp_path / "shared.html", shareable=True).read_text()
    assert all_faults(costs, shared, shareable=True) == []


def test_the_sections_stand_in_order(written: Path) -> None:
    assert Page(written.read_text()).sections == [
        *("verdict", "trials", "baselines", "progress", "space", "curves", "classes", "mistakes"),
        *("sources", "suspects", "failures", "costs", "reproduce"),
    ]


def test_mistakes_have_a_map_and_neighbours_and_doubtful_labels_are_listed(folder: StudyFolder) -> None:
    text = page.write(folder).read_text()
    mistakes, suspects = (
        text.split(f'id="{key}"')[1].split("</section>")[0] for key in ("mistakes", "suspects")
    )
    assert mistakes.count("the same, bright where it spoke for") == mistakes.count("<figcaption>") > 3
    assert mistakes.count("a training image of") == 3 * mistakes.count("<figcaption>")
    assert "labelled" in suspects
    assert "roses/7.jpg and roses/12.jpg" in suspects
    assert "data.exclude" in suspects


def test_a_record_without_explanations_has_a_page_with_plain_mistakes(tmp_path: Path) -> None:
    study = synthetic_study.write(tmp_path / "old", 5)
    (found,) = study.root.rglob("explained.json")
    found.unlink()
    text = page.write(study).read_text()
    assert "labelled" not in text
    assert "images of two splits should differ" in text
    assert "bright where it spoke for" not in text
    found.write_text("[")  # damaged
    assert Page(page.write(study).read_text()).sections == Page(text).sections


def test_nothing_in_the_page_refers_to_an_address_and_it_is_small(written: Path) -> None:
    text = written.read_text()
    assert len(text.encode()) < 8 * 2**20
    policy = text.split('http-equiv="Content-Security-Policy" content="')[1].split('"')[0]
    assert policy.startswith("default-src &#x27;none&#x27;; script-src &#x27;sha256-")
    outside = text.split("<script>")[0]
    assert "http://" not in outside
    assert "https://" not in outside


def test_a_missing_plotly_is_one_line_with_the_command(
    folder: StudyFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    from search.errors import StudyError

    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(StudyError, match=r"pip install 'transfer-search\[report\]'"):
        page.write(folder)


HOSTILE = (
    '</script><img src=x onerror="window.attacked=1">',
    "<svg onload=window.attacked=1>",
    "'\"><script>window.attacked=1</script>",
    "a href=javascript:window.attacked=1 \u202e <b>bold</b> &amp; &lt;",
    "n" * 200,
)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hostile") / "flowers"
    return page.write(synthetic_study.write(root, 12, classes=HOSTILE))


def test_names_from_outside_open_no_element(hostile: Path) -> None:
    text = hostile.read_text()
    tags = Tags(text)
    assert tags.scripts == 2 + tags.figures  # plotly, the page's own, and the data of each figure
    assert not tags.strange
    assert "onerror=" not in tags.attributes
    assert "\u202e" not in text


class Tags(HTMLParser):
    """How many scripts and figures a page has, and what should not be there."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.scripts = self.figures = 0
        self.strange: list[str] = []
        self.attributes: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.scripts += tag == "script"
        self.figures += given.get("type") == "application/json"
        self.attributes |= {f"{name}=" for name in given}
        if tag in ("iframe", "object", "embed", "link", "form"):
            self.strange.append(tag)
        address = given.get("src") or given.get("href") or "#"
        if not address.startswith(("#", "data:image/webp;base64,")):
            self.strange.append(f"{tag} {address}")


CANARIES = ("canary-class", "canary-path", "canary-host", "canary-study")


def test_a_shareable_page_has_no_image_no_path_and_no_name(tmp_path: Path) -> None:
    root = tmp_path / "canary-path" / "canary-study"
    provenance = {
        "images": {"train": 10, "val": 5, "test": 5},
        "skipped": [{"path": "canary-path/x.jpg", "reason": "broken"}],
        "slots": {"slot-0": {"host": "canary-host", "device": "CPU"}},
    }
    folder = synthetic_study.write(root, 30, classes=("canary-class 1", "b", "c"), provenance=provenance)
    whole = page.write(folder).read_text()
    assert [canary for canary in CANARIES if canary not in whole] == []
    shared = page.write(folder, tmp_path / "shared.html", shareable=True).read_text()
    assert [canary for canary in CANARIES if canary in shared] == []
    assert "data:image" not in shared.split("<script>")[0].replace("img-src data:", "")
    assert Page(shared).sections == [
        s for s in Page(whole).sections if s not in ("mistakes", "sources", "suspects")
    ]
    assert str(tmp_path) not in shared


def test_a_shareable_page_does_not_name_the_class_whose_recall_is_the_metric(tmp_path: Path) -> None:
    folder = synthetic_study.write(tmp_path / "s", 12, classes=("canary-class", "b", "c"))
    record = dataclasses.replace(reader.read_study(folder), metric="val/recall/canary-class")
    assert "canary-class" in page.page(Material(record), "")
    shared = page.page(Material(record, shareable=True), "")
    assert "canary" not in shared
    assert "val/recall of a class" in shared
    nothing = dataclasses.replace(record, trials=())
    assert "canary" not in page.page(Material(nothing, shareable=True), "")


@pytest.mark.parametrize("trials", [1, 2])
def test_a_study_of_one_or_two_trials_has_a_page(tmp_path: Path, trials: int) -> None:
    text = page.write(synthetic_study.write(tmp_path / "few", trials)).read_text()
    assert "there is no other setting to compare it with" in text or "is better than" in text


def test_a_study_without_a_complete_trial_has_a_page(tmp_path: Path) -> None:
    record = StudyRecord(
        name="none", metric="val/accuracy", planned=3, epochs=2, state="interrupted", seconds=0.0,
        provenance={}, trials=(), folder=str(tmp_path),
    )  # fmt: skip
    text = page.page(Material(record), "")
    assert "No verdict: no trial completed with val/accuracy." in text
    assert Page(text).sections == ["verdict", "trials", "reproduce"]


def test_a_thousand_classes_have_a_page(tmp_path: Path) -> None:
    names = tuple(f"class number {i}" for i in range(1000))
    text = page.write(synthetic_study.write(tmp_path / "many", 2, epochs=2, classes=names)).read_text()
    assert len(text) < 8 * 2**20
    assert "Most frequent confusions" in text


PAIRS = [
    (ink, ground) for ink in ("ink", "soft", "link", "up", "down", "even") for ground in ("card", "ground")
]
PAIRS += [("ink", "shade"), ("soft", "shade")]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_has_a_contrast_of_at_least_4_5_in_both_themes(theme: str) -> None:
    css = (Path(page.__file__).parent / "page.css").read_text()
    block = css.split(":root {")[1] if theme == "light" else css.split(':root[data-theme="dark"] {')[1]
    colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", block.split("}")[0]))
    low = {pair: contrast(colours[pair[0]], colours[pair[1]]) for pair in PAIRS}
    assert {pair: ratio for pair, ratio in low.items() if ratio < 4.5} == {}


def contrast(one: str, other: str) -> float:
    """Return the contrast ratio of two colours (WCAG 2)."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)
