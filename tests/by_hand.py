"""Runs of a study without Ray: slots that do nothing, trials that are entered by hand."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from finetune.datasets import catalog
from finetune.messages import Keep, TrainJob
from finetune.metrics import Objective
from finetune.settings import DataSettings, FeatureSettings, TrialSettings, WeightsSettings
from search.config import resolve
from search.config.study import StudyConfig
from search.driver.study_run import StudyRun
from search.record.ledger import Ledger
from search.record.study_folder import StudyFolder
from search.slots.news import NO_FEATURES
from search.slots.slots import SlotPlan
from search.suggest.chooser import Chooser
from search.suggest.sampler import Planned, StudySearcher
from search.suggest.space import Space
from tests.small import STUDY, merged

SETTINGS = TrialSettings(
    data=DataSettings(kind="digits"),
    backbone="resnet18",
    weights=WeightsSettings(),
    strategy="replace",
    epochs=2,
    learning_rate=0.1,
    cache_dir="",
)


class Exchange:
    """Takes what a watch tells the exchange."""

    def __init__(self) -> None:
        self.cancel = self.want = SimpleNamespace(remote=lambda *_: None)


def run_of(folder: StudyFolder, *, space: dict[str, Any] | None = None, **study: Any) -> StudyRun:
    """Return a run of a study in a folder, with slots that do nothing."""
    folder.root.mkdir(exist_ok=True)
    results_of = {"results": str(folder.root.parent)}
    config = StudyConfig.from_dict(merged(STUDY | results_of, {"study": study, "space": space or {}}))
    folder.config.write_text(config.to_yaml())
    nothing = {"lost": lambda: None, "news": lambda: (1, []), "up": 1, "steps": {}}
    warm: Any = SimpleNamespace(
        plan=SlotPlan(slots=1, workers=1, cpus=1, gpu=False),
        exchange=Exchange(),
        offer=lambda _: None,
        computed=dict(NO_FEATURES),
        **nothing,
    )
    images = catalog.scan(resolve.data_settings(config))
    return StudyRun(config, folder, images, warm, {"slot-0": {}})


def train_job(name: str, params: dict[str, Any], settings: TrialSettings | None = None) -> TrainJob:
    """Return a job that no worker is to take."""
    return TrainJob(
        id=name,
        settings=settings or SETTINGS,
        features=FeatureSettings(folder="", budget_bytes=0, mode="off"),
        keep=Keep(metric="val/accuracy", best=Path("best"), last=Path("last")),
        params=params,
        data_fingerprint="",
    )


def suggest(book: Ledger, space: Space, plan: Planned | None = None) -> dict[str, Any]:
    """Open a trial as a study does, and end it well; return its parameters."""
    searcher = StudySearcher(
        book,
        Chooser(book, space, planned=[] if plan is None else [plan], sampled=int(plan is None)),
        objective=Objective("val/accuracy"),
        make_job=lambda number, params, _: train_job(f"trial-{number:04d}", params),
        offer=lambda _: None,
    )
    searcher.suggest("a")
    number = searcher.suggested["a"].number
    best = {"epoch": 1.0, "val/accuracy": number / 100}
    facts = {"metrics": {"best": best, "last": best}, "epochs": 1, "history": [best]}
    book.report(number, 1, number / 100)
    book.end(number, "COMPLETE", number / 100, facts)
    return dict(searcher.suggested["a"].job.params)
