"""Take the screenshots of the report in the docs: `python -m benchmarks.screenshots RESULTS_DIR`.

RESULTS_DIR is the folder of a finished study, such as `results/quickstart`.
"""

import argparse
import tempfile
from pathlib import Path

from PIL import Image

from benchmarks import browser
from search.record.study_folder import StudyFolder
from search.report import page

DOCS = Path(__file__).parents[1] / "docs"
LIMIT_BYTES = 300_000
SHOWN = """(async () => {
  for (const plot of document.querySelectorAll(".plot")) {
    plot.scrollIntoView();
    for (let i = 0; i < 600 && !plot.querySelector(".main-svg"); i++) {
      await new Promise((done) => setTimeout(done, 50));
    }
  }
  scrollTo(0, 0);
})()"""
"""Draw every figure, as a reader who scrolls through the page does."""
BOX = """(() => {
  const box = document.querySelector("#%s").getBoundingClientRect();
  return [box.top + scrollY, box.height];
})()"""


def main() -> None:
    """Write `docs/report-verdict.webp`, `docs/report-space.webp` and `docs/report-classes.webp`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = StudyFolder.open(parser.parse_args().folder)
    with tempfile.TemporaryDirectory() as scratch, browser.opened() as chromium:
        written = page.write(folder, Path(scratch) / "report.html")
        for name, first, last, dark in (
            ("verdict", None, "trials", False),
            ("space", "space", "space", True),
            ("classes", "classes", "mistakes", False),
        ):
            shown = chromium.page(written, width=1100, height=1000, dark=dark, scale=1.4)
            shown.evaluate(SHOWN)
            top = 0.0 if first is None else shown.evaluate(BOX % first)[0] - 12
            begin, height = shown.evaluate(BOX % last)
            raw = Path(scratch) / f"{name}.png"
            shown.screenshot(raw, clip=(0, top, 1100, begin + height + 12 - top))
            to = DOCS / f"report-{name}.webp"
            Image.open(raw).convert("RGB").save(to, "WEBP", quality=88, method=6)
            size = to.stat().st_size
            print(f"{to.relative_to(DOCS.parent)}: {size / 1000:.0f} kB")
            if size > LIMIT_BYTES:
                raise SystemExit(f"{to}: a screenshot must have at most {LIMIT_BYTES} bytes, got {size}")


if __name__ == "__main__":
    main()
