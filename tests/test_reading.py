"""Reading a study: no byte of its folder changes, wherever it lies, whoever writes it, whatever it holds."""

import contextlib
import os
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

from search.cluster import status
from search.record import reader, snapshot
from search.record.ledger import Ledger
from search.record.study_folder import StudyFolder
from search.suggest import sampler
from tests import mounts
from tests.written import TRIALS, Make, call, everything

ROOT = Path(__file__).parents[1]
WATCHDOG = 120
NOBODY = 65534


def closed(folder: StudyFolder) -> None:
    """Leave the study as its driver closed it."""
    assert not list(folder.root.glob("optuna.db-*"))


def killed(folder: StudyFolder) -> None:
    """Leave the study as a driver does that was killed: its last trials are in the log."""
    script = f"""
        import os, signal
        from pathlib import Path
        from search.record.ledger import Ledger
        from search.suggest.sampler import make
        book = Ledger(Path({str(folder.database)!r}), metric="val/accuracy", sampler=make("random", seed=0))
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
    written: Make, tmp_path: Path, leave: Callable[[StudyFolder], None], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = written(tmp_path)
    leave(folder)
    before = everything(tmp_path)
    assert call("results", folder.root) == 0
    assert call("results", folder.root, "--json", "--history") == 0
    assert call("status", "--results", tmp_path) == 0
    assert call("export", folder.root, "--to", tmp_path / "model", "--trial", "99") == 2
    assert "--trial must be one of 0 to" in capsys.readouterr().err
    trials, facts = reader.read(folder.database)
    assert len(trials) == (7 if leave in (killed, copied) else 6)
    assert [len(trial.history) for trial in trials[:6]] == [3] * 6
    assert facts["seconds"] == 3.5
    assert not folder.is_held()
    assert everything(tmp_path) == before


def test_a_study_that_runs_is_read_without_changing_a_byte(written: Make, tmp_path: Path) -> None:
    folder = written(tmp_path)
    script = f"""
        import sys
        from pathlib import Path
        from filelock import FileLock
        from search.record.study_folder import StudyFolder
        from search.record.ledger import Ledger
        from search.suggest.sampler import make
        folder = StudyFolder(Path({str(folder.root)!r}))
        with FileLock(folder.lock):
            book = Ledger(folder.database, metric="val/accuracy", sampler=make("random", seed=0))
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
            assert len(reader.read_study(folder).trials) == count
            assert everything(tmp_path) == before
        driver.stdin.close()
    assert not folder.is_held()
    assert len(reader.read_study(folder).trials) == 8


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
    written: Make, open_to_all: Path, tmp_path: Path, leave: Callable[[StudyFolder], None]
) -> None:
    folder = written(open_to_all)
    leave(folder)
    shutil.copytree(open_to_all, tmp_path / "copy")
    for path in (*open_to_all.rglob("*"), open_to_all):
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = everything(open_to_all)
    script = f"""
        import os
        from pathlib import Path
        from search.cluster import status
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
    written: Make, tmp_path: Path, leave: Callable[[StudyFolder], None]
) -> None:
    folder = written(tmp_path)
    leave(folder)
    with mounts.read_only(folder.root, tmp_path / "mounted") as place:
        assert call("results", place) == 0
        assert status.of_record(reader.read_study(StudyFolder(place))).done == TRIALS


@pytest.mark.parametrize("name", ["a%41", "what?mode=memory", "a#b", "{x}", "größer than", "a:b@c", "-n"])
def test_a_results_folder_may_have_any_name(written: Make, tmp_path: Path, name: str) -> None:
    results = tmp_path / name
    folder = written(results)
    killed(folder)
    assert len(reader.read_study(folder).trials) == 7
    assert call("results", folder.root) == 0
    Ledger(folder.database, metric="val/accuracy", sampler=sampler.make("random", seed=0)).close()
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert {path.name for path in folder.root.iterdir()} == {"study.yaml", "optuna.db"}
    assert len(reader.read_study(folder).trials) == 7


def test_a_study_that_begins_while_it_is_read_is_read_as_it_was_or_is(
    written: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = written(tmp_path)
    copy = snapshot._copy
    books: list[Ledger] = []

    def begin_first(path: Path, options: str) -> sqlite3.Connection:
        memory = copy(path, options)
        if not books:
            books.append(
                Ledger(folder.database, metric="val/accuracy", sampler=sampler.make("random", seed=0))
            )
            books[0].ask()
            books[0].suggested(6, {})
            books[0].flush()
        return memory

    monkeypatch.setattr(snapshot, "_copy", begin_first)
    assert len(reader.read(folder.database)[0]) == 7
    books[0].close()


def test_resume_on_a_full_disk_is_one_line_and_leaves_nothing(
    written: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with mounts.small(tmp_path / "small", "2m") as place:
        folder = written(place)
        with contextlib.suppress(OSError), (place / "ballast").open("wb", buffering=0) as file:
            while file.write(bytes(4096)) == 4096:
                pass
        before = {name: content for name, (_, content) in everything(place).items()}
        assert call("resume", folder.root) == 2
        said = capsys.readouterr()
        assert said.err.count("error:") == 1
        assert said.err.endswith(
            f"error: {folder.root}: a results folder must be writable and have room, got No space left on "
            "device. See to the disk, then resume.\n"
        )
        assert {name: content for name, (_, content) in everything(place).items()} == before
