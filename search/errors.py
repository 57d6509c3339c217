"""Errors that stop a study.

SearchError
├── CapacityError    the requested slots do not fit on the machine or cluster
├── PreflightError   nodes of the cluster differ, or lack files or GPUs that the study needs
├── SlotsLost        no slot could be started or kept
├── SettingsIgnored  a worker trained with other settings than were suggested
├── RecordLost       the record could not be written while the study ran
├── StudyError       a results folder is missing or damaged, or belongs to another study
└── ClusterError     a cluster cannot be reached, refuses the token, or has no such study

Mistakes in a config are `ConfigErrors` (config/problems.py): many at once, each with its position.
"""


class SearchError(Exception):
    """Base class of all errors that the search raises on purpose."""


class CapacityError(SearchError):
    """The requested slots do not fit on the machine or cluster."""


class PreflightError(SearchError):
    """Nodes of the cluster differ where they must not, or lack files or GPUs that the study needs."""


class SlotsLost(SearchError):
    """No slot could be started or kept."""


class SettingsIgnored(SearchError):
    """A worker trained with other settings than were suggested: no result of the study can be trusted."""


class RecordLost(SearchError):
    """The record could not be written while the study ran; what was written before is intact."""


class StudyError(SearchError):
    """A results folder is missing or damaged, or belongs to another study."""


class ClusterError(SearchError):
    """A cluster cannot be reached, refuses the token, or has no such study."""
