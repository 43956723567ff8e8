"""Images in one .npz file, raw or encoded."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from clprompt.data.sets.npz import npz
from clprompt.errors import DataError, DataWarning

# where not looked for: some of these sets leave one training image of a class
pytestmark = pytest.mark.filterwarnings("ignore:.*one training image only")

LABELS = np.arange(12) % 3


def encoded(count: int = 12) -> dict[str, np.ndarray]:
    """Images of the shades 0, 20, 40, ..., as JPEG files put end to end."""
    files = []
    for number in range(count):
        file = io.BytesIO()
        Image.new("RGB", (9, 7), (20 * number,) * 3).save(file, "JPEG", quality=100)
        files.append(file.getvalue())
    offsets = np.cumsum([0, *map(len, files)])
    return {"jpeg": np.frombuffer(b"".join(files), np.uint8), "offsets": offsets, "labels": LABELS[:count]}


def raw(*shape: int) -> dict[str, np.ndarray]:
    images = np.broadcast_to(20 * np.arange(12, dtype=np.uint8).reshape(-1, *[1] * len(shape)), (12, *shape))
    return {"images": images.copy(), "labels": LABELS}


def save(folder: Path, **arrays: Any) -> str:
    np.savez(folder / "data.npz", **arrays)
    return str(folder / "data.npz")


def shades(part: Any) -> list[int]:
    found = []
    for index in range(len(part)):
        loaded = part.load(index)
        pixels = (
            loaded
            if isinstance(loaded, torch.Tensor)
            else torch.from_numpy(np.array(loaded)).permute(2, 0, 1)
        )
        assert pixels.shape[1:] == (7, 9)
        found.append(int(pixels[0, 0, 0]) // 20)
    return found


@pytest.mark.parametrize(
    "arrays", [encoded(), raw(7, 9), raw(7, 9, 1), raw(7, 9, 3)], ids=["jpeg", "hw", "1", "3"]
)
@pytest.mark.parametrize("split", [LABELS * 0 + (np.arange(12) > 7), np.array(["train"] * 8 + ["test"] * 4)])
def test_raw_and_encoded_images_are_read_with_their_split(
    arrays: dict, split: np.ndarray, tmp_path: Path
) -> None:
    bundle = npz(path=save(tmp_path, **arrays, split=split))
    assert shades(bundle.train) == list(range(8))
    assert shades(bundle.test) == list(range(8, 12))
    assert bundle.train.targets.tolist() == LABELS[:8].tolist()
    assert bundle.class_names == ["0", "1", "2"]


def test_without_a_split_test_images_are_drawn_from_each_class(tmp_path: Path) -> None:
    bundle = npz(path=save(tmp_path, **raw(7, 9)), test_fraction=0.25)
    assert np.bincount(bundle.test.targets).tolist() == [1, 1, 1]
    assert sorted(shades(bundle.train) + shades(bundle.test)) == list(range(12))
    assert shades(npz(path=str(tmp_path / "data.npz"), test_fraction=0.25, split_seed=1).test) != shades(
        bundle.test
    )


@pytest.mark.parametrize("key", ["names", "wnids"])
def test_labels_with_gaps_become_class_ids_and_keep_their_names(key: str, tmp_path: Path) -> None:
    arrays = raw(7, 9) | {"labels": np.array([7, 3, 5] * 4, dtype=np.int16), "split": np.arange(12) // 6}
    names = np.array([f"name {i}" for i in range(9)])
    bundle = npz(path=save(tmp_path, **arrays, **{key: names}))
    assert bundle.class_names == ["name 3", "name 5", "name 7"]
    assert bundle.train.targets.tolist() == [2, 0, 1] * 2
    assert npz(path=save(tmp_path, **arrays)).class_names == ["3", "5", "7"]


@pytest.mark.parametrize("kind", ["U", "S"])
def test_labels_may_be_text(kind: str, tmp_path: Path) -> None:
    arrays = raw(7, 9) | {
        "labels": np.array(["dog", "cat", "\u00e9l\u00e9phant"] * 4),
        "split": np.arange(12) // 6,
    }
    if kind == "S":
        arrays["labels"] = np.char.encode(arrays["labels"], "utf-8")
    bundle = npz(path=save(tmp_path, **arrays))
    assert bundle.class_names == ["cat", "dog", "\u00e9l\u00e9phant"]
    assert bundle.test.targets.tolist() == [1, 0, 2] * 2


def test_classes_and_limits_select_the_same_images_from_either_form(tmp_path: Path) -> None:
    found = []
    for arrays in (encoded(), raw(7, 9, 3)):
        path = save(tmp_path, **arrays, split=np.arange(12) // 6)
        bundle = npz(path=path, classes="1-2", train_per_class=1, test_per_class=2)
        assert bundle.class_names == ["1", "2"]
        assert np.bincount(bundle.train.targets).tolist() == [1, 1]
        assert np.bincount(bundle.test.targets).tolist() == [2, 2]
        found.append(shades(bundle.train) + shades(bundle.test))
        assert LABELS[found[-1][:2]].tolist() == (bundle.train.targets + 1).tolist()
    assert found[0] == found[1]


def test_a_bad_image_is_named_by_its_position_or_skipped(tmp_path: Path) -> None:
    arrays = encoded()
    arrays["jpeg"] = arrays["jpeg"].copy()
    arrays["jpeg"][arrays["offsets"][4] : arrays["offsets"][5]] = 0
    path = save(tmp_path, **arrays, split=np.arange(12) // 6)
    bundle = npz(path=path)
    with pytest.raises(DataError, match=r"data\.npz, image 4: the image cannot be read: .*on_bad_image=skip"):
        shades(bundle.train)
    with pytest.warns(DataWarning, match=r"1 of 12 images are left out; the first: .*image 4"):
        bundle = npz(path=path, on_bad_image="skip")
    assert shades(bundle.train) == [0, 1, 2, 3, 5]
    assert shades(bundle.test) == [6, 7, 8, 9, 10, 11]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": None}, "it must hold labels, and images or jpeg and offsets; it holds images"),
        ({"images": None}, "it holds labels"),
        ({"images": None, "jpeg": np.zeros(3, np.uint8)}, "it holds jpeg, labels"),
        ({"images": np.zeros((12, 7, 9))}, r"images must be uint8 .*, got float64 \[12, 7, 9\]"),
        ({"images": np.zeros((12, 3, 7, 9), np.uint8)}, r"got uint8 \[12, 3, 7, 9\]"),
        ({"labels": LABELS[:5]}, r"labels must be one value for each of the 12 images, got shape \[5\]"),
        ({"labels": np.eye(12)}, r"labels must be one value for each of the 12 images, got shape \[12, 12\]"),
        ({"labels": LABELS / 2}, "labels must be one integer or text per image, got float64"),
        ({"labels": LABELS.astype(object)}, "it holds pickled objects, only arrays are read"),
        ({"split": np.zeros(3)}, r"split must be one value for each of the 12 images, got shape \[3\]"),
        ({"split": np.full(12, 2)}, 'split "2" of image 0 must be train, test or val'),
        ({"split": np.zeros(12, int)}, "there is no test image"),
        ({"names": np.array(["a", "b"])}, "label 2 has no name; there are names for 0..1"),
    ],
)
def test_arrays_that_do_not_fit_are_one_line(change: dict, message: str, tmp_path: Path) -> None:
    arrays = {key: value for key, value in (raw(7, 9) | change).items() if value is not None}
    with pytest.raises(DataError, match=message) as told:
        npz(path=save(tmp_path, **arrays))
    assert "\n" not in str(told.value)
    assert "data.npz" in str(told.value)


@pytest.mark.parametrize("offsets", [[0, 5, 3], [0, 10**6], [-1, 5], [0]])
def test_offsets_that_do_not_fit_are_refused(offsets: list[int], tmp_path: Path) -> None:
    arrays = encoded() | {"offsets": np.array(offsets), "labels": LABELS[: len(offsets) - 1]}
    with pytest.raises(DataError, match="offsets must rise from 0 to the"):
        npz(path=save(tmp_path, **arrays))


def test_files_that_are_not_npz_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.path: there is no file nowhere\.npz"):
        npz(path="nowhere.npz")
    whole = Path(save(tmp_path, **raw(7, 9))).read_bytes()
    np.save(tmp_path / "one.npy", LABELS)
    damaged = bytearray(whole)
    damaged[200:230] = bytes(range(30))
    (tmp_path / "data.npz").write_bytes(damaged)
    with pytest.raises(DataError, match=r"data\.npz: the file cannot be read: it is damaged"):
        npz(path=str(tmp_path / "data.npz"))
    for content in (b"", b"junk", whole[: len(whole) // 2], (tmp_path / "one.npy").read_bytes()):
        (tmp_path / "data.npz").write_bytes(content)
        with pytest.raises(DataError, match=r"data\.npz: the file cannot be read: it is no whole \.npz file"):
            npz(path=str(tmp_path / "data.npz"))
