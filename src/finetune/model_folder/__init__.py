"""Write, load and use model folders. A model folder holds one trained model with everything needed to use it.

Its files are `model.safetensors` (all weights), `model.yaml` (description and metrics) and `README.md` (a
short model card). There are no pickles, so a folder from a stranger can be loaded safely.
"""

from finetune.model_folder.files import copy
from finetune.model_folder.predicting import answers, find_images, predict
from finetune.model_folder.reading import Model, load
from finetune.model_folder.writing import describe, measure, release, write

__all__ = [
    "Model",
    "answers",
    "copy",
    "describe",
    "find_images",
    "load",
    "measure",
    "predict",
    "release",
    "write",
]
