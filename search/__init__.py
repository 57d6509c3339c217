"""Search how best to transfer a pretrained image classifier to images of your own.

import search
record = search.run("./flowers", trials=24)
print(record.best)
"""

from typing import Any


def run(config: Any, **options: Any) -> Any:
    """Run a study and return its `StudyRecord`.

    Args:
        config: a folder of images or its URL, the path of a config file, or a `StudyConfig`.
        **options: any key of any section (`trials=10, backbone="vgg16"`), or a whole section. They take
            precedence over a config file, and are not allowed with a `StudyConfig`.

    Raises:
        ConfigErrors: with every mistake.
        FinetuneError, SearchError: the error that stopped the study.
    """
    # These imports are here so that `import search` costs nothing in the processes that run trials.
    import os

    from finetune.disk.filesystems import is_url
    from search.config import config_file
    from search.config.problems import ConfigErrors, Place, Problem
    from search.config.study import StudyConfig, overrides
    from search.driver import runner

    if isinstance(config, StudyConfig):
        if options:
            text = f"{', '.join(options)}: must stand in the StudyConfig that is given, got options beside it"
            raise ConfigErrors([Problem(Place(), f"{text}. Use `config.model_copy`, or a file or folder.")])
        return runner.run(config)
    path = os.fspath(config)
    if is_url(path) or os.path.isdir(path):
        return runner.run(StudyConfig.from_folder(path, **options))
    return runner.run(config_file.load(path, overrides(options)))
