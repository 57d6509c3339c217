"""Damaged, empty, foreign and older records: each is one line wherever it is read, and stays as it is."""

import os
import random
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from search.cluster import status
from search.errors import StudyError
from search.record import reader
from search.record.study_folder import StudyFolder
from tests.written import Make, call, everything

ROOT = Path(__file__).parents[1]


def unreadable(folder: StudyFolder, neighbour: StudyFolder, capsys: pytest.CaptureFixture[str]) -> str:
    """Hold every command to one line about a record that cannot be read, and return it."""
    before = everything(folder.root)
    rows = {row.study: row for row in status.in_folder(folder.root.parent)}
    assert rows[neighbour.root.name].state == "interrupted"
    row = rows[folder.root.name]
    assert (row.state, bool(row.reason)) == ("unreadable", True)
    for words in (
        ("results", folder.root),
        ("export", folder.root, "--to", folder.root.parent / "model"),
        ("resume", folder.root),
    ):
        capsys.readouterr()
        assert call(*words) == 2
        said = capsys.readouterr()
        # Lines about phases may stand before it.
        assert said.err.endswith(f"error: {row.reason}\n")
        assert said.err.count("error:") == 1
        assert said.out == ""
    assert everything(folder.root) == before
    assert row.reason is not None
    return row.reason


def drop(*tables: str) -> str:
    return ";".join(f"drop table {table}" for table in tables)


DAMAGES = {
    "an empty file": b"",
    "a file of another kind": b"\x89PNG" * 999,
    "file is not a database": b"SQLite format 3\0" + b"\xff" * 4080,
    "no such table": drop("trials"),
    "no such table: studies": drop("studies"),
    "no such column": "alter table trials rename column state to condition",
    "no study": "delete from studies",
    "another version": "update alembic_version set version_num = 'v9.9.9'",
    "JSON": "update trial_user_attributes set value_json = '{' where key = 'params'",
    "trial-0000: ": """update trial_user_attributes set value_json = '{"best": 3}' where key = 'metrics'""",
    "params": "update trial_user_attributes set value_json = '[1]' where key = 'params'",
    "history": "update trial_user_attributes set value_json = 'null' where key = 'history'",
    "epochs": """update trial_user_attributes set value_json = '"many"' where key = 'epochs'""",
    "seconds": "update study_user_attributes set value_json = '{}' where key = 'seconds'",
    "provenance": "update study_user_attributes set value_json = '[]' where key = 'provenance'",
    "state": "update study_user_attributes set value_json = '[]' where key = 'state'",
    "KeyError": "update trial_params set distribution_json = '{}'",
    "got": "update trials set state = 'PAUSED'",
}


@pytest.mark.parametrize(("words", "damage"), DAMAGES.items())
def test_a_record_that_cannot_be_read_is_one_line_and_stays_as_it_is(
    written: Make, tmp_path: Path, words: str, damage: str | bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = written(tmp_path)
    if isinstance(damage, bytes):
        folder.database.write_bytes(damage)
    else:
        with closing(sqlite3.connect(folder.database)) as database:
            database.executescript(damage)
    assert words in unreadable(folder, written(tmp_path, "sound"), capsys)


def test_a_database_of_something_else_gets_no_table_of_ours(
    written: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = written(tmp_path)
    folder.database.unlink()
    with closing(sqlite3.connect(folder.database)) as database:
        database.executescript("create table recipes (name)")
    assert "no such table" in unreadable(folder, written(tmp_path, "sound"), capsys)


def test_something_that_is_no_file_is_not_waited_for(
    written: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = written(tmp_path)
    folder.database.unlink()
    os.mkfifo(folder.database)
    assert "must be a file" in unreadable(folder, written(tmp_path, "sound"), capsys)


def test_a_record_without_a_version_of_its_tables_or_with_few_facts_is_read(
    written: Make, tmp_path: Path
) -> None:
    """Facts that a later version adds are missing from the records of an earlier one."""
    folder = written(tmp_path)
    with closing(sqlite3.connect(folder.database)) as database:
        database.executescript("delete from trial_user_attributes; delete from study_user_attributes")
        database.executescript(drop("alembic_version"))
    record = reader.read_study(folder)
    assert [trial.state for trial in record.trials] == ["COMPLETE"] * 6
    assert call("results", folder.root) == 0


@pytest.mark.thorough
def test_damage_anywhere_is_read_over_or_told_and_nothing_else(written: Make, tmp_path: Path) -> None:
    folder = written(tmp_path)
    whole = folder.database.read_bytes()
    chance = random.Random(0)

    def flipped(count: int) -> bytes:
        damaged = bytearray(whole)
        for _ in range(count):
            damaged[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        return bytes(damaged)

    def blanked() -> bytes:
        start = chance.randrange(len(whole))
        return whole[:start] + bytes(512) + whole[start + 512 :]

    damages = [flipped(1) for _ in range(40)] + [flipped(30) for _ in range(40)]
    damages += [blanked() for _ in range(30)]
    damages += [whole[: chance.randrange(len(whole))] for _ in range(20)]
    damages += [bytes(size) + whole[size:] for size in (1, 16, 24, 100, 4096)]
    damages += [whole[:at] + bytes([value]) + whole[at + 1 :] for at in (18, 19) for value in (0, 1, 2, 9)]
    told = 0
    for damaged in damages:
        folder.database.write_bytes(damaged)
        before = everything(tmp_path)
        try:
            reader.read_study(folder)
        except StudyError:
            told += 1
        assert everything(tmp_path) == before
    assert told > len(damages) / 3
