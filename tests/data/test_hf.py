"""Data sets of Hugging Face's library, by the library itself: tiny ones, without a network."""

from __future__ import annotations

import pickle
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clprompt.data import DataBundle
from clprompt.data.sets.hf import hf
from clprompt.errors import ConfigError, DataError, DataWarning
from tests._shared.archives import jpeg

library = pytest.importorskip("datasets", reason="datasets is not installed: pip install 'clprompt[hf]'")
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*one training image only", "ignore:.*no test image", "ignore:.*of its splits"
)

COUNT = 12


@pytest.fixture(autouse=True, scope="module")
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A cache of its own, and no network."""

    def refuse(*arguments: Any, **more: Any) -> None:
        raise OSError("there is no network in this test")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        patch.setattr(socket.socket, "connect", refuse)
        patch.setattr(socket, "getaddrinfo", refuse)
        library.disable_progress_bars()
        yield
        library.enable_progress_bars()


def table(first: int = 0, count: int = COUNT, **columns: Any) -> Any:
    """Images of the shades 10 * first, ..., with class labels 0, 1, 0, ... and domains."""
    held = {
        "image": [{"bytes": jpeg(10 * row), "path": None} for row in range(first, first + count)],
        "label": [row % 2 for row in range(count)],
        "place": ["indoors" if row % 4 < 2 else "outdoors" for row in range(count)],
    }
    kinds = {"image": library.Image(), "label": library.ClassLabel(names=["bee", "apple"])}
    kinds["place"] = library.Value("string")
    made = library.Dataset.from_dict(held, features=library.Features(kinds))
    for name, values in columns.items():
        made = made.remove_columns([name]) if name in made.column_names else made
        made = made if values is None else made.add_column(name, values)
    return made


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One data set, 8 training and 4 test images, in every form."""
    root = tmp_path_factory.mktemp("forms")
    parts = {"train": table(0, 8), "test": table(8, 4)}
    library.DatasetDict(parts).save_to_disk(root / "saved")
    for part, rows in parts.items():
        (root / "parquet" / "data").mkdir(parents=True, exist_ok=True)
        rows.to_parquet(root / "parquet" / "data" / f"{part}-00000-of-00001.parquet")
        for row, held in enumerate(rows.cast_column("image", library.Image(decode=False))):
            folder = root / "folder" / part / ["bee", "apple"][held["label"]]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{row}.jpg").write_bytes(held["image"]["bytes"])
    return {form: root / form for form in ("saved", "parquet", "folder")}


def shades(bundle: DataBundle) -> list[list[tuple[int, str]]]:
    """Of each part, the shade of each image, and its class."""
    return [
        sorted(
            (round(int(np.asarray(part.load(i))[0, 0, 0]), -1), bundle.class_names[part.targets[i]])
            for i in range(len(part))
        )
        for part in (bundle.train, bundle.test)
    ]


EXPECTED = [[(10 * row, ["bee", "apple"][row % 2]) for row in rows] for rows in (range(8), range(8, 12))]


# --------------------------------------------------------------------------------------------------- forms


@pytest.mark.parametrize("form", ["saved", "parquet", "folder"])
def test_a_folder_is_read_in_every_form(form: str, forms: dict[str, Path]) -> None:
    bundle = hf(path=str(forms[form]))
    assert shades(bundle) == EXPECTED
    assert bundle.class_names == (["apple", "bee"] if form == "folder" else ["bee", "apple"])
    assert bundle.domain_names is None


@pytest.mark.parametrize("form", ["saved", "parquet", "folder"])
def test_images_are_known_by_their_contents(form: str, forms: dict[str, Path], tmp_path: Path) -> None:
    known = hf(path=str(forms[form])).fingerprints
    assert "contents" in known["training images"]
    forms[form].rename(tmp_path / "moved")
    assert hf(path=str(tmp_path / "moved")).fingerprints == known
    (tmp_path / "moved").rename(forms[form])
    other = {part: hf(path=str(forms["saved"]), train_split=part).fingerprints for part in ("train", "test")}
    assert other["train"]["training images"] != other["test"]["training images"]


def test_a_copy_in_the_cache_is_read_by_its_name_without_a_network(forms: dict[str, Path]) -> None:
    library.load_dataset(str(forms["parquet"]))
    cache = Path(library.config.HF_DATASETS_CACHE)
    (copy,) = (cache / "parquet").glob("*/*/*/")
    target = cache / "someone___insects" / copy.relative_to(cache / "parquet")
    target.parent.mkdir(parents=True)
    copy.rename(target)
    for file in target.glob("*.arrow"):
        file.rename(file.with_name(file.name.replace("parquet", "insects")))
    assert shades(hf(path="someone/insects")) == EXPECTED
    with pytest.raises(
        DataError, match=r"no folder someone/insects, .*Available configs in the cache: .'default'."
    ):
        hf(path="someone/insects", config="large")


def test_columns_are_chosen_by_arguments(tmp_path: Path) -> None:
    made = table().rename_columns({"image": "img", "label": "fine_label"})
    made.save_to_disk(tmp_path / "data")
    bundle = hf(
        path=str(tmp_path / "data"), image="img", label="place", domain="fine_label", test_fraction=0.5
    )
    assert bundle.class_names == ["indoors", "outdoors"]
    assert bundle.domain_names == ["0", "1"]
    assert (len(bundle.train), len(bundle.test)) == (6, 6)


def test_without_a_test_split_the_validation_split_is_the_test_set(tmp_path: Path) -> None:
    parts = {"train": table(0, 4), "validation": table(8, 4), "extra": table(0, 4)}
    library.DatasetDict(parts).save_to_disk(tmp_path)
    with pytest.warns(DataWarning, match="of its splits train and validation are used; left out: extra"):
        bundle = hf(path=str(tmp_path))
    assert shades(bundle) == [EXPECTED[0][:4], EXPECTED[1]]
    with pytest.warns(DataWarning, match="left out: train"):
        assert len(hf(path=str(tmp_path), train_split="extra", test_split="validation").train) == 4


def test_one_split_by_itself_gets_a_drawn_test_set(tmp_path: Path) -> None:
    table().save_to_disk(tmp_path)
    bundle = hf(path=str(tmp_path), test_fraction=0.5, split_seed=1)
    assert sorted([*shades(bundle)[0], *shades(bundle)[1]]) == sorted(EXPECTED[0] + EXPECTED[1])
    assert bundle.test.targets.tolist().count(0) == 3


@pytest.mark.parametrize(
    ("values", "names"),
    [([7, 30] * 6, ["7", "30"]), (["b", "a"] * 6, ["a", "b"]), (["10", "9"] * 6, ["9", "10"])],
)
def test_labels_may_be_integers_or_text(values: list, names: list[str], tmp_path: Path) -> None:
    table(label=values).save_to_disk(tmp_path)
    assert hf(path=str(tmp_path)).class_names == names


def test_a_table_whose_rows_are_chosen_or_formatted_is_read_as_it_is(tmp_path: Path) -> None:
    table(0, 12).select([11, 0, 1, 2]).with_format("numpy").save_to_disk(tmp_path)
    bundle = hf(path=str(tmp_path), test_fraction=0.5)
    assert sorted([*shades(bundle)[0], *shades(bundle)[1]]) == [
        (0, "bee"),
        (10, "apple"),
        (20, "bee"),
        (110, "apple"),
    ]


def test_a_loader_may_go_to_another_process(forms: dict[str, Path]) -> None:
    part = hf(path=str(forms["saved"])).train
    again = pickle.loads(pickle.dumps(part))
    assert np.array_equal(np.asarray(again.load(3)), np.asarray(part.load(3)))


def test_an_image_that_cannot_be_read_is_named_or_left_out(tmp_path: Path) -> None:
    images = [{"bytes": jpeg(0) if row else b"junk", "path": "first.jpg"} for row in range(COUNT)]
    table(image=images).save_to_disk(tmp_path)
    with pytest.warns(
        DataWarning, match=r"1 of 12 images are left out; .*split train, image 0: the image cannot"
    ):
        bundle = hf(path=str(tmp_path), on_bad_image="skip")
    assert len(bundle.train) + len(bundle.test) == COUNT - 1
    bundle = hf(path=str(tmp_path))
    with pytest.raises(DataError, match=r"split train, image 0: .* it is not an image .*on_bad_image=skip"):
        [part.load(i) for part in (bundle.train, bundle.test) for i in range(len(part))]


# ------------------------------------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"image": "img"},
            r'split train: there is no column "img".*; it has image, label, place \(data\.image\)$',
        ),
        ({"label": "labels"}, r'there is no column "labels"; did you mean "label"\?; .* \(data\.label\)$'),
        ({"domain": "where"}, r'there is no column "where"; it has image, label, place \(data\.domain\)$'),
        (
            {"label": "image"},
            r"split train: the column image must hold class labels, integers or text, not Image",
        ),
        (
            {"image": "label"},
            r"split train: the column label holds no images but ClassLabel.* \(data\.image\)$",
        ),
        ({"train_split": "training"}, r"no split training.*; it has train, test \(data\.train_split\)$"),
        ({"test_split": "dev"}, r"there is no split dev; it has train, test \(data\.test_split\)$"),
    ],
)
def test_a_wrong_argument_is_one_line(arguments: dict, message: str, forms: dict[str, Path]) -> None:
    with pytest.raises(DataError, match=message) as told:
        hf(path=str(forms["saved"]), **arguments)
    assert str(told.value).startswith(f"hf {forms['saved']}")
    assert "\n" not in str(told.value)


def test_one_split_is_not_both_parts(forms: dict[str, Path]) -> None:
    with pytest.raises(
        ConfigError, match=r"data\.test_split must be another split than data\.train_split, train"
    ):
        hf(path=str(forms["saved"]), test_split="train")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0, None] * 6, "split train, row 1: the label is missing"),
        ([[0, 1], [1]] * 6, r"the column label must hold class labels, integers or text, not List"),
        ([0.5, 1.0] * 6, r"the column label must hold class labels, integers or text, not Value\('float64"),
        ([True, False] * 6, r"the column label must hold class labels, integers or text, not Value\('bool"),
    ],
)
def test_a_column_without_a_label_for_each_row_is_one_line(
    values: list, message: str, tmp_path: Path
) -> None:
    table(label=values).save_to_disk(tmp_path)
    with pytest.raises(DataError, match=message):
        hf(path=str(tmp_path))


def test_hidden_labels_of_a_test_split_are_one_line(tmp_path: Path) -> None:
    hidden = table(8, 4).map(lambda row: {"label": -1})
    library.DatasetDict(train=table(0, 8), test=hidden).save_to_disk(tmp_path)
    with pytest.raises(DataError, match=r"label -1 has no name; there are names for 0\.\.1"):
        hf(path=str(tmp_path))


def test_splits_that_name_other_classes_are_one_line(tmp_path: Path) -> None:
    other = table(8, 4).cast_column("label", library.ClassLabel(names=["apple", "bee"]))
    for part, rows in (("train", table(0, 8)), ("test", other)):
        rows.save_to_disk(tmp_path / part)
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(DataError, match="the splits train and test name other classes in the column label"):
        hf(path=str(tmp_path))


@pytest.mark.parametrize("path", ["none", "some/where/else", "someone/unknown", "/nowhere/at/all"])
def test_what_is_neither_a_folder_nor_in_the_cache_is_one_line(path: str) -> None:
    with pytest.raises(
        DataError, match=f"^data.path: there is no folder {path}, and no data set of that name in"
    ) as told:
        hf(path=path)
    assert "data.download=true asks the Hub" in str(told.value)
    assert "\n" not in str(told.value)


def test_a_data_set_that_lies_a_level_deeper_is_one_line(forms: dict[str, Path]) -> None:
    (forms["saved"].parent / "outer").mkdir()
    forms["saved"].rename(forms["saved"].parent / "outer" / "saved")
    outer = forms["saved"].parent / "outer"
    with pytest.raises(DataError, match=f"the data set lies one level deeper; give data.path={outer}/saved$"):
        hf(path=str(outer))
    (outer / "saved").rename(forms["saved"])


def test_a_folder_without_data_or_with_damaged_data_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "train.parquet").write_bytes(b"junk")
    for name in ("empty", "damaged"):
        with pytest.raises(DataError, match=f"^hf {tmp_path}/{name}: the data set cannot be read: ") as told:
            hf(path=str(tmp_path / name))
        assert "\n" not in str(told.value)


def test_reading_leaves_the_librarys_switches_as_they_were(forms: dict[str, Path]) -> None:
    import huggingface_hub.constants

    before = (library.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE)
    hf(path=str(forms["parquet"]))
    with pytest.raises(DataError):
        hf(path="someone/unknown")
    assert before == (library.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE)
