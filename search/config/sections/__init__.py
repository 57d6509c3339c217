"""The sections of a config file, one module for each: the meaning, values and default of every key."""

from search.config.sections.data import Data, Images, Source
from search.config.sections.features import Features
from search.config.sections.model import RANDOM_WEIGHTS, Model, Pretraining, is_weights_file
from search.config.sections.paths import FilePath
from search.config.sections.privacy import Privacy
from search.config.sections.resources import Resources
from search.config.sections.space import SpaceSection
from search.config.sections.stopping import EarlyStopping
from search.config.sections.study import EXACT, Study
from search.config.sections.verdict import Verdict
from search.config.setting import Setting, declared

SETTINGS: dict[str, Setting] = {**declared(SpaceSection), **declared(Model), **declared(Data)}
"""All searched settings, by name."""
DATA_FIELDS = ("batch_size", "image_size", "crop_scale", "horizontal_flip", "augment")
"""Those that are fields of `DataSettings`."""

__all__ = [
    "DATA_FIELDS",
    "EXACT",
    "RANDOM_WEIGHTS",
    "SETTINGS",
    "Data",
    "EarlyStopping",
    "Features",
    "FilePath",
    "Images",
    "Model",
    "Pretraining",
    "Privacy",
    "Resources",
    "Source",
    "SpaceSection",
    "Study",
    "Verdict",
    "is_weights_file",
]
