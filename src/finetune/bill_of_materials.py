"""Write the list of a model's parts: the weights it came from, its images, files and libraries.

The list is CycloneDX 1.6, written by hand: the library for it, cyclonedx-python-lib 11, knows no `modelCard`.
The tests check it against the standard's schema with that library. It has no paths and no time, so the same
model has the same list.
"""

import json
import uuid
from collections.abc import Iterator
from typing import Any

VERSION = "1.6"
_SPACE = uuid.uuid5(uuid.NAMESPACE_URL, "https://cyclonedx.org/schema/bom-1.6.schema.json")
"""Namespace of serial numbers, which follow from the weights' hash."""


def text(facts: dict[str, Any]) -> str:
    """Return the list of a model's parts as JSON.

    Args:
        facts: content of a model.yaml.
    """
    parts = [_source(facts), _data(facts), *_files(facts), *_libraries(facts)]
    digest = str(facts["provenance"].get("model_sha256", ""))
    told = {
        "bomFormat": "CycloneDX",
        "specVersion": VERSION,
        "serialNumber": uuid.uuid5(_SPACE, digest).urn,
        "version": 1,
        "metadata": {"component": _model(facts)},
        "components": parts,
        "dependencies": [{"ref": "model", "dependsOn": [part["bom-ref"] for part in parts]}],
    }
    return json.dumps(told, indent=2) + "\n"


def data_name(facts: dict[str, Any]) -> str:
    """Return a name of the images without a path: that of the torchvision set, or the kind of the source."""
    data = facts["settings"]["data"]
    return str(data.get("name") or data["kind"])


def _hashes(digest: Any) -> dict[str, Any]:
    return {"hashes": [{"alg": "SHA-256", "content": digest}]} if digest else {}


def _model(facts: dict[str, Any]) -> dict[str, Any]:
    side = facts["preprocessing"]["image_size"]
    outputs = f"probabilities of {len(facts['classes'])} classes"
    return {
        "type": "machine-learning-model",
        "bom-ref": "model",
        "name": f"{facts['backbone']}-{facts['strategy']}",
        **_hashes(facts["provenance"].get("model_sha256")),
        "modelCard": {
            "modelParameters": {
                "approach": {"type": "supervised"},
                "task": "image classification",
                "modelArchitecture": facts["backbone"],
                "datasets": [{"ref": "data"}],
                "inputs": [{"format": f"RGB image, {side} x {side} pixels"}],
                "outputs": [{"format": outputs}],
            },
            "quantitativeAnalysis": {"performanceMetrics": list(_metrics(facts))},
        },
    }


def _metrics(facts: dict[str, Any]) -> Iterator[dict[str, str]]:
    """Yield the scores of each split, except those of single classes."""
    for split, scores in facts["metrics"].items():
        for name, value in (scores or {}).items():
            if isinstance(value, float) and "/" not in name:
                yield {"type": name, "value": repr(value), "slice": split}


def _source(facts: dict[str, Any]) -> dict[str, Any]:
    source = facts["source"]
    return {
        "type": "machine-learning-model",
        "bom-ref": "source",
        "name": f"{facts['backbone']} before its transfer",
        "description": f"{source['classes']} classes",
        **_hashes(source.get("sha256")),
    }


def _data(facts: dict[str, Any]) -> dict[str, Any]:
    counts = {split: scores["images"] for split, scores in facts["metrics"].items() if scores}
    told = [f"{split}: {images} images" for split, images in counts.items()]
    return {
        "type": "data",
        "bom-ref": "data",
        "name": data_name(facts),
        "data": [{"type": "dataset", "name": data_name(facts), "description": ", ".join(told)}],
        "properties": [
            {"name": "fingerprint", "value": str(facts["provenance"].get("data_fingerprint", ""))},
            {"name": "classes", "value": str(len(facts["classes"]))},
        ],
    }


def _files(facts: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for name, found in facts.get("formats", {}).items():
        yield {"type": "file", "bom-ref": f"file-{name}", "name": found["file"], **_hashes(found["sha256"])}


def _libraries(facts: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for name, version in facts["provenance"].get("packages", {}).items():
        # In a purl the plus of a local version, such as 2.15.0+cu132, is percent-encoded.
        purl = f"pkg:pypi/{name.lower()}@{str(version).replace('+', '%2B')}"
        yield {"type": "library", "bom-ref": purl, "name": name, "version": str(version), "purl": purl}
