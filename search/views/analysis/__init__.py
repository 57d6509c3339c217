"""Everything that the report works out from the record, as JSON values: `analysis` in `results --json`.

The report takes its numbers from here and from the record, so the page and the JSON cannot differ.
"""

from typing import Any

from finetune.objectives import LIMIT
from search.record.records import StudyRecord
from search.verdict.words import CONFIDENCE
from search.views.analysis import answers, importance, trials


def of(study: StudyRecord, model: dict[str, Any] | None) -> dict[str, Any]:
    """Return the analysis of a study.

    Args:
        study: the record, with every epoch.
        model: facts of the best model's folder; None: it was not exported.
    """
    return {
        "rules": {
            "confidence": CONFIDENCE,
            "least_trials_for_importance": importance.LEAST_TRIALS,
            "costs_that_count_as_equal": LIMIT,
        },
        "counts": trials.counts(study),
        "ranks": trials.ranks(study),
        "baselines": trials.baselines(study),
        "best_so_far": trials.best_so_far(study),
        "importance": importance.within_strategies(trials.scored(study), study.objective),
        "groups": trials.group_bounds(study),
        "curves": trials.curves(study),
        "costs": trials.costs(study),
        "failures": trials.failures(study),
        "model": answers.of(study, model),
    }
