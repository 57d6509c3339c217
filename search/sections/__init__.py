"""The sections of a config file, a module for each: what a key means, which values it takes, its default."""

from search.sections.data import Data, Images, Source
from search.sections.features import Features
from search.sections.model import RANDOM_WEIGHTS, Model, Pretraining, is_weights_file
from search.sections.paths import FilePath
from search.sections.resources import Resources
from search.sections.space import SpaceSection
from search.sections.stopping import EarlyStopping
from search.sections.study import Study

__all__ = [
    "RANDOM_WEIGHTS",
    "Data",
    "EarlyStopping",
    "Features",
    "FilePath",
    "Images",
    "Model",
    "Pretraining",
    "Resources",
    "Source",
    "SpaceSection",
    "Study",
    "is_weights_file",
]
