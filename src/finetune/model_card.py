"""Write the README.md of a model folder, a short model card."""

from typing import Any

from finetune.safe_text import markdown


def _of_test(provenance: dict[str, Any]) -> str:
    """Return the table label of the test scores, with the number of test reads if the provenance has it."""
    if "test_reads" not in provenance:
        return "test (read at export)"
    reads = provenance["test_reads"]
    if reads is None:
        return "test (read at export; not counted, as the study's folder could not be written)"
    return f"test (read at export, by then {reads} time{'s'[: reads > 1]} in all)"


def _calibrated(facts: dict[str, Any]) -> str:
    """Return a sentence on the calibration, measured on the test images if there are some."""
    split = "test" if "test" in facts else "validation"
    before, after = facts[split]["ece_before"], facts[split]["ece_after"]
    return (
        f"Its probabilities are softmax(logits / {facts['temperature']:.3g}), fitted on validation images. "
        f"That changed the\nexpected calibration error on {split} images from {before:.4f} to {after:.4f}."
    )


def text(facts: dict[str, Any]) -> str:
    """Return a short model card (Mitchell et al., FAT* 2019) in Markdown."""
    scores = facts["metrics"]
    whole = {name: value for name, value in scores["validation"].items() if "/" not in name}
    columns = [name for name, value in whole.items() if isinstance(value, float)]

    def row(name: str, split: dict[str, Any]) -> str:
        return f"| {name} | {split['images']} | " + " | ".join(f"{split[c]:.4f}" for c in columns) + " |"

    names = ", ".join(map(markdown, facts["classes"]))
    lines = [
        f"# {facts['backbone']}, strategy {facts['strategy']}",
        "",
        f"Classifies images into {len(facts['classes'])} classes: {names}.",
        "",
        f"Transferred from {markdown(facts['source']['weights'])}. Input: RGB, "
        f"{facts['preprocessing']['image_size']} x {facts['preprocessing']['image_size']} px.",
        "",
        "| split | images | " + " | ".join(columns) + " |",
        "|" + " --- |" * (len(columns) + 2),
        row("validation (chose this model: reads high)", scores["validation"]),
    ]
    if scores["test"]:
        lines.append(row(_of_test(facts["provenance"]), scores["test"]))
    else:
        lines += ["", "No test split was given, so there is no unbiased estimate of its accuracy."]
    lines += ["", _calibrated(facts["calibration"])]
    lines += [
        "",
        "## Use",
        "",
        "    python -m search predict THIS_FOLDER IMAGES...",
        "",
        "It knows only the classes above and answers one of them for any image. It was measured on images",
        "of the same source as its training images; on others it may do worse.",
        "",
        "Settings, data fingerprint, weights hash and versions are in `model.yaml`.",
        "",
    ]
    return "\n".join(lines)
