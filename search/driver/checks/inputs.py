"""Check a study's inputs before Ray is started; used by `check` and `run`, so that both refuse the same."""

import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from finetune import metrics
from finetune.datasets import catalog
from finetune.datasets.catalog import Catalog
from finetune.disk import filesystems
from finetune.errors import DataError, WeightsError
from search.config import resolve
from search.config.sections import Pretraining
from search.config.study import StudyConfig
from search.errors import StudyError
from search.slots import capacity
from search.suggest.space import Space


def scan(config: StudyConfig, *, lenient: bool = False) -> Catalog:
    """List a study's images, and check that its metric, weight files and folders can be used.

    Args:
        config: the study's config.
        lenient: as in `finetune.datasets.catalog.scan`.

    Raises:
        DataError: the images, or those of a source task, are not as the config says.
        WeightsError: a weights file cannot be read.
        StudyError: a folder to which the study writes is not writable.
    """
    _check_folders(config)
    images = catalog.scan(resolve.data_settings(config), lenient=lenient)
    metrics.check(config.study.metric, images.classes, (image.label for image in images.splits["val"]))
    _check_workers(config.resources.workers_per_trial, images)
    for location in resolve.weight_locations(config):
        _check_file(location)
    for backbone in config.backbones:
        if isinstance(config.model.weights_of(backbone), Pretraining):
            source_images(config, backbone)
    return images


def check_fit(config: StudyConfig) -> Callable[[], None]:
    """Start to check that local weights files fit their backbones, in another process.

    The check needs torch, whose import would delay this process.

    Returns:
        A function that waits for the answer, and raises a WeightsError if a file does not fit its backbone.
    """
    given = {name: config.model.weights_of(name) for name in config.backbones}
    local = set(resolve.weight_files(config))
    files = [(name, weights) for name, weights in given.items() if weights in local]
    if not files:
        return lambda: None
    asked, words = json.dumps([sys.path, files]), [sys.executable, "-c", _FIT]
    pool = ThreadPoolExecutor(1)
    looking = pool.submit(subprocess.run, words, input=asked, capture_output=True, text=True)
    pool.shutdown(wait=False)

    def judge() -> None:
        done = looking.result()
        # Any other failure there, such as a lack of memory, is left to the trials to report.
        if done.returncode == _MISFIT:
            raise WeightsError(str(done.stdout).strip())

    return judge


_MISFIT = 3
_FIT = f"""
import json, sys
sys.path[:], files = json.load(sys.stdin)
from finetune.model import weights
from finetune.errors import FinetuneError
from finetune.settings import WeightsSettings
try:
    for backbone, file in files:
        weights.describe(backbone, WeightsSettings(file=file))
except FinetuneError as error:
    print(error)
    sys.exit({_MISFIT})
"""


def source_images(config: StudyConfig, backbone: str) -> Catalog:
    """Return the images of the source task on which a backbone is to be pretrained.

    Raises:
        DataError: the images are not as the config says.
    """
    wanted = Space(config).weights(config.model.weights_of(backbone), config.least_image_size)
    assert wanted.source is not None
    return catalog.scan(wanted.source.data)


def _check_folders(config: StudyConfig) -> None:
    """Raise a StudyError if the results folder, or a cache folder on this machine, is not writable."""
    folders = {"results": (config.results, "--results DIR")}
    if capacity.is_here():
        cache = str(resolve.cache_dir())
        folders["the cache"] = (cache, "XDG_CACHE_HOME=DIR")
        folders["features.dir"] = (config.features.dir or cache, "--set features.dir=DIR")
    for what, (folder, fix) in folders.items():
        if (got := filesystems.not_writable(folder)) is not None:
            raise StudyError(f"{what}: the folder {folder} must be writable, got {got}. Choose with {fix}.")


def _check_workers(workers: int, images: Catalog) -> None:
    """Raise a DataError unless each split has at least one image for each worker of a trial."""
    for split, found in images.splits.items():
        if found and len(found) < workers:
            raise DataError(
                f"resources.workers_per_trial: must be at most the images of '{split}' ({len(found)}), "
                f"got {workers}. Lower it."
            )


def _check_file(location: str) -> None:
    """Raise a WeightsError unless the first byte of a path or URL can be read; the content is read later."""
    got = None if filesystems.is_url(location) else filesystems.not_a_file(location)
    if got is None:
        try:
            with filesystems.open_binary(location) as file:
                file.read(1)
        except Exception as error:  # each of fsspec's file systems has its own exceptions
            got = f"{type(error).__name__}: {error}"
    if got is not None:
        raise WeightsError(
            f"model.weights: {location} must be a readable file on every node, got {got}. Check the path."
        )
