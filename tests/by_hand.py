"""Runs of a study without Ray: slots that do nothing, trials that are entered by hand."""

from types import SimpleNamespace
from typing import Any

from finetune.datasets import catalog
from search.config import resolve
from search.config.study import StudyConfig
from search.driver.study_run import StudyRun
from search.record.ledger import Ledger
from search.record.study_folder import StudyFolder
from search.slots.slots import SlotPlan
from search.suggest.sampler import Planned, StudySearcher
from search.suggest.space import Space
from tests.small import STUDY, merged


class Exchange:
    """Takes what a watch tells the exchange."""

    def __init__(self) -> None:
        self.cancel = self.want = self.offer = SimpleNamespace(remote=lambda *_: None)


def run_of(folder: StudyFolder, *, space: dict[str, Any] | None = None, **study: Any) -> StudyRun:
    """Return a run of a study in a folder, with slots that do nothing."""
    folder.root.mkdir(exist_ok=True)
    results_of = {"results": str(folder.root.parent)}
    config = StudyConfig.from_dict(merged(STUDY | results_of, {"study": study, "space": space or {}}))
    folder.config.write_text(config.to_yaml())
    nothing = {"lost": lambda: None, "news": lambda: (1, [])}
    warm: Any = SimpleNamespace(
        plan=SlotPlan(slots=1, workers=1, cpus=1, gpu=False), exchange=Exchange(), **nothing
    )
    images = catalog.scan(resolve.data_settings(config))
    return StudyRun(config, folder, images, warm, {"slot-0": {}})


def suggest(book: Ledger, space: Space, plan: Planned | None = None) -> dict[str, Any]:
    """Open a trial as a study does, and end it well; return its parameters."""
    jobs: list[dict[str, Any]] = []

    def job(number: int, params: dict[str, Any], plan: Planned | None) -> dict[str, Any]:
        return {"id": f"trial-{number:04d}", "params": params, "number": number}

    searcher = StudySearcher(
        book,
        space,
        metric="val/accuracy",
        mode="max",
        planned=[] if plan is None else [plan],
        sampled=int(plan is None),
        make_job=job,
        offer=jobs.append,
    )
    searcher.suggest("a")
    number = jobs[0]["number"]
    best = {"epoch": 1.0, "val/accuracy": number / 100}
    facts = {"metrics": {"best": best, "last": best}, "epochs": 1, "history": [best]}
    book.report(number, 1, number / 100)
    book.end(number, "COMPLETE", number / 100, facts)
    params: dict[str, Any] = jobs[0]["params"]
    return params
