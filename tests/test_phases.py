"""What a command shows from its first second on, on a terminal and in a pipe."""

import io
import re
import time
from pathlib import Path

import pytest
from rich.console import Console

from finetune import steps
from finetune.steps import Step
from search.views.phases import Phases, running, step_text
from tests.waiting import eventually


def shown(*, terminal: bool = False) -> tuple[Phases, io.StringIO]:
    file = io.StringIO()
    out = Console(file=file, width=120, force_terminal=terminal, color_system=None, highlight=False)
    return Phases(out), file


def test_a_step_is_heard_by_whoever_listens_and_only_then() -> None:
    heard: list[Step] = []
    with steps.step("alone", 2) as told:
        told.add()
    with steps.listening(heard.append), steps.step("features", 100, "images", "kept") as told:
        for _ in range(50):
            told.add(2)
    assert [(step.done, step.over) for step in heard] == [(0, False), (100, True)]
    assert (heard[0].name, heard[0].total, heard[0].unit, heard[0].why) == ("features", 100, "images", "kept")


def test_a_long_step_is_told_a_few_times_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "TELL_SECONDS", 0.0)
    heard: list[Step] = []
    with steps.listening(heard.append):
        assert list(steps.counted("abc", "letters", 3, "letters")) == ["a", "b", "c"]
    assert [step.done for step in heard] == [0, 1, 2, 3, 3]
    assert heard[-1].over


def test_a_step_of_a_library_is_followed_by_the_bytes_it_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "TELL_SECONDS", 0.01)
    (tmp_path / "before").write_bytes(bytes(7))
    heard: list[Step] = []
    with (
        steps.listening(heard.append),
        steps.growing("download", lambda: tmp_path.rglob("*"), 200, "once"),
    ):
        (tmp_path / "50.partial").write_bytes(bytes(50))
        eventually(lambda: heard[-1].done == 50, "50 bytes told")
        (tmp_path / "150.partial").write_bytes(bytes(150))
        eventually(lambda: heard[-1].done == 200, "200 bytes told")
        (tmp_path / "150.partial").rename(tmp_path / "150")
    assert [step.done for step in heard if not step.over] == sorted(step.done for step in heard[:-1])
    assert (heard[-1].done, heard[-1].total, heard[-1].over) == (200, 200, True)
    assert step_text(heard[-2]).startswith("download 0.0 of 0.0 MB")


def test_a_step_that_is_quicker_than_its_patience_is_not_told() -> None:
    heard: list[Step] = []
    with steps.listening(heard.append), steps.step("epoch 1", 10, patience=60.0) as told:
        told.add(10)
    assert heard == []


def test_after_an_inner_step_the_outer_one_is_told_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "TELL_SECONDS", 0.0)
    heard: list[Step] = []
    with steps.listening(heard.append), steps.step("outer"), steps.step("inner"):
        pass
    assert [(s.name, s.over) for s in heard] == [
        ("outer", False),
        ("inner", False),
        ("inner", True),
        ("outer", False),
        ("outer", True),
    ]


def test_a_step_says_how_far_how_fast_and_how_long_still() -> None:
    step = Step(name="features of train", done=400, total=1300, unit="images", seconds=4.0, why="kept")
    assert step_text(step) == "features of train 400 of 1,300 images, 100/s, ~9.0 s left, kept"
    fetched = Step(name="fetch a.zip", done=2_000_000, total=10_000_000, unit="bytes", seconds=1.0)
    assert step_text(fetched) == "fetch a.zip 2.0 of 10.0 MB, ~4.0 s left"
    assert step_text(Step(name="time the backbone", why="first run on this node")) == (
        "time the backbone, first run on this node"
    )
    assert step_text(Step(name="slots", done=1, total=2, unit="up"), "slots") == "1 of 2 up"


@pytest.mark.parametrize(
    ("done", "seconds", "speed"),
    [(0, 1.0, ""), (1, 40.0, "1.5/min"), (9, 2.0, "4.5/s"), (2400, 2.0, "1,200/s")],
)
def test_a_slow_step_has_a_speed_too(done: int, seconds: float, speed: str) -> None:
    assert Step(name="trainings", done=done, unit="trainings", seconds=seconds).speed == speed


def test_a_pipe_gets_one_line_for_each_phase() -> None:
    phases, file = shown()
    with phases.phase("images", "never shown in a pipe") as phase:
        with steps.step("read images", 1300, "images"):
            pass
        phase.tell("1,300 images\x1b[2J")
    with phases.phase("Ray"):
        pass
    with phases.timed("trials"):
        pass
    assert re.sub(r"\d+\.\d s", "N s", file.getvalue()) == "images: 1,300 images, N s\nRay: N s\n"
    assert list(phases.seconds) == ["images", "Ray", "trials"]


def test_a_phase_that_fails_leaves_the_word_to_the_error() -> None:
    phases, file = shown()
    with pytest.raises(ValueError, match="broken"), phases.phase("images"):
        raise ValueError("broken")
    assert file.getvalue() == ""
    assert list(phases.seconds) == ["images"]


def test_a_terminal_shows_the_phase_while_it_runs_with_its_reason() -> None:
    phases, file = shown(terminal=True)
    done = 0
    with phases.phase(
        "slots", "each imports torch", lambda: Step(name="slots", done=done, total=2, unit="up")
    ):
        deadline = time.monotonic() + 30
        while "slots: 0 of 2 up, each imports torch" not in file.getvalue():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        done = 1
        while "slots: 1 of 2 up" not in file.getvalue():
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_the_step_of_this_process_is_shown_within_its_phase() -> None:
    phases, _ = shown()
    with phases.phase("images") as phase, steps.step("read images", 1300, "images") as told:
        told.add(13)
        assert running(phase).startswith("images: read images 0 of 1,300 images, ")
