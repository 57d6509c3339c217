"""Read the frames of clips: video files, animated images and folders of frames. Imports no torch.

Frames are evenly spaced in time: frame i of T shows what is seen at (i + 1/2) / T of the clip, by the time
stamps of its frames and not by their number. A still image is a clip of one frame.
"""

import bisect
import os
import re
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from statistics import median
from threading import Lock
from typing import Any, Protocol

from PIL import Image, ImageSequence

from finetune import extras
from finetune.datasets.decode import decode
from finetune.disk import file_cache
from finetune.disk.filesystems import is_far
from finetune.errors import DataError, MissingPackage

VIDEOS = frozenset({".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg"})
"""Suffixes of video files."""
ANIMATED = frozenset({".gif", ".webp", ".png", ".apng"})
"""Suffixes of images that may have several frames."""
STILL = frozenset(
    {".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"}
)
"""Suffixes of the frames in a folder of frames."""
MOST_FRAMES = 36_000
"""Largest number of frames of a clip: 20 minutes at 30 a second."""
KEPT = 16
"""Clips whose decoded frames are kept in memory."""


def frames(location: str, count: int, at_least: int | None = None) -> list[Image.Image]:
    """Return `count` frames of a clip as RGB, upright, in the order of time.

    Args:
        location: a video file, an image, animated or not, or a folder of frames.
        count: number of frames; a clip with fewer shows some of them several times.
        at_least: pixels that the shorter side must keep; larger frames are made smaller. None keeps all.

    Raises:
        DataError: the clip cannot be read, or has too many frames or pixels.
        MissingPackage: it is a video file, and the package av is missing.
    """
    try:
        suffix = os.path.splitext(location)[1].lower()
        if os.path.isdir(location):
            return _of_folder(Path(location), count, at_least)
        if suffix in VIDEOS:
            return _of_video(location, count, at_least)
        if suffix in ANIMATED:
            return _of_animation(location, count, at_least)
        return [decode(Path(location), at_least)] * count
    except DataError:
        raise
    except Exception as error:  # decoders raise almost anything on broken files
        why = " ".join(str(error).split()).rstrip(".")
        raise DataError(
            f"{location}: a clip must be readable, got {type(error).__name__}: {why}. "
            "Replace or remove the file."
        ) from error


def of_bytes(content: bytes, count: int, at_least: int | None, most_pixels: int) -> list[Image.Image]:
    """Return `count` frames of the clip or image in the bytes of a file, like `frames`.

    Args:
        content: the bytes.
        count: number of frames.
        at_least: as in `frames`.
        most_pixels: largest number of pixels of a frame.

    Raises:
        DataError: as in `frames`.
        MissingPackage: it is no image, and the package av, which reads videos, is missing.
    """
    try:
        with Image.open(BytesIO(content)) as image:
            suffix, size = ".png", image.size
    except Exception:  # Pillow's readers raise almost anything on what is no image
        suffix, size = ".mp4", None  # FFmpeg knows a file by its content
    with tempfile.NamedTemporaryFile(suffix=suffix) as file:
        file.write(content)
        file.flush()
        try:
            width, height = size or _video_size(file.name)
            if width * height > most_pixels:
                raise DataError(
                    f"a frame has {width} x {height} pixels, limit {most_pixels}. Send a smaller one."
                )
            return frames(file.name, count, at_least)
        except MissingPackage:
            raise
        except Exception as error:
            why = str(error).replace(file.name, "the file").removeprefix("the file: ")
            raise DataError(f"clip: {why}") from error


def _video_size(location: str) -> tuple[int, int]:
    with _opened(location) as container:
        if not container.streams.video:
            raise ValueError("neither an image nor a video")
        stream = container.streams.video[0]
        return stream.width, stream.height


def is_frame(path: str) -> bool:
    """Return True for a file that is a frame of the clip that its folder is."""
    return os.path.splitext(path)[1].lower() in STILL


def is_clip(location: str) -> bool:
    """Return True for a folder of frames and for a video file, which are no images."""
    return os.path.isdir(location) or os.path.splitext(location)[1].lower() in VIDEOS


def at_times(stamps: Sequence[float], end: float, count: int) -> list[int]:
    """Return the numbers of the frames that are seen at `count` times, evenly spaced.

    Args:
        stamps: times at which the frames begin, in order.
        end: time at which the last one ends.
        count: number of times.
    """
    # Everything times 2 `count`, so that whole numbers stay exact.
    first, scaled = 2 * count * stamps[0], [2 * count * stamp for stamp in stamps]
    times = [first + (end - stamps[0]) * (2 * number + 1) for number in range(count)]
    return [max(0, bisect.bisect_right(scaled, time) - 1) for time in times]


def in_folder(folder: Path) -> list[Path]:
    """Return the frames in a folder in the order of the numbers in their names."""
    found = [p for p in folder.iterdir() if p.suffix.lower() in STILL and p.name[0] != "."]
    return sorted(found, key=lambda path: _natural(path.name))


def _natural(name: str) -> list[tuple[int, int | str]]:
    """Return a sort key by which `frame10` comes after `frame9`."""
    parts = re.split(r"(\d+)", name)
    return [(1, int(part)) if part.isdigit() else (0, part) for part in parts]


def _of_folder(folder: Path, count: int, at_least: int | None) -> list[Image.Image]:
    found = in_folder(folder)
    if not found:
        raise ValueError("a folder without frames")
    _check_count(len(found))
    wanted = at_times(range(len(found)), len(found), count)
    made = {number: decode(found[number], at_least) for number in set(wanted)}
    return [made[number] for number in wanted]


def _of_animation(location: str, count: int, at_least: int | None) -> list[Image.Image]:
    with Image.open(location) as image:
        number = getattr(image, "n_frames", 1)
        if number == 1:
            return [decode(Path(location), at_least)] * count
        _check_count(number)
        _check_pixels(image.width, image.height)
        stamps, now = [], 0  # milliseconds
        for frame in ImageSequence.Iterator(image):
            frame.load()  # WebP knows a frame's duration only then
            stamps.append(now)
            now += round(frame.info.get("duration") or 100)
        wanted = at_times(stamps, now, count)
        made = {}
        for place in sorted(set(wanted)):
            image.seek(place)
            made[place] = _smaller(_on_white(image), at_least)
        return [made[place] for place in wanted]


def _on_white(image: Image.Image) -> Image.Image:
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def _of_video(location: str, count: int, at_least: int | None) -> list[Image.Image]:
    with _opened(location) as container:
        stamps, end = _stamps(container)
    wanted = [stamps[number] for number in at_times(stamps, end, count)]
    # Decoded a second time from the start: a seek goes to a key frame at best, and some files have none.
    made: dict[int, Image.Image] = {}
    with _opened(location) as container:
        left = sorted(set(wanted))
        latest: Image.Image | None = None
        for frame in _decoded(container):
            # Where the frame of a stamp is damaged, the one before it is what a player shows.
            while left and latest is not None and frame.pts > left[0]:
                made[left.pop(0)] = latest
            if not left:
                break
            if frame.pts == left[0]:
                latest = made[left.pop(0)] = _picture(frame, at_least)
            elif latest is None:
                latest = _picture(frame, at_least)
        if latest is None:
            raise ValueError("a video without a frame that can be decoded")
        made.update(dict.fromkeys(left, latest))
    return [made[time] for time in wanted]


def _opened(location: str) -> Any:
    extras.require("video", f"{location}: a video file", ["av"])
    import av

    if is_far(location):
        with file_cache.here().open(location) as file:
            return av.open(BytesIO(file.read()))
    return av.open(location)


def _stamps(container: Any) -> tuple[list[int], int]:
    """Return the times of all frames in order and the end of the last one, in the file's unit of time."""
    stream = _stream(container)
    found: dict[int, int] = {}  # time -> duration
    for packet in container.demux(stream):
        if packet.pts is not None:
            found[int(packet.pts)] = int(packet.duration or 0)
            _check_count(len(found))
    if not found:
        raise ValueError("a video without frames")
    times = sorted(found)
    # Some files give the last frame no duration, or the shortest that there is.
    usual = median(b - a for a, b in pairwise(times)) if len(times) > 1 else 1
    return times, times[-1] + max(found[times[-1]], round(usual), 1)


def _stream(container: Any) -> Any:
    if not container.streams.video:
        raise ValueError("a file without a video stream")
    stream = container.streams.video[0]
    _check_pixels(stream.width, stream.height)
    stream.codec_context.thread_count = 1  # there is a process or a thread for each core already
    return stream


def _decoded(container: Any) -> Iterator[Any]:
    """Yield the frames that can be decoded and have a time stamp."""
    import av

    for packet in container.demux(_stream(container)):
        try:
            found = packet.decode()
        except av.error.InvalidDataError:  # a damaged part; players go on behind it
            continue
        yield from (frame for frame in found if frame.pts is not None)


def _picture(frame: Any, at_least: int | None) -> Image.Image:
    """Return a frame as an upright image, made smaller before it leaves the decoder."""
    share = 1.0 if at_least is None else min(1.0, at_least / min(frame.width, frame.height))
    size = {"width": round(frame.width * share), "height": round(frame.height * share)}
    image = Image.fromarray(frame.reformat(**size, format="rgb24").to_ndarray())
    turn = round(getattr(frame, "rotation", 0) / 90) % 4
    ways = (None, Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)
    way = ways[turn]
    return image if way is None else image.transpose(way)


def _smaller(image: Image.Image, at_least: int | None) -> Image.Image:
    share = 1.0 if at_least is None else at_least / min(image.size)
    if share >= 1:
        return image
    size = (round(image.width * share), round(image.height * share))
    return image.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)


def _check_count(number: int) -> None:
    if number > MOST_FRAMES:
        raise ValueError(f"more than {MOST_FRAMES} frames")


def _check_pixels(width: int, height: int) -> None:
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > limit:
        raise Image.DecompressionBombError(f"{width} x {height} pixels, limit {limit}")


class _Reads(Protocol):
    def frames(self, path: str, count: int, at_least: int | None = None) -> list[Image.Image]: ...


class Clips:
    """The frames of the clips that were read last, each decoded once however many threads ask for it."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._found: OrderedDict[tuple[str, int, int | None], Future[list[Image.Image]]] = OrderedDict()

    def __reduce__(self) -> tuple[type["Clips"], tuple[()]]:
        return Clips, ()  # another process decodes for itself

    def frames(self, reader: _Reads, path: str, count: int, at_least: int | None = None) -> list[Image.Image]:
        """Return the frames of a clip as its reader does.

        Raises:
            DataError: the clip cannot be read.
        """
        key = (path, count, at_least)
        with self._lock:
            known = self._found.get(key)
            if known is None:
                mine: Future[list[Image.Image]] = Future()
                self._found[key] = mine
                while len(self._found) > KEPT:
                    self._found.popitem(last=False)
        if known is not None:
            return known.result()
        return _fulfilled(mine, lambda: reader.frames(path, count, at_least))


def _fulfilled(mine: "Future[list[Image.Image]]", make: Callable[[], list[Image.Image]]) -> list[Image.Image]:
    try:
        mine.set_result(make())
    except BaseException as error:
        mine.set_exception(error)
    return mine.result()
