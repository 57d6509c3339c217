"""What files may hold: configs, manifests, lists, weights, model folders and records that are wrong."""

import io
import json
import pickle
import sqlite3
import struct
import tarfile
import zipfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file

from search.config.study import StudyConfig
from tests.bad_input.places import config

Words = Callable[[Path], list[str]]
"""Puts a case into a folder, in which images, model and study are sound, and returns the command's words."""

YAMLS: dict[str, str | bytes] = {
    "a tab": "study:\n\tname: s\n",
    "an open bracket": "study: [",
    "an open quote": "study: {name: 's}",
    "a list at the top": "- study\n",
    "a number at the top": "3\n",
    "nothing": "",
    "a comment": "# nothing\n",
    "null": "null\n",
    "a tag of Python": "study: !!python/object/apply:os.system ['touch canary']\n",
    "a tag on a list": "study: !!set [a]\n",
    "a tag of binary": "study: {name: !!binary aGVsbG8=}\n",
    "an unknown tag": "study: !mine {name: s}\n",
    "a key twice": "study: {name: s}\nstudy: {name: t}\n",
    "a key twice inside": "study: {name: s, name: t}\n",
    "a list as a key": "study: {[a, b]: c}\n",
    "an alias of nothing": "study: *none\n",
    "a circle of aliases": "study: &a {name: *a}\n",
    "a bomb of aliases": "a: &a [x, x, x, x, x, x, x, x, x]\n"
    + "".join(f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(8)),
    "merged keys": "x: &x {name: s}\nstudy: {<<: *x}\n",
    "two documents": "study: {name: s}\n---\nstudy: {name: t}\n",
    "a directive": "%YAML 3.0\n---\nstudy: {name: s}\n",
    "a control character": "study: {name: 'a\x07b'}\n",
    "an escape": 'study: {name: "\\e[31mred"}\n',
    "UTF-16": "study: {name: s}\n".encode("utf-16"),
    "Latin-1": "study: {name: café}\n".encode("latin-1"),
    "a null byte": b"study: {name: s\0}\n",
    "deep brackets": "study: " + "[" * 3000 + "]" * 3000 + "\n",
    "deep mappings": "study: " + "{a: " * 1500 + "1" + "}" * 1500 + "\n",
    "deep indents": "".join(" " * i + "a:\n" for i in range(600)),
    "a long key": f"{'k' * 100_000}: 1\n",
    "a long value": f"study: {{name: {'v' * 100_000}}}\n",
    "a long number": f"study: {{name: s, trials: {'9' * 5000}}}\n",
    "a number in base 60": "study: {name: s, trials: 1:30}\n",
    "an octal number": "study: {name: s, seed: 010}\n",
    "a date": "study: {name: 2026-11-28}\n",
    "infinity": "study: {name: s, trials: .inf}\n",
    "not a number": "study: {name: s, trials: .nan}\n",
    "yes": "study: {name: yes}\n",
    "an unknown section": "studie: {name: s}\n",
    "JSON cut off": '{"study": {"name": "s"',
    "XML": "<study><name>s</name></study>\n",
    "TOML": "[study]\nname = 's'\n",
    "an HTML page": "<!DOCTYPE html><html>Sign in</html>\n",
    "a private key": "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAA\n",
    "unicode lines": "study:\u2028  name: s\n",
    "right to left": "study: {name: '\u202eabc'}\n",
    "a class of words": "study: {name: s}\ndata: {classes: [yes, no, null, 1e3, 0x10]}\n",
}
VALUES: dict[str, Any] = {
    "a mapping": {"min": 1, "max": 2},
    "a negative number": -7,
    "infinity": float("inf"),
    "an escape": "\x1b[2J",
}


def every_key() -> list[str]:
    """Return every key of a config as `section.key`."""
    found = []
    for section, field in StudyConfig.model_fields.items():
        inner = getattr(field.annotation, "model_fields", None)
        found += [section] if inner is None else [f"{section}.{name}" for name in inner]
    return found


def with_value(path: str, value: Any) -> Words:
    """Return what checks a config that has a value at a key."""

    def put(place: Path) -> list[str]:
        file = Path(config(place))
        values = yaml.safe_load(file.read_text())
        section, _, name = path.partition(".")
        if name:
            values.setdefault(section, {})[name] = value
        else:
            values[section] = value
        file.write_text(yaml.safe_dump(values))
        return ["load", str(file)]

    return put


def with_text(content: str | bytes) -> Words:
    """Return what checks a config file with this content."""

    def put(place: Path) -> list[str]:
        file = place / "study.yaml"
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        return ["load", str(file)]

    return put


MANIFESTS: dict[str, str | bytes] = {
    "no header": "a.png,cat\nb.png,dog\n",
    "no label": "image,split\na.png,train\n",
    "a column twice": "image,label,label\na.png,cat,dog\n",
    "an unknown split": "image,label,split\na.png,cat,trian\n",
    "a negative weight": "image,label,weight\na.png,cat,-1\n",
    "a weight of words": "image,label,weight\na.png,cat,much\n",
    "a weight of nan": "image,label,weight\na.png,cat,nan\n",
    "no image": "image,label\n,cat\n",
    "an image twice": "image,label\na.png,cat\na.png,dog\n",
    "an empty table": "image,label\n",
    "one class": "image,label\nimages/cat/0.png,cat\nimages/cat/1.png,cat\n",
    "too many cells": "image,label\na.png,cat,1,2,3\n",
    "too few cells": "image,label,split\na.png\n",
    "an open quote": 'image,label\n"a.png,cat\n',
    "a null byte": b"image,label\na\0.png,cat\n",
    "Latin-1": "image,label\ncafé.png,cat\n".encode("latin-1"),
    "UTF-16": "image,label\na.png,cat\n".encode("utf-16"),
    "escapes": "image,label\n\x1b[31m.png,\x1b[2J\n",
    "a formula": "image,label\n=HYPERLINK(1).png,=1+1\n",
    "a path upwards": "image,label\n../../../../etc/passwd,cat\n",
    "a device": "image,label\n/dev/zero,cat\n",
    "a folder": "image,label\nimages,cat\n",
    "a URL of nothing": "image,label\nhttp://127.0.0.1:9/a.png,cat\n",
    "an unknown protocol": "image,label\ngopher://x/a.png,cat\n",
    "a protocol that needs a package": "image,label\ns3://bucket/a.png,cat\n",
    "a broken URL": "image,label\nhttp://[::1/a.png,cat\n",
    "a python protocol": "image,label\nreference://x,cat\n",
    "a long cell": f"image,label\n{'a' * 200_000}.png,cat\n",
    "a long line": "image,label" + ",x" * 50_000 + "\n",
    "a text": "just text\n",
}


def with_manifest(content: str | bytes) -> Words:
    """Return what checks a manifest with this content."""

    def put(place: Path) -> list[str]:
        file = place / "m.csv"
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        return ["check", config(place, data={"kind": "manifest", "path": str(file)})]

    return put


class Canary:
    """Unpickled, it would make a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, ("canary", "w"))


def header(told: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """Return a safetensors file with this header, whose length may be another than is told."""
    text = told if isinstance(told, bytes) else json.dumps(told).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(**changes: Any) -> dict[str, Any]:
    return {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes}


def tarred() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        member = tarfile.TarInfo("../canary")
        member.size = 3
        archive.addfile(member, io.BytesIO(b"abc"))
    return file.getvalue()


def zipped(name: str, content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, content)
    return file.getvalue()


def saved(value: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


WEIGHTS: dict[str, bytes] = {
    "x.pth a pickle that opens a file": pickle.dumps(Canary()),
    "x.pth a pickle of a function": pickle.dumps(print),
    "x.pth torch.save of a call": saved({"w": torch.zeros(2)}).replace(
        b"_rebuild_tensor_v2", b"_rebuild_tensor_v9"
    ),
    "x.pth a pickle in a zip": zipped("archive/data.pkl", pickle.dumps(Canary())),
    "x.pth a zip that goes upwards": zipped("../../canary", b"abc"),
    "x.pth a tar that goes upwards": tarred(),
    "x.pth text": b"weights\n",
    "x.pth nothing": b"",
    "x.pth a page": b"<!DOCTYPE html><html>404</html>",
    "x.pth an empty dict": saved({}),
    "x.pth a list": saved([1, 2]),
    "x.pth a number": saved(3),
    "x.pth one tensor": saved(torch.zeros(2)),
    "x.pth other names": saved({"a": torch.zeros(2)}),
    "x.pth numbers as names": saved({1: torch.zeros(2)}),
    "x.pth names with escapes": saved({"\x1b[31mred\n": torch.zeros(2)}),
    "x.pth a long name": saved({"n" * 100_000: torch.zeros(2)}),
    "x.pth deep": saved({"model": {"model": {"model": {"model": {"w": torch.zeros(2)}}}}}),
    "x.pth no numbers": saved({"w": torch.full((2,), float("nan"))}),
    "x.safetensors text": b"weights\n",
    "x.safetensors nothing": b"",
    "x.safetensors a pickle": pickle.dumps(Canary()),
    "x.safetensors a huge header": header({}, length=2**62),
    "x.safetensors a header of 2 GB": header({}, length=2**31),
    "x.safetensors an empty header": header(b""),
    "x.safetensors no JSON": header(b"{'w': 1}"),
    "x.safetensors a list": header([]),
    "x.safetensors no tensor": header({}),
    "x.safetensors no offsets": header({"w": {"dtype": "F32", "shape": [2]}}, bytes(8)),
    "x.safetensors offsets behind the end": header(tensor(data_offsets=[0, 8]), bytes(4)),
    "x.safetensors negative offsets": header(tensor(data_offsets=[-8, 0]), bytes(8)),
    "x.safetensors turned offsets": header(tensor(data_offsets=[8, 0]), bytes(8)),
    "x.safetensors a hole": header(tensor(data_offsets=[8, 16]), bytes(16)),
    "x.safetensors an overlap": header(tensor() | {"v": tensor()["w"]}, bytes(8)),
    "x.safetensors a negative shape": header(tensor(shape=[-2]), bytes(8)),
    "x.safetensors a huge shape": header(tensor(shape=[2**40, 2**40]), bytes(8)),
    "x.safetensors another shape": header(tensor(shape=[3]), bytes(8)),
    "x.safetensors an unknown type": header(tensor(dtype="F33"), bytes(8)),
    "x.safetensors metadata that is no text": header({"__metadata__": {"a": 1}} | tensor(), bytes(8)),
    "x.safetensors a name twice": header(
        b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
        bytes(8),
    ),
    "x.safetensors deep JSON": header(b"[" * 100_000 + b"]" * 100_000),
    "x.safetensors other names": header(tensor(), bytes(8)),
    "x.safetensors names with escapes": header({"\x1b[31mred": tensor()["w"]}, bytes(8)),
}


def with_weights(name: str, content: bytes) -> Words:
    """Return what checks a config with a file of weights."""

    def put(place: Path) -> list[str]:
        (place / name).write_bytes(content)
        return ["check", config(place, model={"weights": str(place / name)})]

    return put


MODEL_FACTS: dict[str, Any] = {
    "format": [999, -1, "two", None, [], 2.5],
    "classes": [[], None, "cat", [1, 2], ["cat"] * 3, ["cat", None], {"a": 1}],
    "backbone": ["resnet81", None, 3, "../x", "os.system", "\x1b[31m"],
    "strategy": ["steal", None, 7, []],
    "frozen_layers": ["many", -5, None, 10**9],
    "head": [
        None,
        {},
        {"size": -1, "dropout": 0.0},
        {"size": 0, "dropout": 9},
        {"size": "big", "dropout": 0.0},
    ],
    "source": [None, {}, {"classes": -1}, {"classes": 10**12}, {"classes": "many"}],
    "preprocessing": [None, {}, [], {"image_size": 0, "mean": [0] * 3, "std": [1] * 3, "whole_image": False}],
    "calibration": [{"temperature": float("nan")}, {"temperature": -1.0}, {"temperature": "warm"}, 3],
    "provenance": [None, [], {"model_sha256": "0" * 64}, {"model_sha256": 7}],
}


def with_fact(name: str, value: Any) -> Words:
    """Return what asks a model for predictions whose model.yaml has another value."""

    def put(place: Path) -> list[str]:
        file = place / "model" / "model.yaml"
        facts = yaml.safe_load(file.read_text()) | {name: value}
        file.write_text(yaml.safe_dump(facts))
        return ["predict", str(place / "model"), str(place / "images")]

    return put


def with_model_file(name: str, content: bytes) -> Words:
    """Return what asks a model for predictions, one of whose files is another."""

    def put(place: Path) -> list[str]:
        (place / "model" / name).write_bytes(content)
        return ["predict", str(place / "model"), str(place / "images")]

    return put


def without_numbers(place: Path) -> list[str]:
    file = place / "model" / "model.safetensors"
    save_file({name: one * float("nan") for name, one in load_file(file).items()}, file)
    return ["predict", str(place / "model"), str(place / "images")]


RECORDS: dict[str, str | bytes] = {
    "nothing": b"",
    "text": b"trials\n",
    "a picture": b"\x89PNG\r\n\x1a\n" * 200,
    "a header only": b"SQLite format 3\0",
    "random pages": b"SQLite format 3\0" + bytes(range(256)) * 32,
    "no table": "drop table trials",
    "no study": "delete from studies",
    "another version": "update alembic_version set version_num = 'v9'",
    "params that are a list": "update trial_user_attributes set value_json='[1]' where key='params'",
    "params that are no JSON": "update trial_user_attributes set value_json='{' where key='params'",
    "a history that is null": "update trial_user_attributes set value_json='null' where key='history'",
    "metrics that are numbers": "update trial_user_attributes set value_json='3' where key='metrics'",
    "epochs that are words": """update trial_user_attributes set value_json='"x"' where key='epochs'""",
    "a state of none": "update trials set state='PAUSED'",
    "numbers that are doubled": "update trials set number=0",
    "numbers that are null": "update trials set number=null",
    "seconds that are a mapping": "update study_user_attributes set value_json='{}' where key='seconds'",
    "a provenance that is a list": "update study_user_attributes set value_json='[]' where key='provenance'",
    "a state that is a list": "update study_user_attributes set value_json='[]' where key='state'",
    "a foreign table": "drop table studies; create table recipes (name)",
    "values that are words": "update trial_values set value='x'",
    "text with escapes": """update trial_user_attributes set value_json='"\x1b[2J"' where key='params'""",
}


def with_record(damage: str | bytes, *words: str) -> Words:
    """Return what reads a study whose record is damaged."""

    def put(place: Path) -> list[str]:
        file = place / "study" / "optuna.db"
        if isinstance(damage, bytes):
            file.write_bytes(damage)
        else:
            with closing(sqlite3.connect(file)) as database:
                database.executescript(damage)
                database.commit()
        return [words[0], str(place / "study"), *(word.format(place=place) for word in words[1:])]

    return put


LINES: tuple[list[str], ...] = (
    ["frobnicate"],
    ["run"],
    ["run", "--data"],
    ["run", "--trials", "many", "--data", "images"],
    ["run", "--trials", "-1", "--data", "images"],
    ["run", "--trials", "0", "--data", "images"],
    ["run", "--budget", "10", "--data", "images"],
    ["run", "--budget", "-5m", "--data", "images"],
    ["run", "--budget", "5usd", "--data", "images", "--weights", "none"],
    ["run", "--budget", "1e9gpuh", "--data", "nowhere"],
    ["run", "--backbone", "resnet81", "--data", "images"],
    ["run", "--backbone", "", "--data", "images"],
    ["run", "--weights", "none.pth", "--data", "images"],
    ["run", "--weights", "IMAGENET9", "--data", "images"],
    ["run", "study.yaml", "--data", "images"],
    ["run", "study.yaml", "--trials", "3"],
    ["run", "study.yaml", "--set", "study.trials"],
    ["run", "study.yaml", "--set", "=3"],
    ["run", "study.yaml", "--set", "study..trials=3"],
    ["run", "study.yaml", "--set", "study.trials=["],
    ["run", "study.yaml", "--set", "study.name.x=3"],
    ["run", "study.yaml", "--set", "study.trails=3"],
    ["run", "study.yaml", "--only-trial", "0", "--continue"],
    ["run", "study.yaml", "--only-trial", "99"],
    ["run", "study.yaml", "--only-trial", "-1"],
    ["check", "study.yaml", "--time", "--nope"],
    ["results", "study", "--history"],
    ["results", "study", "--address", "nowhere"],
    ["results", "study", "--address", "http://127.0.0.1:9"],
    ["results", "study", "--address", "a", "--cluster", "b"],
    ["resume", "study", "--extend", "some"],
    ["resume", "study", "--extend", "-3"],
    ["resume", "study", "--extend", "0"],
    ["resume", "study", "--extend", "10usd"],
    ["resume", "study", "--wait"],
    ["export", "study"],
    ["export", "study", "--to", "out", "--trial", "99"],
    ["export", "study", "--to", "out", "--trial", "-1"],
    ["export", "study", "--to", "out", "--trial", "0"],
    ["export", "study", "--to", "study"],
    ["export", "model", "--to", "out", "--format", "pickle"],
    ["predict", "model"],
    ["predict", "model", "images", "--top", "0"],
    ["predict", "model", "images", "--top", "x"],
    ["explain", "model", "images", "--method", "guess"],
    ["explain", "model", "images/cat/0.png", "--class", "zebra", "--to", "out"],
    ["explain", "model", "nowhere", "--to", "out"],
    ["serve", "model", "--port", "99999"],
    ["serve", "model", "--port", "-1"],
    ["serve", "model", "--host", "no such host", "--alone"],
    ["serve", "model", "--batch", "0"],
    ["blocks", "resnet81"],
    ["blocks", "resnet18", "--image-size", "0"],
    ["blocks", "vit_b_16", "--image-size", "33"],
    ["blocks", "\x1b[31m"],
    ["cache", "--dir", "images", "--clear"],
    ["submit", "study.yaml", "--address", "http://127.0.0.1:9"],
    ["stop", "s", "--address", "not an address"],
    ["logs", "s", "--address", "ftp://x"],
    ["status", "--cluster", "none.yaml"],
)
"""Command lines in a folder with images, model, study and study.yaml."""
