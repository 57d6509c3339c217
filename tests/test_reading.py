"""Reading a study: no byte of its folder changes, wherever it lies, whoever writes it, whatever it holds."""

import contextlib
import hashlib
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from search import ledger, sampler, snapshot, status
from search.__main__ import app, guarded
from search.errors import StudyError
from search.layout import StudyFolder, write_text
from search.ledger import Ledger
from search.study import StudyConfig
from tests import mounts

ROOT = Path(__file__).parents[1]
WATCHDOG = 120
NOBODY = 65534


TRIALS = 6
Make = Callable[..., StudyFolder]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> StudyFolder:
    """A study that was interrupted after half of its trials."""
    folder = StudyFolder.create(tmp_path_factory.mktemp("results"), "pets")
    config = StudyConfig.from_dict(
        {
            "study": {"name": folder.root.name, "trials": 2 * TRIALS},
            "data": {"kind": "digits", "classes": ["0", "1"], "image_size": 32},
            "results": str(folder.root.parent),
        }
    )
    write_text(folder.config, config.to_yaml())
    book = Ledger(folder.database, mode="max", sampler=sampler.make("random", seed=0))
    for number in range(TRIALS):
        trial = book.ask()
        trial.suggest_float("learning_rate", 1e-4, 1e-1, log=True)
        book.suggested(trial.number, {"params": {"learning_rate": 0.01, "strategy": "fuse"}})
        epochs = [{"epoch": epoch, "val/accuracy": epoch / 10 + number / 100} for epoch in (1, 2, 3)]
        for epoch in epochs:
            book.report(trial.number, int(epoch["epoch"]), epoch["val/accuracy"])
        metrics = {"best": epochs[-1], "last": epochs[-1]}
        book.end(
            number,
            "COMPLETE",
            epochs[-1]["val/accuracy"],
            {"metrics": metrics, "epochs": 3, "history": epochs},
        )
    book.set_fact("state", "interrupted")
    book.set_fact("seconds", 3.5)
    book.set_fact("provenance", {"job": "pets-1"})
    book.close()
    return folder


@pytest.fixture
def study(model: StudyFolder) -> Callable[..., StudyFolder]:
    """Make a copy of the study in a folder of results."""

    def make(results: Path, name: str = "pets") -> StudyFolder:
        return StudyFolder(Path(shutil.copytree(model.root, results / name)))

    return make


def everything(folder: Path) -> dict[str, tuple[int, str]]:
    """Return each file and folder with its time of change and what it holds."""
    return {
        str(path.relative_to(folder)): (
            path.stat().st_mtime_ns,
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "",
        )
        for path in (folder, *folder.rglob("*"))
    }


def call(*words: object) -> int:
    return guarded(lambda: app([str(word) for word in words], prog_name="search", standalone_mode=False))


def closed(folder: StudyFolder) -> None:
    """Leave the study as its driver closed it."""
    assert not list(folder.root.glob("optuna.db-*"))


def killed(folder: StudyFolder) -> None:
    """Leave the study as a driver does that was killed: its last trials are in the log."""
    script = f"""
        import os, signal
        from pathlib import Path
        from search.ledger import Ledger
        from search.sampler import make
        book = Ledger(Path({str(folder.database)!r}), mode="max", sampler=make("random", seed=0))
        trial = book.ask()
        book.suggested(trial.number, {{"params": {{}}}})
        book.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], timeout=WATCHDOG)
    assert folder.root.joinpath("optuna.db-wal").stat().st_size


def copied(folder: StudyFolder) -> None:
    """Leave the study as somebody does who copied it without the index of its log."""
    killed(folder)
    folder.root.joinpath("optuna.db-shm").unlink()


def far(folder: StudyFolder) -> None:
    """Leave the study as it is on a network, without a write-ahead log."""
    with closing(sqlite3.connect(folder.database)) as database:
        database.execute("pragma journal_mode=delete")


def cut_off(folder: StudyFolder) -> None:
    """Leave the study as a driver on a network does that was killed while it wrote."""
    far(folder)
    script = f"""
        import os, signal, sqlite3
        database = sqlite3.connect({str(folder.database)!r}, isolation_level=None)
        database.execute("pragma cache_size=1")
        database.execute("begin immediate")
        database.execute("update trial_user_attributes set value_json = '7'")
        database.execute("update trial_params set param_value = 7")
        os.kill(os.getpid(), signal.SIGKILL)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], timeout=WATCHDOG)
    assert folder.root.joinpath("optuna.db-journal").stat().st_size


LEAVE = [closed, killed, copied, far, cut_off]


@pytest.mark.parametrize("leave", LEAVE)
def test_no_command_that_reads_changes_a_byte(
    study: Make, tmp_path: Path, leave: Callable[[StudyFolder], None], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = study(tmp_path)
    leave(folder)
    before = everything(tmp_path)
    assert call("results", folder.root) == 0
    assert call("results", folder.root, "--json", "--history") == 0
    assert call("status", "--results", tmp_path) == 0
    assert call("export", folder.root, "--to", tmp_path / "model", "--trial", "99") == 2
    assert "--trial must be one of 0 to" in capsys.readouterr().err
    trials, facts = ledger.read(folder.database)
    assert len(trials) == (7 if leave in (killed, copied) else 6)
    assert [len(trial.history) for trial in trials[:6]] == [3] * 6
    assert facts["seconds"] == 3.5
    assert not folder.is_held()
    assert everything(tmp_path) == before


def test_a_study_that_runs_is_read_without_changing_a_byte(study: Make, tmp_path: Path) -> None:
    folder = study(tmp_path)
    script = f"""
        import sys
        from pathlib import Path
        from filelock import FileLock
        from search.layout import StudyFolder
        from search.ledger import Ledger
        from search.sampler import make
        folder = StudyFolder(Path({str(folder.root)!r}))
        with FileLock(folder.lock):
            book = Ledger(folder.database, mode="max", sampler=make("random", seed=0))
            book.set_fact("state", "running")
            for line in sys.stdin:
                trial = book.ask()
                book.suggested(trial.number, {{"params": {{}}}})
                book.flush()
                print("written", flush=True)
    """
    driver = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert driver.stdin is not None
    assert driver.stdout is not None
    with driver:
        for count in (7, 8):
            driver.stdin.write("go on\n")
            driver.stdin.flush()
            assert driver.stdout.readline() == "written\n"
            before = everything(tmp_path)
            (row,) = status.in_folder(tmp_path)
            assert (row.state, row.running) == ("running", count - 6)
            assert len(ledger.read_study(folder).trials) == count
            assert everything(tmp_path) == before
        driver.stdin.close()
    assert not folder.is_held()
    assert len(ledger.read_study(folder).trials) == 8


@pytest.fixture
def open_to_all() -> Iterator[Path]:
    """A folder whose parents everybody may enter, as those of `tmp_path` are not."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755)
    shutil.rmtree(folder)


@pytest.mark.parametrize("leave", LEAVE)
def test_a_study_is_read_by_somebody_who_may_write_nothing(
    study: Make, open_to_all: Path, tmp_path: Path, leave: Callable[[StudyFolder], None]
) -> None:
    folder = study(open_to_all)
    leave(folder)
    shutil.copytree(open_to_all, tmp_path / "copy")
    for path in (*open_to_all.rglob("*"), open_to_all):
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = everything(open_to_all)
    script = f"""
        import os
        from pathlib import Path
        from search import status
        from search.__main__ import app, guarded
        def read(folder):
            assert guarded(lambda: app(["results", folder + "/pets"], standalone_mode=False)) == 0
            assert [row.state for row in status.in_folder(Path(folder))] == ["interrupted"]
        read({str(tmp_path / "copy")!r})  # loads what nobody else may load where Python is root's own
        if os.geteuid() == 0:  # whom no permission binds
            os.setgroups([])
            os.setegid({NOBODY})
            os.seteuid({NOBODY})
        try:
            open({str(folder.root / "new")!r}, "x")
        except PermissionError:
            print("bound")
        read({str(open_to_all)!r})
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}"},
        capture_output=True,
        text=True,
        timeout=WATCHDOG,
    )
    assert done.returncode == 0, done.stderr
    assert "\nbound\n" in done.stdout
    assert everything(open_to_all) == before


@pytest.mark.parametrize("leave", LEAVE)
def test_a_study_is_read_on_a_file_system_that_nobody_may_write(
    study: Make, tmp_path: Path, leave: Callable[[StudyFolder], None]
) -> None:
    folder = study(tmp_path)
    leave(folder)
    with mounts.read_only(folder.root, tmp_path / "mounted") as place:
        assert call("results", place) == 0
        assert status.of_record(ledger.read_study(StudyFolder(place))).done == TRIALS


@pytest.mark.parametrize("name", ["a%41", "what?mode=memory", "a#b", "{x}", "größer than", "a:b@c", "-n"])
def test_a_results_folder_may_have_any_name(study: Make, tmp_path: Path, name: str) -> None:
    results = tmp_path / name
    folder = study(results)
    killed(folder)
    assert len(ledger.read_study(folder).trials) == 7
    assert call("results", folder.root) == 0
    Ledger(folder.database, mode="max", sampler=sampler.make("random", seed=0)).close()
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert {path.name for path in folder.root.iterdir()} == {"study.yaml", "optuna.db"}
    assert len(ledger.read_study(folder).trials) == 7


def test_a_study_that_begins_while_it_is_read_is_read_as_it_was_or_is(
    study: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = study(tmp_path)
    copy = snapshot._copy
    books: list[Ledger] = []

    def begin_first(path: Path, options: str) -> sqlite3.Connection:
        memory = copy(path, options)
        if not books:
            books.append(Ledger(folder.database, mode="max", sampler=sampler.make("random", seed=0)))
            books[0].ask()
            books[0].suggested(6, {})
            books[0].flush()
        return memory

    monkeypatch.setattr(snapshot, "_copy", begin_first)
    assert len(ledger.read(folder.database)[0]) == 7
    books[0].close()


# Damage.


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
        assert said.err == f"error: {row.reason}\n"
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
    study: Make, tmp_path: Path, words: str, damage: str | bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = study(tmp_path)
    if isinstance(damage, bytes):
        folder.database.write_bytes(damage)
    else:
        with closing(sqlite3.connect(folder.database)) as database:
            database.executescript(damage)
    assert words in unreadable(folder, study(tmp_path, "sound"), capsys)


def test_a_database_of_something_else_gets_no_table_of_ours(
    study: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = study(tmp_path)
    folder.database.unlink()
    with closing(sqlite3.connect(folder.database)) as database:
        database.executescript("create table recipes (name)")
    assert "no such table" in unreadable(folder, study(tmp_path, "sound"), capsys)


def test_something_that_is_no_file_is_not_waited_for(
    study: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = study(tmp_path)
    folder.database.unlink()
    os.mkfifo(folder.database)
    assert "must be a file" in unreadable(folder, study(tmp_path, "sound"), capsys)


def test_a_record_without_a_version_of_its_tables_or_with_few_facts_is_read(
    study: Make, tmp_path: Path
) -> None:
    """Facts that a later version adds are missing from the records of an earlier one."""
    folder = study(tmp_path)
    with closing(sqlite3.connect(folder.database)) as database:
        database.executescript("delete from trial_user_attributes; delete from study_user_attributes")
        database.executescript(drop("alembic_version"))
    record = ledger.read_study(folder)
    assert [trial.state for trial in record.trials] == ["COMPLETE"] * 6
    assert call("results", folder.root) == 0


def test_damage_anywhere_is_read_over_or_told_and_nothing_else(study: Make, tmp_path: Path) -> None:
    folder = study(tmp_path)
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
            ledger.read_study(folder)
        except StudyError:
            told += 1
        assert everything(tmp_path) == before
    assert told > len(damages) / 3


def test_resume_on_a_full_disk_is_one_line_and_leaves_nothing(
    study: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with mounts.small(tmp_path / "small", "2m") as place:
        folder = study(place)
        with contextlib.suppress(OSError), (place / "ballast").open("wb", buffering=0) as file:
            while file.write(bytes(4096)) == 4096:
                pass
        before = {name: content for name, (_, content) in everything(place).items()}
        assert call("resume", folder.root) == 2
        said = capsys.readouterr()
        assert said.err == (
            f"error: {folder.root}: a results folder must be writable and have room, got No space left on "
            "device. See to the disk, then resume.\n"
        )
        assert {name: content for name, (_, content) in everything(place).items()} == before
