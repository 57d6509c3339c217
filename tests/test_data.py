from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms.v2 import functional as tv

from finetune.datasets.catalog import scan
from finetune.disk.array_store import Store
from finetune.errors import DataError
from finetune.images import pixels
from finetune.images.batches import ImageData
from finetune.images.pixels import load_image, normalise
from finetune.settings import DataSettings

SIDE = 24
SIZES = [(60, 60), (41, 97), (97, 41), (10, 600), (1, 1), (24, 24), (7, 5), (200, 150)]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of noise in sizes of every sort, in `train` and `val`."""
    root = tmp_path_factory.mktemp("images")
    noise = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("a", "b"):
            (root / split / name).mkdir(parents=True)
            for index, (width, height) in enumerate(SIZES):
                pixels = noise.integers(0, 255, (height, width, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{index}.png")
    return root


def make(root: Path, *, budget_bytes: int = 2**30, threads: int = 2, **changes: object) -> ImageData:
    settings = DataSettings(kind="folder", path=str(root), image_size=SIDE, **changes)
    return ImageData(scan(settings), settings, budget_bytes=budget_bytes, threads=threads)


def everything(data: ImageData, split: str) -> torch.Tensor:
    return torch.arange(data.size(split))


AUGMENTED = [{}, {"crop_scale": 0.3}, {"crop_scale": 0.3, "horizontal_flip": False}]
augmented = pytest.mark.parametrize("changes", AUGMENTED)


# Shared by the processes of a node


def test_a_shared_image_is_decoded_once_for_all_processes(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second reader gets the same pixels without making one."""
    settings = DataSettings(kind="folder", path=str(root), image_size=SIDE)
    catalog = scan(settings)
    first = ImageData(catalog, settings, shared=Store(tmp_path, 2**30))
    every = everything(first, "train")
    expected = make(root).batch("train", every, view=2)
    assert torch.equal(first.batch("train", every, view=2), expected)
    second = ImageData(catalog, settings, shared=Store(tmp_path, 2**30))
    monkeypatch.setattr(second._decoded._shared, "get", _without_making(second._decoded._shared))
    assert torch.equal(second.batch("train", every, view=2), expected)


def _without_making(store: Store | None) -> object:
    """Return `Store.get` for entries that must be there."""
    assert store is not None
    real = store.get

    def get(key: str, layout: object, make: object, **facts: object) -> object:
        def refuse(begin: int, end: int) -> None:
            raise AssertionError(f"images {begin} to {end} were decoded again")

        return real(key, layout, refuse, **facts)  # type: ignore[arg-type]

    return get


def test_images_that_do_not_fit_the_shared_budget_are_kept_as_before(root: Path, tmp_path: Path) -> None:
    settings = DataSettings(kind="folder", path=str(root), image_size=SIDE)
    data = ImageData(scan(settings), settings, shared=Store(tmp_path, 100))
    every = everything(data, "val")
    assert torch.equal(data.batch("val", every), make(root).batch("val", every))


# Evaluation


def test_evaluation_is_resize_and_centre_crop_as_torchvision_does_it(root: Path) -> None:
    """Where sizes are whole pixels; torchvision rounds the longer side and the corner of the crop."""
    found = load_image(root / "val" / "a" / "0.png", 28, whole=False)
    with Image.open(root / "val" / "a" / "0.png") as image:
        resized = tv.center_crop(tv.resize(image, [32], antialias=True), [28])
    expected = torch.from_numpy(np.array(resized)).permute(2, 0, 1)
    assert (found.int() - expected.int()).abs().max() <= 1


def test_digits_are_seen_from_edge_to_edge() -> None:
    settings = DataSettings(kind="digits", image_size=8)
    catalog = scan(settings)
    data = ImageData(catalog, settings)
    expected = np.asarray(catalog.open(catalog.splits["val"][3])).transpose(2, 0, 1)
    assert data.batch("val", torch.tensor([3]))[0].numpy().tolist() == expected.tolist()


def test_prediction_sees_what_validation_saw(root: Path) -> None:
    settings = DataSettings(kind="folder", path=str(root), image_size=SIDE)
    catalog = scan(settings)
    batch = ImageData(catalog, settings).batch("val", torch.arange(2 * len(SIZES)))
    for example, image in zip(catalog.splits["val"], batch, strict=True):
        assert torch.equal(load_image(root / example.path, SIDE, whole=catalog.whole), image)


@pytest.mark.parametrize("changes", [{}, {"crop_scale": 0.3}])
@pytest.mark.parametrize("view", [None, 1])
def test_large_jpegs_give_the_same_pixels_kept_fresh_and_at_prediction(
    tmp_path: Path, changes: dict[str, object], view: int | None
) -> None:
    """They are decoded at a fraction of their size: everywhere at the same."""
    noise = np.random.default_rng(1).integers(0, 255, (20, 27, 3), dtype=np.uint8)
    for name in ("a", "b"):
        for index in range(4):
            file = tmp_path / name / f"{index}.jpg"
            file.parent.mkdir(exist_ok=True)
            Image.fromarray(np.roll(noise, index, 0)).resize((1080, 800)).save(file)
    roomy, narrow = make(tmp_path, **changes), make(tmp_path, budget_bytes=0, **changes)
    rows = everything(roomy, "train")
    fresh = roomy.batch("train", rows, view=view)
    assert torch.equal(roomy.batch("train", rows, view=view), fresh)
    assert torch.equal(narrow.batch("train", rows, view=view), fresh)
    if view is None:
        example = roomy._catalog.splits["train"][0]
        assert torch.equal(load_image(tmp_path / example.path, SIDE, whole=False), fresh[0])
        whole = pixels.evaluation(roomy._catalog.open(example), SIDE, False)
        assert np.abs(whole.astype(int) - fresh[0].numpy()).mean() < 2  # of 255


@pytest.mark.parametrize("size", [(6000, 10), (1, 1), (1, 3000), (2, 2)])
def test_odd_sizes_become_squares(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size, (200, 100, 50)).save(tmp_path / "x.png")
    image = load_image(tmp_path / "x.png", 128, whole=False)
    assert image.shape == (3, 128, 128)
    assert image.amin((1, 2)).tolist() == image.amax((1, 2)).tolist() == [200, 100, 50]


# Views


def test_the_random_numbers_of_a_view_are_the_same_in_every_process_and_release() -> None:
    """Cached features depend on them; a new value here makes every cache stale."""
    draw = pixels.draws_of(0, "train/a/0.png", 3)
    assert [round(draw.random(), 6) for _ in range(3)] == [0.13985, 0.398328, 0.805073]


@augmented
def test_a_view_is_the_same_in_any_batch_and_order(root: Path, changes: dict[str, object]) -> None:
    whole = make(root, **changes)
    together = whole.batch("train", everything(whole, "train"), view=3)
    single = make(root, threads=1, **changes)
    order = torch.randperm(len(together), generator=torch.Generator().manual_seed(0))
    for index in order.tolist():
        assert torch.equal(single.batch("train", torch.tensor([index]), view=3)[0], together[index])
    repeated = torch.tensor([5, 2, 5])
    assert torch.equal(whole.batch("train", repeated, view=3), together[repeated])


@augmented
def test_views_differ_from_each_other_and_between_seeds(root: Path, changes: dict[str, object]) -> None:
    data, other = make(root, **changes), make(root, seed=1, **changes)
    rows = everything(data, "train")
    first = data.batch("train", rows, view=0)
    assert not torch.equal(first, data.batch("train", rows, view=1))
    assert not torch.equal(first, other.batch("train", rows, view=0))


def test_a_view_without_crop_is_the_evaluation_image_or_its_mirror(root: Path) -> None:
    data = make(root)
    rows = everything(data, "train")
    plain, mirrored = data.batch("train", rows), 0
    for view in range(20):
        for seen, image in zip(data.batch("train", rows, view=view), plain, strict=True):
            assert torch.equal(seen, image) or torch.equal(seen, image.flip(-1))
            mirrored += not torch.equal(seen, image)
    assert 0.4 < mirrored / (20 * (len(rows) - 2)) < 0.6  # two images of 1 x 1 pixel equal their mirror


def test_without_augmentation_a_view_is_the_evaluation_image(root: Path) -> None:
    data = make(root, horizontal_flip=False)
    rows = everything(data, "train")
    assert torch.equal(data.batch("train", rows, view=4), data.batch("train", rows))


@given(
    width=st.integers(1, 5000),
    height=st.integers(1, 5000),
    scale=st.floats(0.01, 1, exclude_max=True),
    view=st.integers(0, 1000),
)
def test_random_crops_lie_inside_the_image(width: int, height: int, scale: float, view: int) -> None:
    draw = pixels.draws_of(0, "x", view)
    left, upper, right, lower = pixels.random_box(width, height, scale, draw)
    assert 0 <= left < right <= width
    assert 0 <= upper < lower <= height


# Memory


@augmented
@pytest.mark.parametrize("budget_bytes", [0, 5 * 3 * SIDE * SIDE])
@pytest.mark.parametrize("view", [None, 2])
def test_what_fits_in_memory_decides_no_pixel(
    root: Path, changes: dict[str, object], budget_bytes: int, view: int | None
) -> None:
    roomy, narrow = make(root, **changes), make(root, budget_bytes=budget_bytes, **changes)
    rows = everything(roomy, "train")
    fresh = roomy.batch("train", rows, view=view)
    assert torch.equal(roomy.batch("train", rows, view=view), fresh)
    assert torch.equal(narrow.batch("train", rows, view=view), fresh)
    assert torch.equal(narrow.batch("train", rows.flip(0), view=view).flip(0), fresh)


@pytest.mark.parametrize("changes", [{}, {"crop_scale": 0.3}])
def test_each_file_is_decoded_once(
    root: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, object]
) -> None:
    decoded: list[Path] = []
    decode: Callable[[Path], Image.Image] = pixels.decode
    monkeypatch.setattr(
        "finetune.datasets.sources.decode", lambda path, *size: decoded.append(path) or decode(path)
    )
    data = make(root, **changes)
    for view in range(3):
        data.batch("train", torch.tensor([1, 2]), view=view)
        list(data.batches("train", everything(data, "train").split(5), view=view))
    assert sorted(decoded) == sorted(set(decoded))
    assert len(decoded) == data.size("train")


def test_the_budget_holds_for_all_splits_together(root: Path) -> None:
    row = 3 * SIDE * SIDE
    data = make(root, budget_bytes=20 * row, crop_scale=0.5)
    for split in ("train", "val"):
        data.batch(split, everything(data, split), view=0)
        data.batch(split, everything(data, split))
    stores = sum(store.pixels.nbytes for store in data._decoded._stores.values())
    kept = sum(4 * image.width * image.height for image in data._decoded._kept.values())
    assert 19 * row <= stores + kept <= 20 * row


def test_a_caller_cannot_change_what_is_kept(root: Path) -> None:
    data = make(root)
    before = data.batch("train", torch.tensor([0])).clone()
    data.batch("train", torch.tensor([0])).zero_()
    data.labels("train").fill_(7)
    assert torch.equal(data.batch("train", torch.tensor([0])), before)
    assert data.labels("train").max() == 1


def test_images_first_read_under_inference_mode_can_feed_training(root: Path) -> None:
    data = make(root)
    with torch.inference_mode():
        list(data.batches("train", [torch.tensor([0, 1])]))
        data.batch("train", torch.tensor([2]))
    images = normalise(data.batch("train", torch.tensor([0, 1, 2])), (0.5,) * 3, (0.5,) * 3)
    layer = torch.nn.Linear(SIDE, 1)
    layer(images).sum().backward()
    assert layer.weight.grad is not None


# Batches


@augmented
def test_batches_come_in_order_with_their_labels(root: Path, changes: dict[str, object]) -> None:
    data = make(root, **changes)
    order = torch.randperm(data.size("train"), generator=torch.Generator().manual_seed(1)).split(5)
    found = list(data.batches("train", order, view=1))
    assert len(found) == len(order)
    for rows, (images, labels) in zip(order, found, strict=True):
        assert torch.equal(images, data.batch("train", rows, view=1))
        assert torch.equal(labels, data.labels("train")[rows])
    assert (images.dtype, labels.dtype) == (torch.uint8, torch.int64)


def test_batches_may_be_left_early(root: Path) -> None:
    data = make(root)
    batches = data.batches("train", [torch.tensor([0])] * 1000)
    next(batches)
    batches.close()
    assert list(data.batches("train", [])) == []


def test_many_threads_get_the_pixels_that_one_gets(root: Path) -> None:
    expected = make(root, threads=1)
    rows = everything(expected, "train")
    for changes in AUGMENTED:
        shared, alone = make(root, threads=4, **changes), make(root, threads=1, **changes)
        with ThreadPoolExecutor(8) as pool:
            views = [view for view in (None, 0, 1, 2) for _ in range(4)]
            found = list(pool.map(lambda view, it=shared: it.batch("train", rows, view=view), views))
        for view, images in zip(views, found, strict=True):
            assert torch.equal(images, alone.batch("train", rows, view=view))


def test_a_broken_file_stops_its_batch_and_is_named(tmp_path: Path) -> None:
    for name in ("a/0", "a/1", "b/0", "b/1"):
        (tmp_path / "train" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "train" / f"{name}.png")
    (tmp_path / "train" / "b" / "1.png").write_bytes(b"broken")
    settings = DataSettings(kind="folder", path=str(tmp_path), image_size=SIDE, test_share=0.0)
    catalog = scan(settings)
    split, row = next(
        (split, row)
        for split, examples in catalog.splits.items()
        for row, example in enumerate(examples)
        if example.path == "train/b/1.png"
    )
    data = ImageData(catalog, settings)
    batches = data.batches(split, [torch.tensor([0]), torch.tensor([row])])
    assert next(batches)[0].shape == (1, 3, SIDE, SIDE)
    with pytest.raises(DataError, match=r"b/1\.png: an image must be readable"):
        next(batches)


@pytest.mark.parametrize("rows", [[-1], [0, 99]])
def test_indices_outside_the_split_are_refused(root: Path, rows: list[int]) -> None:
    with pytest.raises(IndexError, match=rf"train: indices must lie in 0\.\.15, got {rows[0]}\.\.{rows[-1]}"):
        make(root).batch("train", torch.tensor(rows))


def test_no_indices_give_no_images(root: Path) -> None:
    for changes in AUGMENTED:
        for view in (None, 0):
            found = make(root, **changes).batch("train", torch.empty(0, dtype=torch.int64), view=view)
            assert found.shape == (0, 3, SIDE, SIDE)


# Normalising


def test_normalise_is_torchvisions(root: Path) -> None:
    data = make(root)
    images = data.batch("val", everything(data, "val"))
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    expected = tv.normalize(tv.to_dtype(images, torch.float32, scale=True), list(mean), list(std))
    torch.testing.assert_close(normalise(images, mean, std), expected)
    assert torch.equal(normalise(images, torch.tensor(mean), torch.tensor(std)), normalise(images, mean, std))
