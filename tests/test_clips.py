"""Frames of clips by real decoders: video files, animated images, folders; times, rotation and bounds."""

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from finetune.datasets import catalog, clips, inspection, part_findings
from finetune.datasets.clips import Clips
from finetune.errors import DataError
from finetune.settings import SampleSettings


def grey(level: int, size: tuple[int, int] = (64, 48)) -> Image.Image:
    """Return an image of one level, whose upper left corner is white."""
    image = Image.new("RGB", size, (level, level, level))
    image.paste((255, 255, 255), (0, 0, size[0] // 4, size[1] // 4))
    return image


def level(image: Image.Image) -> int:
    """Return the level in the middle of an image."""
    return int(np.asarray(image)[image.height // 2, image.width // 2].mean())


def video(path: Path, times: list[int]) -> Path:
    """Write an mp4 whose frames begin at these milliseconds; the n-th has the level 20 n."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=1000)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.bit_rate = 2_000_000
        stream.codec_context.time_base = Fraction(1, 1000)
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_image(grey(20 * number))
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def turned(path: Path) -> Path:
    """Write a quarter turn into the display matrix of an mp4, as telephones do."""
    content = bytearray(path.read_bytes())
    place = content.index(b"tkhd") + 4 + 40  # the matrix of a track header of version 0
    content[place : place + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    return path


def test_a_video_is_read_by_time_stamps(tmp_path: Path) -> None:
    even = video(tmp_path / "even.mp4", [0, 100, 200, 300, 400, 500])
    found = [round(level(one) / 20) for one in clips.frames(str(even), 3)]
    assert found == [1, 3, 5]
    # The first frames follow each other fast, then one stands for a long time.
    uneven = video(tmp_path / "uneven.mp4", [0, 10, 20, 30, 1000, 1010])
    found = [round(level(one) / 20) for one in clips.frames(str(uneven), 4)]
    assert found == [3, 3, 3, 3]


def test_more_frames_than_there_are_repeat_some(tmp_path: Path) -> None:
    short = video(tmp_path / "short.mp4", [0, 100])
    assert [round(level(one) / 20) for one in clips.frames(str(short), 4)] == [0, 0, 1, 1]


def test_a_video_with_a_rotation_flag_is_upright(tmp_path: Path) -> None:
    plain = clips.frames(str(video(tmp_path / "plain.mp4", [0, 100])), 1)[0]
    lying = clips.frames(str(turned(video(tmp_path / "lying.mp4", [0, 100]))), 1)[0]
    assert (plain.size, lying.size) == ((64, 48), (48, 64))
    # The matrix turns the picture clockwise: the white corner moves from the left to the right.
    corners = np.asarray(lying.convert("L"))[4, 4], np.asarray(lying.convert("L"))[4, -5]
    assert corners[0] < 128 < corners[1]
    assert np.abs(np.asarray(plain.rotate(-90, expand=True), int) - np.asarray(lying, int)).mean() < 2


def test_frames_leave_the_decoder_as_small_as_they_may(tmp_path: Path) -> None:
    path = video(tmp_path / "v.mp4", [0, 100])
    assert clips.frames(str(path), 1, at_least=24)[0].size == (32, 24)
    assert clips.frames(str(path), 1, at_least=500)[0].size == (64, 48)


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_animated_images_are_read_by_their_durations(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    levels = [grey(40 * n) for n in range(4)]
    levels[0].save(
        path, save_all=True, append_images=levels[1:], duration=[100, 100, 100, 700], lossless=True
    )
    assert [round(level(one) / 40) for one in clips.frames(str(path), 4)] == [1, 3, 3, 3]


def test_a_folder_of_frames_is_read_in_the_order_of_its_numbers(tmp_path: Path) -> None:
    for number in range(12):
        grey(20 * number).save(tmp_path / f"frame{number}.png")
    (tmp_path / "notes.txt").write_text("no frame")
    assert [round(level(one) / 20) for one in clips.frames(str(tmp_path), 4)] == [1, 4, 7, 10]


@pytest.mark.parametrize("name", ["broken.mp4", "empty.mp4", "text.gif"])
def test_a_broken_clip_is_one_line_with_its_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"" if name[0] == "e" else b"not a clip at all" * 9)
    with pytest.raises(DataError, match=rf"{name}: a clip must be readable, got [^\n]+$"):
        clips.frames(str(path), 2)


def test_a_video_that_ends_early_shows_what_is_there(tmp_path: Path) -> None:
    path = video(tmp_path / "v.mp4", list(range(0, 1000, 50)))
    content = path.read_bytes()
    at = content.index(b"mdat") + (len(content) - content.index(b"mdat")) // 3
    path.write_bytes(content[:at] + bytes(200) + content[at + 200 :])
    assert len(clips.frames(str(path), 4)) == 4


def test_frames_and_pixels_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = video(tmp_path / "v.mp4", [0, 100, 200])
    monkeypatch.setattr(clips, "MOST_FRAMES", 2)
    with pytest.raises(DataError, match="more than 2 frames"):
        clips.frames(str(path), 1)
    monkeypatch.undo()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(DataError, match="64 x 48 pixels, limit 1000"):
        clips.frames(str(path), 1)


def test_a_clip_is_decoded_once_for_all_its_frames(tmp_path: Path) -> None:
    asked: list[str] = []

    class Reader:
        def frames(self, path: str, count: int, at_least: int | None = None) -> list[Image.Image]:
            asked.append(path)
            return [grey(0)] * count

    kept, reader = Clips(), Reader()
    for _ in range(5):
        kept.frames(reader, "a", 3, 10)
    assert asked == ["a"]
    for number in range(clips.KEPT):
        kept.frames(reader, str(number), 3, 10)
    kept.frames(reader, "a", 3, 10)
    assert asked.count("a") == 2


def test_names_that_look_like_films_are_told_where_no_groups_are_given(tmp_path: Path) -> None:
    rows = ["file_name,group"]
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        for film in ("beach", "forest", "lake"):
            for clip in range(6):
                video(tmp_path / name / f"{film}_{clip}.mp4", [0, 100])
                rows.append(f"{name}/{film}_{clip}.mp4,{name} {film}")
    settings = SampleSettings(kind="folder", path=str(tmp_path), frames=2)
    (found,) = catalog.scan(settings).findings
    assert (found.grade, found.check) == ("warning", "like_groups")
    assert "x/beach" in found.text
    (tmp_path / "metadata.csv").write_text("\n".join(rows))
    grouped = catalog.scan(settings)
    assert grouped.findings == ()
    films = {split: {one.path.rpartition("_")[0] for one in some} for split, some in grouped.splits.items()}
    assert not films["train"] & films["val"]
    assert part_findings.stem("a/clip_g01_c12.mp4") == "a/clip_g01"


def test_a_clip_that_breaks_in_its_middle_is_left_out_with_on_error_skip(tmp_path: Path) -> None:
    for name in ("x", "y"):
        for clip in range(3):
            (tmp_path / name / f"clip{clip}").mkdir(parents=True)
            for number in range(3):
                grey(9 * clip).save(tmp_path / name / f"clip{clip}" / f"{number}.jpg")
    (tmp_path / "x" / "clip1" / "2.jpg").write_bytes(b"broken")
    found = catalog.scan(SampleSettings(kind="folder", path=str(tmp_path), frames=3, on_error="skip"))
    assert [one.path for one in found.skipped] == ["x/clip1"]


def test_check_looks_at_clips(tmp_path: Path) -> None:
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        for clip in range(4):
            video(tmp_path / name / f"{clip}.mp4", [0, 100 + clip])
    (tmp_path / "y" / "9.mp4").write_bytes(b"broken")
    report = inspection.inspect(catalog.scan(SampleSettings(kind="folder", path=str(tmp_path), frames=2)))
    (broken,) = [one for one in report["findings"] if one["check"] == "unreadable"]
    assert "9.mp4" in broken["images"][0]
    assert report["sides"]["shortest"] == 48
    # The clips show the same first frame, which says nothing of what follows.
    assert not [one for one in report["findings"] if one["check"].startswith("near")]


def test_folders_hold_videos_and_folders_of_frames(tmp_path: Path) -> None:
    for name in ("x", "y"):
        for clip in range(3):
            (tmp_path / name / f"clip{clip}").mkdir(parents=True)
            for number in range(2):
                grey(9 * clip).save(tmp_path / name / f"clip{clip}" / f"{number}.jpg")
        video(tmp_path / name / "film.mp4", [0, 100])
    found = catalog.scan(SampleSettings(kind="folder", path=str(tmp_path), frames=2))
    paths = {one.path for examples in found.splits.values() for one in examples}
    assert paths == {f"{name}/{clip}" for name in "xy" for clip in ("clip0", "clip1", "clip2", "film.mp4")}
    frames = found.of_frames(2)
    assert len(frames.splits["train"]) == 2 * len(found.splits["train"])
    assert all(frames.open(one).size == (64, 48) for one in frames.splits["train"])
    still = catalog.scan(SampleSettings(kind="folder", path=str(tmp_path)))
    assert all(one.path.endswith(".jpg") for one in still.splits["train"])  # without `frames` all are images
    (tmp_path / "x" / "clip0" / "1.jpg").write_bytes(b"changed")
    again = catalog.scan(SampleSettings(kind="folder", path=str(tmp_path), frames=2))
    assert again.fingerprint != found.fingerprint
