"""What can go wrong while a study runs.

SearchError
├── CapacityError    the slots asked for do not fit on the machine or cluster
├── PreflightError   nodes of the cluster differ, or do not see what a study needs
├── SlotsLost        no slot could be started or kept
├── SettingsIgnored  a worker trained with other settings than were suggested
├── RecordLost       the record could not be written while the study ran
├── StudyError       a results folder is missing, damaged or of another study
└── ClusterError     a cluster cannot be reached, refuses the token, or has no such study

Config mistakes are `ConfigErrors` (config_file.py): many at once, with positions.
"""


class SearchError(Exception):
    """Base of every error the search raises on purpose."""


class CapacityError(SearchError):
    """The slots asked for do not fit on the machine or cluster."""


class PreflightError(SearchError):
    """Nodes of the cluster differ in what must be the same, or do not see what a study needs."""


class SlotsLost(SearchError):
    """No slot could be started or kept."""


class SettingsIgnored(SearchError):
    """A worker trained with other settings than were suggested: no result of the study can be trusted."""


class RecordLost(SearchError):
    """The record could not be written while the study ran; what it has is whole."""


class StudyError(SearchError):
    """A results folder is missing, damaged or of another study."""


class ClusterError(SearchError):
    """A cluster cannot be reached, refuses the token, or has no such study."""
