"""Errors of the system and of parsers that no check foresaw, as one line in the house form."""

import sqlite3

import yaml


def line_of(error: BaseException) -> str | None:
    """Return the line that the user gets for an error; None for a bug, which needs its traceback."""
    match error:
        case OSError():
            where = error.filename if error.filename is not None else "a file"
            got = (error.strerror or str(error) or type(error).__name__).lower()
            fix = "See to the path, its permissions and the disk, then run the command again."
            return f"{where}: must be there for this command to read or write, got {got}. {fix}"
        case ValueError() if "null byte" in str(error) or "null character" in str(error):
            return "path: must name a file, got one with a null byte. Check the path."
        case RuntimeError() if "Symlink loop" in str(error):
            return f"path: must name a file, got a {str(error)[0].lower()}{str(error)[1:]}. Check the link."
        case UnicodeError():
            return f"text: must be UTF-8, got {error}. Save the file as UTF-8, or rename it."
        case RecursionError():
            return "input: must be nested less deeply than Python's stack, got more. Write it flat."
        case MemoryError():
            return "memory: must hold what the command reads, got too little. Free some, or give it less."
        case sqlite3.Error():
            return f"optuna.db: must be readable, got {error}. Restore it from a copy."
        case yaml.YAMLError():
            return f"YAML: must be well formed, got {' '.join(str(error).split())}. Correct the file."
    return None
