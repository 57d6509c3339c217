"""Run an audit of a model folder, tell it in words, and enter it into the folder's card."""

from pathlib import Path
from typing import Any

from search.config import resolve
from search.views import export

AUDIT = "audit"
ON_CARD = ("shadows", "images", "recipe", "model", "epsilon_at_least")


def audit(folder: Path, *, data: str | None, shadows: int) -> tuple[dict[str, Any], str]:
    """Return the result of an audit, and a sentence on where it was kept.

    Raises:
        FinetuneError: the folder is not whole, or its images are not there.
    """
    from finetune import model_folder
    from finetune.model_folder import files
    from finetune.private import audit as auditing
    from finetune.settings import FeatureSettings

    cache = resolve.cache_dir()
    stored = FeatureSettings(folder=str(cache / "features"), budget_bytes=10 * 2**30)
    place = export.place_beside(folder) if data is None else {"path": str(Path(data).absolute())}
    told = auditing.audit(folder, place=place, shadows=shadows, stored=stored)
    facts = model_folder.load(folder).facts
    if (folder / files.SIGNATURE).exists():
        return told, "not entered into the card: the folder is signed. Audit first, then sign"
    if facts.get("privacy"):
        return told, "not entered into the card: these numbers are not covered by the model's epsilon"
    # The most exposed images are for whoever owns them.
    facts[AUDIT] = {name: told[name] for name in ON_CARD}
    try:
        model_folder.describe(folder, facts)
    except OSError as error:
        return told, f"not entered into the card: {error.strerror}"
    return told, f"entered into {folder}/README.md, without the names of images"


def lines(told: dict[str, Any]) -> list[str]:
    """Return an audit as lines of text."""
    text = []
    for name, what in (("model", "this model"), ("recipe", "its recipe on halves of the images")):
        found = told[name]
        low, high = found["auc_between"]
        rates = [
            f"{100 * one['rate']:.1f} % of members at {rate} false alarms "
            f"({100 * one['between'][0]:.1f} to {100 * one['between'][1]:.1f})"
            for rate, one in found["true_positives"].items()
        ]
        text.append(f"{what}: AUC {found['auc']:.3f} ({low:.3f} to {high:.3f}); {'; '.join(rates)}")
    if told["model"]["others"] < 1000:
        text.append(
            f"note: with {told['model']['others']} images that it was not trained on, the first rate of this "
            "model is the one without a false alarm"
        )
    bound = f"epsilon of one training is at least {told['epsilon_at_least']:.2f} (95 %)"
    promised = told["epsilon_promised"]
    if promised is None:
        text.append(f"{bound}; nothing was promised")
    else:
        kept = "within" if told["epsilon_at_least"] <= promised else "ABOVE"
        text.append(f"{bound}, {kept} the {promised:.2f} that were promised")
    text.append("most exposed training images:")
    return [*text, *(f"  {one['score']:8.2f}  {one['path']}" for one in told["exposed"])]
