"""Things that a path may name, and every argument and key that takes a path."""

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

Put = Callable[[Path], str]
"""Makes something in a folder and returns its path."""


def missing(place: Path) -> str:
    return str(place / "none" / "x")


def a_folder(place: Path) -> str:
    (place / "folder" / "inner").mkdir(parents=True)
    return str(place / "folder")


def a_file_as_folder(place: Path) -> str:
    (place / "file").write_text("text")
    return str(place / "file" / "x")


def text(place: Path) -> str:
    (place / "text").write_text("just text\n")
    return str(place / "text")


def empty(place: Path) -> str:
    (place / "empty").touch()
    return str(place / "empty")


def binary(place: Path) -> str:
    (place / "binary").write_bytes(bytes(range(256)) * 4)
    return str(place / "binary")


def fifo(place: Path) -> str:
    os.mkfifo(place / "fifo")
    return str(place / "fifo")


def unix_socket(place: Path) -> str:
    name = str(place / "sock")
    with socket.socket(socket.AF_UNIX) as one:
        here = os.getcwd()
        os.chdir(place)
        try:
            one.bind("sock")
        finally:
            os.chdir(here)
    return name


def dangling_link(place: Path) -> str:
    (place / "link").symlink_to(place / "nowhere")
    return str(place / "link")


def circle(place: Path) -> str:
    (place / "a").symlink_to(place / "b")
    (place / "b").symlink_to(place / "a")
    return str(place / "a")


def long_name(place: Path) -> str:
    return str(place / ("n" * 300))


def long_path(place: Path) -> str:
    return str(place) + "/d" * 3000


def null_byte(place: Path) -> str:
    return str(place / "nul\0byte")


def escapes(place: Path) -> str:
    return str(place / "red\x1b[31m\nerror: done")


def not_utf8(place: Path) -> str:
    return os.fsdecode(bytes(place / "caf") + b"\xe9")


def zero(place: Path) -> str:
    return "/dev/zero"


def of_the_kernel(place: Path) -> str:
    return "/proc/self/mem"


def nothing(place: Path) -> str:
    return ""


PLACES: tuple[Put, ...] = (
    *(missing, a_folder, a_file_as_folder, text, empty, binary, fifo, unix_socket, dangling_link, circle),
    *(long_name, long_path, null_byte, escapes, not_utf8, zero, of_the_kernel, nothing),
)


def config(place: Path, **sections: dict[str, Any]) -> str:
    """Write a config that is right but for these sections, and return its path."""
    values: dict[str, Any] = {
        "study": {"name": "s", "trials": 3},
        "data": {"path": str(place / "images"), "image_size": 32},
        "model": {"backbone": "squeezenet1_1", "weights": "none"},
        "space": {"strategy": "replace"},
        "resources": {"slots": 1},
        "results": str(place / "results"),
    }
    for name, keys in sections.items():
        values[name] = values[name] | keys if isinstance(keys, dict) else keys
    (place / "study.yaml").write_text(json.dumps(values))
    return str(place / "study.yaml")


def key(section: str, name: str, **others: Any) -> Callable[[Path, str], list[str]]:
    """Return what checks a config with a path as the value of a key."""
    return lambda place, path: ["check", config(place, **{section: {name: path, **others}})]


USES: dict[str, Callable[[Path, str], list[str]]] = {
    "check CONFIG": lambda place, path: ["check", path],
    "run CONFIG": lambda place, path: ["run", path],
    "run --data": lambda place, path: ["run", "--data", path, "--weights", "none"],
    "check --suspects": lambda place, path: ["check", config(place), "--suspects", path],
    "data.path": key("data", "path"),
    "data.path of a manifest": key("data", "path", kind="manifest"),
    "data.exclude": key("data", "exclude"),
    "model.weights": key("model", "weights"),
    "cache --dir": lambda place, path: ["cache", "--dir", path],
    "results": lambda place, path: ["run", config(place, results=path), "--json"],  # type: ignore[arg-type]
    "results DIR": lambda place, path: ["results", path],
    "resume DIR": lambda place, path: ["resume", path],
    "report DIR": lambda place, path: ["report", path],
    "report --to": lambda place, path: ["report", str(place / "study"), "--to", path],
    "export DIR": lambda place, path: ["export", path, "--to", str(place / "out")],
    "export --to": lambda place, path: ["export", str(place / "model"), "--to", path],
    "predict MODEL_DIR": lambda place, path: ["predict", path, str(place / "images")],
    "predict IMAGE": lambda place, path: ["predict", str(place / "model"), path],
    "predict --csv": lambda place, path: [
        "predict",
        str(place / "model"),
        str(place / "images"),
        "--csv",
        path,
    ],
    "predict --parquet": lambda place, path: [
        *("predict", str(place / "model"), str(place / "images"), "--parquet", path)
    ],
    "explain MODEL_DIR": lambda place, path: ["explain", path, str(place / "images/cat/0.png")],
    "explain --to": lambda place, path: [
        "explain",
        str(place / "model"),
        str(place / "images/cat/0.png"),
        "--to",
        path,
    ],
    "serve MODEL_DIR": lambda place, path: ["serve", path, "--alone"],
    "status --results": lambda place, path: ["status", "--results", path],
    "cache --clear --dir": lambda place, path: ["cache", "--clear", "--dir", path],
    "logs --cluster": lambda place, path: ["logs", "s", "--cluster", path],
}
"""Commands with a path, by the name of the argument or key."""
