"""Decide what to try: config, space, sampler, trials, slots, record.

import search
record = search.run("./flowers", trials=24)
print(record.best)
"""

from typing import Any


def run(config: Any, **options: Any) -> Any:
    """Run a study and return its `StudyRecord`.

    Args:
        config: a folder of images or its URL, the path of a config file, or a `StudyConfig`.
        **options: for a folder, any key of any section (`trials=10, backbone="vgg16"`).

    Raises:
        ConfigErrors: with every mistake.
        FinetuneError, SearchError: what stopped the study.
    """
    # Imported here so that `import search` costs nothing in the processes that run trials.
    import os

    from finetune.filesystems import is_url
    from search import config_file, runner
    from search.study import StudyConfig

    if not isinstance(config, StudyConfig):
        path = os.fspath(config)
        is_images = is_url(path) or os.path.isdir(path)
        config = StudyConfig.from_folder(path, **options) if is_images else config_file.load(path)
    return runner.run(config)
