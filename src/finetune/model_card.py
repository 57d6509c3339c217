"""Write the README.md of a model folder, a short model card."""

from typing import Any

import yaml

from finetune import bill_of_materials
from finetune.safe_text import markdown

HUB_KINDS = {"folder": "imagefolder"}
"""The Hub's names for kinds of images, if they differ from ours."""


def _of_validation(facts: dict[str, Any]) -> str:
    """Return the table label of the validation scores."""
    before = "before it was trained on them; " if "refit" in facts else ""
    return f"validation ({before}chose this model: reads high)"


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


def header(facts: dict[str, Any]) -> list[str]:
    """Return the lines by which the Hugging Face Hub sorts a model and shows its scores.

    The license is left to whoever publishes the model.
    """
    data = bill_of_materials.data_name(facts)
    results = [
        {
            "task": {"type": "image-classification"},
            "dataset": {"name": data, "type": HUB_KINDS.get(data, data), "split": split},
            "metrics": [
                {"type": name, "value": value}
                for name, value in scores.items()
                if isinstance(value, float) and "/" not in name
            ],
        }
        for split, scores in facts["metrics"].items()
        if scores
    ]
    told = {
        "library_name": "transfer-search",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "transfer-learning", facts["backbone"]],
        "metrics": ["accuracy"],
        "model-index": [{"name": f"{facts['backbone']}-{facts['strategy']}", "results": results}],
    }
    written = yaml.safe_dump(told, sort_keys=False, allow_unicode=False)
    return ["---", "# license: name one before you publish the model", *written.splitlines(), "---", ""]


def _formats(formats: dict[str, Any]) -> list[str]:
    """Return a table of the files of other formats and how closely they answer."""
    rows = [
        f"| {markdown(found['file'])} | {found['parity']['largest_difference']:.1e} | "
        f"{found['parity']['changed_answers']} of {found['parity']['images']} |"
        for found in formats.values()
    ]
    return ["| file | largest difference of a probability | changed answers |", "| --- | --- | --- |", *rows]


def _members(members: list[dict[str, Any]], judged: dict[str, Any] | None) -> list[str]:
    """Return the parts of an ensemble, and how far it was ahead of a single model."""
    names = ", ".join(f"{one['trial']} ({one['strategy']}, {100 * one['share']:.0f} %)" for one in members)
    lines = [f"An ensemble of {len(members)} heads on one frozen backbone, whose probabilities are averaged:"]
    lines.append(f"{markdown(names)}.")
    if judged:
        lines.append(
            f"On validation images that did not choose, such ensembles beat the best single model by "
            f"{judged['gain']:.4f} (± {judged['error']:.4f})."
        )
    return lines


def _privacy(told: dict[str, Any]) -> list[str]:
    """Return what a private study promises about its images, in words."""
    return [
        "",
        "## Privacy",
        "",
        f"Trained with differential privacy: epsilon {told['epsilon']:.3g} at delta {told['delta']:.2g} for",
        f"each {told['unit']}, the search over {told['trials']['mean']:g} trials on average included.",
        f"Neighbours: {told['neighbours']}. Scores carry noise, and there are no others;",
        "probabilities are not calibrated. The pretrained weights, the class names and the number of images",
        "count as public.",
    ]


def _audit(told: dict[str, Any]) -> list[str]:
    """Return a table of how well an attack tells training images from others."""
    rows = []
    for name, what in (("model", "this model"), ("recipe", "its recipe, on halves of the images")):
        found = told[name]
        rates = (
            f"{100 * one['rate']:.1f} % ({100 * one['between'][0]:.1f} to {100 * one['between'][1]:.1f})"
            for one in found["true_positives"].values()
        )
        low, high = found["auc_between"]
        rows.append(f"| {what} | {found['auc']:.3f} ({low:.3f} to {high:.3f}) | {' | '.join(rates)} |")
    return [
        "",
        "## Audit",
        "",
        f"Membership inference (LiRA, {told['shadows']} shadow heads, {told['images']} images): the share of",
        "the training images that are recognised at a rate of false alarms. Chance is an AUC of .5.",
        "",
        "| attacked | AUC | at 0.1 % | at 1 % |",
        "| --- | --- | --- | --- |",
        *rows,
    ]


def text(facts: dict[str, Any]) -> str:
    """Return a short model card (Mitchell et al., FAT* 2019) in Markdown."""
    scores = facts["metrics"]
    whole = {name: value for name, value in scores["validation"].items() if "/" not in name}
    columns = [name for name, value in whole.items() if isinstance(value, float)]

    def row(name: str, split: dict[str, Any]) -> str:
        return f"| {name} | {split['images']} | " + " | ".join(f"{split[c]:.4f}" for c in columns) + " |"

    names = ", ".join(map(markdown, facts["classes"]))
    lines = [
        *header(facts),
        f"# {facts['backbone']}, strategy {facts['strategy']}",
        "",
        f"Classifies images into {len(facts['classes'])} classes: {names}.",
        "",
        f"Transferred from {markdown(facts['source']['weights'])}. Input: RGB, "
        f"{facts['preprocessing']['image_size']} x {facts['preprocessing']['image_size']} px.",
        "",
        "| split | images | " + " | ".join(columns) + " |",
        "|" + " --- |" * (len(columns) + 2),
        row(_of_validation(facts), scores["validation"]),
    ]
    if scores["test"]:
        lines.append(row(_of_test(facts["provenance"]), scores["test"]))
    else:
        lines += ["", "No test split was given, so there is no unbiased estimate of its accuracy."]
    if told := facts.get("refit"):
        lines += [
            "",
            f"Trained on training and validation images together, {told['images']} images, for "
            f"{told['epochs']} epoch{'s'[: told['epochs'] > 1]}",
            "with the settings that were best on validation images. Scores and temperature there are",
            "those of the model before, which had not seen them.",
        ]
    if "members" in facts["head"]:
        lines += ["", *_members(facts["head"]["members"], facts["provenance"].get("ensemble"))]
    if "calibration" in facts:  # folders of older versions have none
        lines += ["", _calibrated(facts["calibration"])]
    if facts.get("privacy"):
        lines += _privacy(facts["privacy"])
    if facts.get("audit"):
        lines += _audit(facts["audit"])
    if facts.get("formats"):
        lines += ["", "## Other formats", "", *_formats(facts["formats"])]
    lines += [
        "",
        "## Use",
        "",
        "    python -m search predict THIS_FOLDER IMAGES...",
        "",
        "It knows only the classes above and answers one of them for any image. It was measured on images",
        "of the same source as its training images; on others it may do worse.",
        "",
        "Settings, weights hash and versions are in `model.yaml`, and so is the hash of the images unless",
        "they are private.",
        "",
    ]
    return "\n".join(lines)
