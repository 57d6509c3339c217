"""The report in a real browser without a network: what it draws, asks for, and runs."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import browser, synthetic_study
from benchmarks.browser import Chromium
from search.record.study_folder import StudyFolder
from search.report import page
from tests.pages import Mark, fault_of
from tests.test_report import HOSTILE, results

SCROLL = """(async () => {
  for (const plot of document.querySelectorAll(".plot")) {
    plot.scrollIntoView();
    for (let i = 0; i < 600 && !plot.querySelector(".main-svg"); i++) {
      await new Promise((done) => setTimeout(done, 50));
    }
  }
})()"""
"""Show every figure until it is drawn."""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Chromium]:
    if browser.program() is None and not os.environ.get("CI"):
        pytest.skip("no Chromium: apt-get install chromium")
    with browser.opened() as found:
        yield found


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return page.write(synthetic_study.write(tmp_path_factory.mktemp("browser") / "flowers", 40))


@pytest.mark.parametrize(("width", "dark"), [(1100, False), (360, True)])
def test_the_page_draws_every_figure_asks_for_nothing_and_never_scrolls_sideways(
    chromium: Chromium, written: Path, width: int, dark: bool
) -> None:
    shown = chromium.page(written, width=width, dark=dark)
    shown.evaluate(SCROLL)
    drawn = shown.evaluate(
        "[...document.querySelectorAll('.plot')].map((p) => !!p.querySelector('.main-svg'))"
    )
    assert len(drawn) > 8
    assert all(drawn)
    assert shown.evaluate("document.documentElement.scrollWidth") == width
    assert (shown.requests, shown.errors) == ([], [])
    background = shown.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(17, 21, 27)" if dark else "rgb(246, 247, 249)")


MARKS = """[...document.querySelectorAll("[data-json]")].map(
  (one) => [one.dataset.json, one.getAttribute("value"), one.textContent])"""
DRAWN = """Object.fromEntries([...document.querySelectorAll(".plot")].map(
  (plot) => [plot.dataset.figure.slice(5), plot.data.map((trace) => [...(trace.x || [])])]))"""


def test_the_numbers_that_the_browser_shows_and_draws_are_those_of_the_json(
    chromium: Chromium, written: Path
) -> None:
    told = results(StudyFolder(written.parent))
    shown = chromium.page(written)
    shown.evaluate(SCROLL)
    marks = [Mark(*found) for found in shown.evaluate(MARKS)]
    assert len(marks) > 500
    assert [fault for mark in marks if (fault := fault_of(mark, told))] == []
    drawn = shown.evaluate(DRAWN)
    recalls = [row["recall"] for row in told["analysis"]["model"]["recalls"]]
    assert sorted(drawn["recall"][0]) == pytest.approx(recalls)
    points = told["analysis"]["best_so_far"]["points"]
    dots = [x for trace in drawn["best-so-far"][:2] for x in trace]
    assert sorted(dots) == pytest.approx(sorted(point["searched"] for point in points))
    costs = [x for trace in drawn["best-so-far"][3:5] for x in trace]
    assert sorted(costs) == pytest.approx([point["slot_seconds"] for point in points])


def test_the_policy_refuses_every_request(chromium: Chromium, written: Path) -> None:
    shown = chromium.page(written)
    refused = shown.evaluate("fetch('http://127.0.0.1:9/').then(() => 'sent', () => 'refused')")
    assert refused == "refused"
    assert any("Content Security Policy" in error for error in shown.errors)
    assert (
        shown.evaluate(
            """new Promise((done) => {
          const picture = new Image();
          picture.onerror = () => done("refused");
          picture.src = "http://127.0.0.1:9/x.png";
        })"""
        )
        == "refused"
    )


def test_the_best_trial_and_its_score_are_what_the_table_shows_and_columns_sort(
    chromium: Chromium, written: Path
) -> None:
    shown = chromium.page(written)
    row = "document.querySelector('#trials table tbody tr').innerText"
    best = shown.evaluate(row).split("\t")
    assert best[0] == "1"
    assert best[1].strip() in shown.evaluate("document.querySelector('.verdict').innerText")
    assert shown.evaluate("document.querySelector('.tile b').innerText") == best[2].strip()
    seconds = """(() => {
      const table = document.querySelector("table.sortable");
      const heads = [...table.tHead.rows[0].cells];
      const column = heads.findIndex((head) => head.innerText.startsWith("learning rate"));
      heads[column].click();
      return [...table.tBodies[0].rows].map((row) => {
        const cell = row.cells[column].querySelector("data");
        return Number(cell.value || cell.textContent);
      });
    })()"""
    shown.evaluate("document.querySelector('#trials details').open = true")
    rates = shown.evaluate(seconds)
    assert rates == sorted(rates)
    assert len(rates) == 40


def test_without_scripts_the_verdict_and_the_numbers_are_there(chromium: Chromium, written: Path) -> None:
    shown = chromium.page(written, scripts=False, width=360)
    text = shown.evaluate("document.body.innerText")
    assert "is better than the recipe" in text
    assert shown.evaluate("document.querySelectorAll('#verdict .intervals .bar').length") >= 2
    assert shown.evaluate("document.querySelectorAll('noscript svg.still').length") >= 2
    assert shown.evaluate("document.documentElement.scrollWidth") == 360
    assert shown.evaluate("getComputedStyle(document.querySelector('.plot')).display") == "none"


def test_no_script_of_a_hostile_name_runs(chromium: Chromium, tmp_path: Path) -> None:
    hostile = page.write(synthetic_study.write(tmp_path / "flowers", 12, classes=HOSTILE))
    shown = chromium.page(hostile, width=360)
    shown.evaluate(SCROLL)
    assert shown.evaluate("window.attacked === undefined")
    assert (shown.requests, shown.errors) == ([], [])
    assert shown.evaluate("document.documentElement.scrollWidth") == 360
    assert shown.evaluate("[...document.querySelectorAll('.plot a')].length") == 0
    assert HOSTILE[0] in shown.evaluate("document.querySelector('#classes').textContent")
