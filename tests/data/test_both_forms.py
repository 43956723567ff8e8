"""CSV and npz files with labels and with label sets: their arguments mean the same for both."""

import inspect
import io
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clprompt import schema
from clprompt.data import DataBundle
from clprompt.data.selection import ranks
from clprompt.data.sets.csv import csv_file, multi_label_csv
from clprompt.data.sets.npz import multi_label_npz, npz
from clprompt.errors import ClpromptError, ConfigError, DataError, DataWarning
from clprompt.seeding import derive

NAMES = ["a", "b", "c"]
COUNT = 12
#: one label for each image, which is a label set as well
LABELS = [(i % 3,) for i in range(COUNT)]


def png(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (6, 5), 20 * shade).save(file, "PNG")
    return file.getvalue()


def write_csv(
    folder: Path,
    labels: Sequence[Sequence[int]],
    split: Sequence[str] | None = None,
    bad: Sequence[int] = (),
    name: str = "data.csv",
) -> str:
    """Images of the shades 0, 1, ..., of which some cannot be read; the labels are joined by semicolons."""
    rows = ["path,label" + ",split" * (split is not None)]
    for i, row in enumerate(labels):
        (folder / f"{i}.png").write_bytes(b"not an image" if i in bad else png(i))
        rows.append(",".join([f"{i}.png", ";".join(NAMES[c] for c in row), *([split[i]] if split else [])]))
    (folder / name).write_text("\n".join(rows) + "\n")
    return str(folder / name)


def write_npz(
    folder: Path,
    labels: Sequence[Sequence[int]],
    split: Sequence[str] | None = None,
    bad: Sequence[int] = (),
    multi_hot: bool = True,
) -> str:
    files = [b"not an image" if i in bad else png(i) for i in range(len(labels))]
    hot = np.array([[c in row for c in range(len(NAMES))] for row in labels], dtype=np.int64)
    arrays = {
        "jpeg": np.frombuffer(b"".join(files), np.uint8),
        "offsets": np.cumsum([0, *map(len, files)]),
        "labels": hot if multi_hot else np.array([row[0] for row in labels]),
        "names": np.array(NAMES),
    }
    np.savez(folder / "data.npz", **arrays, **({} if split is None else {"split": np.array(split)}))
    return str(folder / "data.npz")


@dataclass(frozen=True)
class Form:
    """A reader, and what writes a file for it."""

    read: Callable[..., DataBundle]
    write: Callable[..., str]

    def classes(self, part: Any) -> list[tuple[int, ...]]:
        """The class ids of each image."""
        if part.targets.ndim == 1:
            return [(int(c),) for c in part.targets]
        return [tuple(int(c) for c in np.flatnonzero(row)) for row in part.targets]


FORMS = {
    "csv": Form(csv_file, write_csv),
    "multi_label_csv": Form(multi_label_csv, write_csv),
    "npz": Form(npz, lambda *given, **more: write_npz(*given, **more, multi_hot=False)),
    "multi_label_npz": Form(multi_label_npz, write_npz),
}
LABEL_SET_FORMS = {name: form for name, form in FORMS.items() if name.startswith("multi_label")}
every_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
every_label_set_form = pytest.mark.parametrize("form", LABEL_SET_FORMS.values(), ids=LABEL_SET_FORMS)
pytestmark = pytest.mark.filterwarnings("ignore:.*one training image only", "ignore:.*no test image")


def shades(part: Any) -> list[int]:
    """The number of each image: what tells one from the other."""
    return [int(np.asarray(part.load(i)).reshape(-1)[0]) // 20 for i in range(len(part))]


SPLIT = ["train"] * 8 + ["test"] * 4


# -------------------------------------------------------------------------------- labels and label sets alike


@pytest.mark.parametrize(("single", "sets"), [(csv_file, multi_label_csv), (npz, multi_label_npz)])
def test_both_forms_have_the_same_arguments_in_the_same_order(single: Any, sets: Any) -> None:
    assert list(inspect.signature(single).parameters) == list(inspect.signature(sets).parameters)


@every_form
def test_images_have_their_labels_and_the_split_of_their_column(form: Form, tmp_path: Path) -> None:
    bundle = form.read(path=form.write(tmp_path, LABELS, SPLIT))
    assert bundle.class_names == NAMES
    assert shades(bundle.train) == list(range(8))
    assert shades(bundle.test) == [8, 9, 10, 11]
    assert form.classes(bundle.train) + form.classes(bundle.test) == LABELS


@every_form
def test_validation_rows_are_left_out_where_there_are_test_rows(form: Form, tmp_path: Path) -> None:
    path = form.write(tmp_path, LABELS, ["train"] * 6 + ["val"] * 3 + ["test"] * 3)
    with pytest.warns(DataWarning, match="3 validation images are left out, as there are test images"):
        bundle = form.read(path=path)
    assert shades(bundle.train) + shades(bundle.test) == [0, 1, 2, 3, 4, 5, 9, 10, 11]


@every_form
def test_a_word_that_names_no_part_is_one_line(form: Form, tmp_path: Path) -> None:
    path = form.write(tmp_path, LABELS, ["tset", *SPLIT[1:]])
    with pytest.raises(
        DataError, match=r'data.* split "tset" of image 0 must be train, test or val'
    ) as caught:
        form.read(path=path)
    assert "\n" not in str(caught.value)


@every_form
@pytest.mark.parametrize(("word", "lacking"), [("train", "test"), ("test", "training")])
def test_a_part_without_images_is_one_line(form: Form, word: str, lacking: str, tmp_path: Path) -> None:
    # its class names are those of training images
    empty = form is FORMS["multi_label_csv"] and word == "test"
    message = 'unknown class "a"; no training image has it' if empty else f"there is no {lacking} image"
    with pytest.raises(DataError, match=message):
        form.read(path=form.write(tmp_path, LABELS, [word] * COUNT))


@every_form
def test_without_a_split_the_seed_draws_a_share_of_the_images(form: Form, tmp_path: Path) -> None:
    path = form.write(tmp_path, LABELS)
    drawn = [form.read(path=path, test_fraction=0.25, split_seed=seed) for seed in (0, 0, 1)]
    assert len(drawn[0].test) == 3
    assert sorted(shades(drawn[0].train) + shades(drawn[0].test)) == list(range(COUNT))
    assert shades(drawn[0].test) == shades(drawn[1].test)
    assert shades(drawn[0].test) != shades(drawn[2].test)


@every_form
def test_an_image_that_cannot_be_read_is_named_at_the_latest_when_it_is_loaded(
    form: Form, tmp_path: Path
) -> None:
    path = form.write(tmp_path, LABELS, SPLIT, bad=[4])
    with pytest.raises(DataError, match=r"4.*: the image cannot be read: .* set data\.on_bad_image=skip"):
        shades(form.read(path=path).train)


@every_form
def test_skip_leaves_images_that_cannot_be_read_out_and_says_how_many(form: Form, tmp_path: Path) -> None:
    path = form.write(tmp_path, LABELS, SPLIT, bad=[4, 9])
    with pytest.warns(DataWarning, match=r"2 of 12 images are left out; the first: .*4") as told:
        bundle = form.read(path=path, on_bad_image="skip")
    assert "on_bad_image" not in str(told[0].message)
    assert shades(bundle.train) == [0, 1, 2, 3, 5, 6, 7]
    assert shades(bundle.test) == [8, 10, 11]
    assert form.classes(bundle.test) == [LABELS[8], LABELS[10], LABELS[11]]


@every_form
def test_an_image_of_too_many_pixels_cannot_be_read(form: Form, tmp_path: Path) -> None:
    path = form.write(tmp_path, LABELS, SPLIT)
    assert len(shades(form.read(path=path, max_pixels=30).train)) == 8
    with pytest.raises(DataError, match="it has 6 x 5 = 30 pixels; max_pixels is 29"):
        shades(form.read(path=path, max_pixels=29).train)


@every_form
@pytest.mark.parametrize("cache", [True, False])
def test_the_cache_can_be_switched_off(form: Form, cache: bool, tmp_path: Path) -> None:
    bundle = form.read(path=form.write(tmp_path, LABELS, SPLIT), cache=cache)
    assert bundle.cache is cache


@every_form
def test_a_limit_per_class_keeps_some_of_what_a_higher_one_keeps(form: Form, tmp_path: Path) -> None:
    path = form.write(tmp_path, LABELS, SPLIT)
    bundles = [form.read(path=path, train_per_class=limit) for limit in (1, 2, 3, 100)]
    kept = [set(shades(bundle.train)) for bundle in bundles]
    assert [len(numbers) for numbers in kept] == [3, 6, 8, 8]
    assert all(fewer <= more for fewer, more in itertools.pairwise(kept))
    assert sorted(form.classes(bundles[0].train)) == [(0,), (1,), (2,)]
    assert [len(bundle.test) for bundle in bundles] == [4] * 4


@every_form
def test_test_images_have_a_limit_of_their_own(form: Form, tmp_path: Path) -> None:
    bundle = form.read(path=form.write(tmp_path, LABELS, SPLIT), test_per_class=1)
    assert len(bundle.train) == 8
    assert sorted(form.classes(bundle.test)) == [(0,), (1,), (2,)]


@every_form
def test_some_classes_can_be_chosen(form: Form, tmp_path: Path) -> None:
    bundle = form.read(path=form.write(tmp_path, LABELS, SPLIT), classes="1-2")
    assert bundle.class_names == ["b", "c"]
    assert shades(bundle.train) == [1, 2, 4, 5, 7]
    assert form.classes(bundle.train) == [(0,), (1,), (0,), (1,), (0,)]


@every_form
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"test_fraction": 1.0}, r"test_fraction must be above 0 and below 1, got 1\.0"),
        ({"train_per_class": 0}, "train_per_class must be at least 1, got 0"),
        ({"test_per_class": -1}, "test_per_class must be at least 1, got -1"),
        ({"classes": "0-3"}, "data.classes: 0-3 is not within the 3 classes 0-2"),
        ({"classes": ["d"]}, 'data.classes: there is no class "d"'),
        ({"classes": []}, "data.classes must name a class"),
        ({"on_bad_image": "ignore"}, 'on_bad_image must be one of "error", "skip", got "ignore"'),
        ({"max_pixels": 0}, "max_pixels must be at least 1, got 0"),
        ({"path": "nowhere"}, "data.path: there is no file nowhere; it must be an? "),
    ],
)
def test_a_wrong_argument_is_one_line(form: Form, arguments: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ClpromptError, match=message) as caught:
        form.read(**{"path": form.write(tmp_path, LABELS, SPLIT), **arguments})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("read", [csv_file, multi_label_csv])
def test_a_second_csv_is_the_test_set_and_paths_start_at_the_root(read: Any, tmp_path: Path) -> None:
    train = write_csv(tmp_path, LABELS)
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "test.csv").write_text("path,label\n../3.png,a\n../4.png,b\n")
    bundle = read(path=train, test_path=str(tmp_path / "lists" / "test.csv"))
    assert shades(bundle.train) == list(range(COUNT))
    assert shades(bundle.test) == [3, 4]
    (tmp_path / "lists" / "test.csv").write_text("path,label\n5.png,c\n")
    bundle = read(path=train, test_path=str(tmp_path / "lists" / "test.csv"), root=str(tmp_path))
    assert shades(bundle.test) == [5]


@pytest.mark.parametrize("read", [csv_file, multi_label_csv])
def test_a_split_column_beside_a_second_csv_is_refused(read: Any, tmp_path: Path) -> None:
    path = write_csv(tmp_path, LABELS, SPLIT)
    with pytest.raises(DataError, match=r"has a column split: drop data\.test_path, or the column"):
        read(path=path, test_path=path)


@pytest.mark.parametrize("read", [csv_file, multi_label_csv])
def test_a_split_column_of_a_second_csv_may_say_test_alone(read: Any, tmp_path: Path) -> None:
    path = write_csv(tmp_path, LABELS[:8])
    test = write_csv(tmp_path, LABELS, ["test"] * COUNT, name="test.csv")
    assert len(read(path=path, test_path=test).test) == COUNT
    test = write_csv(tmp_path, LABELS, SPLIT, name="test.csv")
    with pytest.raises(
        DataError, match=r'test\.csv, line 2: the split is "train", but data\.test_path is the'
    ):
        read(path=path, test_path=test)


@pytest.mark.parametrize(("former", "key"), [("train", "path"), ("test", "test_path")])
def test_a_former_argument_of_multi_label_csv_is_answered_with_the_one_of_today(
    former: str, key: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{former} is now called {key}$"):
        multi_label_csv(**{former: "train.csv"})
    with pytest.raises(ConfigError, match=rf"^data\.{former} is now called {key}$"):
        schema.arguments(multi_label_csv, {former: "train.csv"}, "data")


# ------------------------------------------------------------------------------------------- label sets alone

SETS = [(0,), (0, 1), (), (0, 2), (1,), (0,), (2, 1), (), (0, 1, 2), (0,), (0,), (1,)]


@pytest.mark.parametrize(("seed", "limit"), itertools.product(range(4), (1, 2, 3)))
def test_an_image_is_taken_while_one_of_its_labels_has_room(seed: int, limit: int) -> None:
    hot = np.array([[c in row for c in range(3)] for row in SETS], dtype=np.uint8)
    counts, taken = np.zeros(3, dtype=int), set()
    for image in np.random.default_rng(derive(seed, "subset")).permutation(COUNT):
        if any(counts[c] < limit for c in SETS[image]):
            taken.add(int(image))
            counts += hot[image]
    assert set(np.flatnonzero(ranks(hot, seed, "subset") < limit)) == taken


@every_label_set_form
def test_a_limit_leaves_images_without_labels_out(form: Form, tmp_path: Path) -> None:
    bundle = form.read(path=form.write(tmp_path, SETS, SPLIT), train_per_class=100)
    assert shades(bundle.train) == [0, 1, 3, 4, 5, 6]
    assert shades(form.read(path=form.write(tmp_path, SETS, SPLIT)).train) == list(range(8))


@every_label_set_form
@pytest.mark.parametrize("seed", range(4))
def test_a_drawn_test_set_leaves_each_class_an_image_to_train(form: Form, seed: int, tmp_path: Path) -> None:
    bundle = form.read(path=form.write(tmp_path, SETS), test_fraction=0.9, split_seed=seed)
    assert bundle.train.targets.any(0).all()
    assert sorted(shades(bundle.train) + shades(bundle.test)) == list(range(COUNT))
    assert 1 <= len(bundle.train) <= 3
    assert len(bundle.test) >= COUNT - 3


@every_label_set_form
def test_a_test_set_cannot_be_drawn_from_images_that_are_all_needed(form: Form, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="every image is needed to train some class"):
        form.read(path=form.write(tmp_path, [(0,), (1,), (2,)]))


@every_label_set_form
def test_chosen_classes_keep_their_order_and_images_that_lose_all_labels_go(
    form: Form, tmp_path: Path
) -> None:
    path = form.write(tmp_path, SETS, SPLIT)
    bundle = form.read(path=path, classes=["c", "b"])
    assert bundle.class_names == ["c", "b"]
    assert shades(bundle.train) == [1, 2, 3, 4, 6, 7]  # 2 and 7 never had a label
    assert form.classes(bundle.train) == [(1,), (), (0,), (1,), (0, 1), ()]
    assert shades(bundle.test) == [8, 11]


def test_one_array_with_a_split_and_arrays_of_each_part_are_the_same_data(tmp_path: Path) -> None:
    images = np.arange(12 * 5 * 6, dtype=np.uint8).reshape(12, 5, 6)
    hot = np.array([[c in row for c in range(3)] for row in SETS], dtype=np.uint8)
    np.savez(tmp_path / "one.npz", images=images, labels=hot, split=np.arange(12) // 8, names=np.array(NAMES))
    parts = {"train_images": images[:8], "train_targets": hot[:8], "test_images": images[8:]}
    np.savez(tmp_path / "two.npz", **parts, test_targets=hot[8:], class_names=np.array(NAMES))
    one, two = (
        multi_label_npz(path=str(tmp_path / f"{name}.npz"), train_per_class=1) for name in ("one", "two")
    )
    assert one.class_names == two.class_names
    for first, second in ((one.train, two.train), (one.test, two.test)):
        assert first.targets.tolist() == second.targets.tolist()
        assert shades(first) == shades(second)
