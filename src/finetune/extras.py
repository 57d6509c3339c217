"""Packages of extras, which a plain installation leaves out."""

import importlib.util
from collections.abc import Sequence

from finetune.errors import MissingPackage


def require(extra: str, where: str, modules: Sequence[str]) -> None:
    """Check that the packages of an extra are installed, without importing them.

    Args:
        extra: name of the extra in pyproject.toml.
        where: what needs it, for the message.
        modules: names of the modules.

    Raises:
        MissingPackage: with the command that installs them.
    """
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingPackage(
            f"{where}: needs the package{'s'[: len(missing) > 1]} {', '.join(modules)}, got no "
            f"{', no '.join(missing)}. Install with `pip install 'transfer-search[{extra}]'`."
        )
