"""Write the picture of docs/explaining.md: what `explain` draws of some images, one below the other.

    python -m benchmarks.explain_picture MODEL_DIR IMAGES... [--method NAME ...]

With several methods their maps stand side by side, and the random map last.
"""

import argparse
import tempfile
from pathlib import Path

from PIL import Image

from finetune.explain.overlay import CAPTION
from search.views import explanations

TO = Path(__file__).parents[1] / "docs" / "explaining.webp"


def rows(model: Path, images: list[Path], methods: list[str], folder: Path) -> list[Image.Image]:
    """Return one strip for each image: the image, a map of each method, and the random map."""
    strips = []
    for method in methods:
        told = explanations.explain(model, images, folder / method, method=method)
        strips.append([Image.open(folder / method / row["picture"]).convert("RGB") for row in told])
    return [_joined(list(of_image)) for of_image in zip(*strips, strict=True)]


def _joined(strips: list[Image.Image]) -> Image.Image:
    """Return the first panel of the first strip, the second one of each, and the last one of the first."""
    side = strips[0].height - CAPTION
    panels = [strips[0].crop((0, 0, side, strips[0].height))]
    panels += [strip.crop((side, 0, 2 * side, strip.height)) for strip in strips]
    panels.append(strips[0].crop((2 * side, 0, 3 * side, strips[0].height)))
    whole = Image.new("RGB", (side * len(panels), strips[0].height), "white")
    for place, panel in enumerate(panels):
        whole.paste(panel, (place * side, 0))
    return whole


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("images", type=Path, nargs="+")
    parser.add_argument("--method", nargs="+", default=["grad-cam", "integrated-gradients", "occlusion"])
    parser.add_argument("--to", type=Path, default=TO)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        made = rows(asked.model, asked.images, asked.method, Path(folder))
    whole = Image.new("RGB", (made[0].width, sum(row.height for row in made)), "white")
    for place, row in enumerate(made):
        whole.paste(row, (0, place * row.height))
    whole.save(asked.to, "WEBP", quality=75)
    print(asked.to)


if __name__ == "__main__":
    main()
