"""Take the screenshots of report and TensorBoard in the docs: `python -m benchmarks.screenshots RESULTS_DIR`.

RESULTS_DIR is the folder of a finished study, such as `results/quickstart`.
"""

import argparse
import tempfile
import time
from pathlib import Path

from PIL import Image

from benchmarks import board, browser
from search.record.study_folder import StudyFolder
from search.report import page

DOCS = Path(__file__).parents[1] / "docs"
LIMIT_BYTES = 300_000
SETTLE_SECONDS = 15.0
"""Seconds for TensorBoard to draw all charts."""
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
    """Write `docs/report-*.webp` and `docs/tensorboard-*.webp`."""
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
            _keep(raw, f"report-{name}")
        of_board(chromium, folder, Path(scratch))


def of_board(chromium: browser.Chromium, folder: StudyFolder, scratch: Path) -> None:
    """Write `docs/tensorboard-hparams.webp` and `docs/tensorboard-study.webp`."""
    with board.served(folder.tensorboard) as address:
        for name, page_name in (("hparams", "hparams, rows"), ("study", "custom scalars, study")):
            shown = board.opened(chromium, address, page_name, width=1700, height=760)
            time.sleep(SETTLE_SECONDS)
            raw = scratch / f"{name}.png"
            shown.screenshot(raw, clip=(0, 0, 1700, 700))  # without the path below
            _keep(raw, f"tensorboard-{name}")


def _keep(raw: Path, name: str) -> None:
    """Write a screenshot into the docs.

    Raises:
        SystemExit: it is larger than LIMIT_BYTES.
    """
    to = DOCS / f"{name}.webp"
    Image.open(raw).convert("RGB").save(to, "WEBP", quality=88, method=6)
    size = to.stat().st_size
    print(f"{to.relative_to(DOCS.parent)}: {size / 1000:.0f} kB")
    if size > LIMIT_BYTES:
        raise SystemExit(f"{to}: a screenshot must have at most {LIMIT_BYTES} bytes, got {size}")


if __name__ == "__main__":
    main()
