"""Lists that say which images train and which test: their forms, what they decide, their mistakes."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import pytest

from clprompt.data import DataBundle
from clprompt.data.lists import Published, listed_images
from clprompt.data.sets.imagefolder import imagefolder
from clprompt.errors import ConfigError, DataError
from tests._shared.archives import pictures

TRAIN = ["a/0.jpg", "a/1.jpg", "b/0.jpg", "b/1.jpg"]
TEST = ["b/2.jpg", "a/2.jpg"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    pictures(folder, [*TRAIN, *TEST, "c/0.jpg", "loose.jpg", "my photos/cat 1.jpg", "my photos/cat 2.jpg"])
    return folder


def read(root: Path, folder: Path, train: str, test: str, ending: str = "txt") -> DataBundle:
    """The data set of lists of these contents."""
    files = [folder / f"{part}.{ending}" for part in ("train", "test")]
    for file, content in zip(files, (train, test), strict=True):
        file.write_text(content)
    return imagefolder(path=str(root), lists=tuple(map(str, files)))


def rows(bundle: DataBundle) -> list[list[str]]:
    """Of each part, the images and their classes: "a/0.jpg a"."""
    parts = []
    for part in (bundle.train, bundle.test):
        files, chosen = part.load.load.load, part.load.load.indices[part.load.indices]
        paths = ["/".join(Path(files.paths[row]).parts[-2:]) for row in chosen]
        names = [bundle.class_names[target] for target in part.targets]
        parts.append([f"{path} {name}" for path, name in zip(paths, names, strict=True)])
    return parts


pytestmark = pytest.mark.filterwarnings("ignore:.*one training image only", "ignore:.*no test image")


def lines(paths: list[str], before: str = "", after: list[str] | None = None) -> str:
    return "".join(f"{before}{path}{'' if after is None else after[i]}\n" for i, path in enumerate(paths))


def in_yaml(paths: list[str], targets: list[int] | None, before: str = "data/set/") -> str:
    held = ["data:", *(f"- {before}{path}" for path in paths)]
    return "\n".join([*held, *([] if targets is None else ["targets:", *(f"- {x}" for x in targets)]), ""])


EXPECTED = [[f"{path} {path[0]}" for path in part] for part in (TRAIN, TEST)]


@pytest.mark.parametrize("before", ["", "./", "data/set/", "/home/me/data/set/", "C:/data/"])
def test_a_path_may_start_anywhere_above_the_folder(before: str, root: Path, tmp_path: Path) -> None:
    bundle = read(root, tmp_path, lines(TRAIN, before), lines(TEST, before))
    assert rows(bundle) == EXPECTED
    assert bundle.class_names == ["a", "b"]


@pytest.mark.parametrize("separator", [" ", "\t", ",", ", ", "   "])
def test_integer_labels_decide_the_order_of_the_classes(separator: str, root: Path, tmp_path: Path) -> None:
    labels = [[f"{separator}{7 - 3 * (path[0] == 'b')}" for path in part] for part in (TRAIN, TEST)]
    bundle = read(root, tmp_path, lines(TRAIN, after=labels[0]), lines(TEST, after=labels[1]))
    assert bundle.class_names == ["b", "a"]
    assert rows(bundle) == EXPECTED


def test_labels_of_text_leave_the_classes_sorted_by_their_folders(root: Path, tmp_path: Path) -> None:
    labels = [[" z y" if path[0] == "a" else " golden retriever" for path in part] for part in (TRAIN, TEST)]
    bundle = read(root, tmp_path, lines(TRAIN, after=labels[0]), lines(TEST, after=labels[1]))
    assert bundle.class_names == ["a", "b"]


@pytest.mark.parametrize("ending", ["yaml", "yml", "YAML"])
def test_data_and_targets_of_yaml_are_paths_and_labels(ending: str, root: Path, tmp_path: Path) -> None:
    labels = [[int(path[0] == "a") for path in part] for part in (TRAIN, TEST)]
    bundle = read(root, tmp_path, in_yaml(TRAIN, labels[0]), in_yaml(TEST, labels[1]), ending)
    assert (bundle.class_names, rows(bundle)) == (["b", "a"], EXPECTED)
    bundle = read(root, tmp_path, in_yaml(TRAIN, None), in_yaml(TEST, None), ending)
    assert (bundle.class_names, rows(bundle)) == (["a", "b"], EXPECTED)


def test_backslashes_empty_lines_and_blanks_in_names_are_read(root: Path, tmp_path: Path) -> None:
    train = "\ufeffset\\a\\0.jpg\r\n\r\nset\\my photos\\cat 1.jpg\r\n"
    bundle = read(root, tmp_path, train, "set/a/1.jpg\nset/my photos/cat 2.jpg\n")
    assert bundle.class_names == ["a", "my photos"]


def test_the_class_of_an_image_in_a_folder_of_the_split_is_the_folder_below(tmp_path: Path) -> None:
    names = {part: [f"{part}/{x}/images/{i}.jpg" for x in "ab" for i in (0, 1)] for part in ("train", "val")}
    pictures(tmp_path / "set", [*names["train"], *names["val"]])
    bundle = read(tmp_path / "set", tmp_path, lines(names["train"]), lines(names["val"]))
    assert bundle.class_names == ["a", "b"]


def test_lists_may_name_images_in_domain_folders(tmp_path: Path) -> None:
    names = [f"{domain}/{label}/{i}.jpg" for domain in ("art", "photo") for label in "ab" for i in (0, 1)]
    pictures(tmp_path / "set", names)
    lists = [tmp_path / "train.txt", tmp_path / "test.txt"]
    for file, some in zip(lists, (names[:6], names[6:]), strict=True):
        file.write_text(lines(some, "data/set/"))
    bundle = imagefolder(path=str(tmp_path / "set"), lists=tuple(map(str, lists)), domain_folders=True)
    assert (bundle.class_names, bundle.domain_names) == (["a", "b"], ["art", "photo"])
    assert bundle.train.domains.tolist() == [0, 0, 0, 0, 1, 1]


def test_classes_and_limits_select_from_the_listed_images(root: Path, tmp_path: Path) -> None:
    read(root, tmp_path, lines(TRAIN, after=[" 1", " 1", " 0", " 0"]), lines(TEST, after=[" 0", " 1"]))
    lists = (str(tmp_path / "train.txt"), str(tmp_path / "test.txt"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bundle = imagefolder(path=str(root), lists=lists, classes="1", train_per_class=1)
    assert (bundle.class_names, len(bundle.train), len(bundle.test)) == (["a"], 1, 1)


def test_a_listed_image_that_cannot_be_read_may_be_left_out(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError):
        read(root, tmp_path, lines([*TRAIN, "a/9.jpg"]), lines(TEST))
    lists = (str(tmp_path / "train.txt"), str(tmp_path / "test.txt"))
    with pytest.warns(UserWarning, match=r"1 of 7 images are left out; the first: .*a/9.jpg"):
        assert len(imagefolder(path=str(root), lists=lists, on_bad_image="skip").train) == 4


# ------------------------------------------------------------------------------------------------ mistakes

GOOD = lines(TRAIN)
MISTAKES = {
    "an image that is not there": (
        GOOD + "a/9.jpg\n",
        lines(TEST),
        r"train\.txt, line 5: .*a/9\.jpg: the image cannot be read: there is no such file; .*=skip",
    ),
    "images of another folder": (
        "x/9.jpg\ny/8.jpg\n",
        lines(TEST),
        r"train\.txt, line 1: x/9\.jpg is not below .*, nor are the others",
    ),
    "paths that begin otherwise": (
        "data/set/a/0.jpg\nelsewhere/set/a/1.jpg\n",
        lines(TEST),
        r"train\.txt, line 2: elsewhere/set/a/1\.jpg does not begin with data/set/ as the others do",
    ),
    "a path that leads out": (
        GOOD + "a/../b/2.jpg\n",
        lines(TEST),
        r"train\.txt, line 5: a/\.\./b/2\.jpg leads out of its folder",
    ),
    "an image in both lists": (
        GOOD,
        lines([*TEST, "./a/1.jpg"]),
        r"test\.txt, line 3: a/1\.jpg is a training image, too \(.*train\.txt, line 2\)",
    ),
    "an empty training list": ("\n \n", lines(TEST), r"data\.lists: .*train\.txt: there is no image in it"),
    "an empty test list": (GOOD, "", r"data\.lists: .*test\.txt: there is no image in it"),
    "an image in no class folder": (
        GOOD + "loose.jpg\n",
        lines(TEST),
        r"train\.txt, line 5: loose\.jpg lies in no class folder of ",
    ),
    "a class that is tested alone": (
        GOOD,
        lines([*TEST, "c/0.jpg"]),
        'class "c" has test images, but no training image',
    ),
    "a header": (
        "path label\n" + GOOD,
        lines(TEST),
        r"train\.txt, line 1: it must be the path of an image",
    ),
    "NUL": ("a/\0.jpg\n" + GOOD, lines(TEST), r"train\.txt, line 1: it must be the path of an image"),
    "a missing label": (
        "a/0.jpg 0\na/1.jpg\n",
        lines(TEST),
        r"train\.txt, line 2: the label is missing",
    ),
    "a surplus label": (
        "a/0.jpg\na/1.jpg 0\n",
        lines(TEST),
        r"train\.txt, line 2: lines before have no label",
    ),
    "labels in one list": ("a/0.jpg 0\n", lines(TEST), r"test\.txt: it has no labels, and .*train\.txt has"),
    "a folder with two labels": (
        "a/0.jpg 0\nb/0.jpg 1\n",
        "a/2.jpg 0\nb/2.jpg 2\n",
        r"test\.txt, line 2: the label of b/ is 2, and 1 before",
    ),
    "a label of two folders": (
        "a/0.jpg 0\nb/0.jpg 0\n",
        "a/2.jpg 0\n",
        r"train\.txt, line 2: the label 0 is that of b/, and of a/ before",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_list_is_one_line(mistake: str, root: Path, tmp_path: Path) -> None:
    train, test, message = MISTAKES[mistake]
    with pytest.raises(DataError, match=message) as error:
        read(root, tmp_path, train, test)
    assert "\n" not in str(error.value)


YAML_MISTAKES = {
    "no YAML": ("data: [a/0.jpg\n", r"train\.yaml, line 2: this is not YAML: "),
    "a list": ("- a/0.jpg\n", "it must hold data, a list of paths, and perhaps targets"),
    "one path": ("data: a/0.jpg\n", "it must hold data, a list of paths"),
    "nothing": ("", "it must hold data, a list of paths"),
    "no path": ("data: []\n", "there is no image in it"),
    "fewer targets": (in_yaml(TRAIN, [0, 0]), "of 4 data there must be as many targets, not 2"),
    "a target": (in_yaml(TRAIN, None) + "targets: 3\n", "of 4 data there must be as many targets, not none"),
    "a number for a path": ("data: [3]\n", r"train\.yaml, data\[0\] must be a path, got 3"),
    "a half for a label": (
        in_yaml(TRAIN, [0, 0, 0.5, 1]),
        r"train\.yaml, targets\[2\] must be an integer or text, got 0\.5",
    ),
    "a truth for a label": (
        in_yaml(TRAIN, [0, 0, True, 1]),
        r"targets\[2\] must be an integer or text, got True",
    ),
    "nested too deep": ("data: " + "[" * 100_000, "this is not YAML"),
}


@pytest.mark.parametrize("mistake", YAML_MISTAKES)
def test_a_mistake_in_a_list_of_yaml_is_one_line(mistake: str, root: Path, tmp_path: Path) -> None:
    content, message = YAML_MISTAKES[mistake]
    with pytest.raises(DataError, match=message) as error:
        read(root, tmp_path, content, in_yaml(TEST, None), "yaml")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("make", "reason"), [(lambda _: None, "no such file"), (Path.mkdir, "not a file")])
def test_a_list_that_is_not_there_is_one_line(make, reason: str, root: Path, tmp_path: Path) -> None:
    make(tmp_path / "list.txt")
    with pytest.raises(DataError, match=rf"data\.lists: .*list\.txt: .*{reason}"):
        imagefolder(path=str(root), lists=(str(tmp_path / "list.txt"),) * 2)


def test_a_list_of_another_encoding_is_one_line(root: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(b"a/\xe9.jpg\n")
    with pytest.raises(DataError, match=r"list\.txt: this is not text in UTF-8"):
        imagefolder(path=str(root), lists=(str(tmp_path / "list.txt"),) * 2)


def test_there_are_two_lists(root: Path) -> None:
    with pytest.raises(ConfigError, match="lists must be list of 2 values"):
        imagefolder(path=str(root), lists=["train.txt"])


# ---------------------------------------------------------------------------------------- published lists


@pytest.fixture
def lists(tmp_path: Path) -> list[str]:
    for part, paths in (("train", TRAIN), ("test", TEST)):
        (tmp_path / f"{part}.txt").write_text(lines(paths))
    return [str(tmp_path / "train.txt"), str(tmp_path / "test.txt")]


#: with what `git hash-object` says of both files
PUBLISHED = [
    Published("a repository, train.txt", "6a077befa1808e24140ff750c33a6cae73d45f1e"),
    Published("a repository, test.txt", "e4fec6ce312875367696f3675079fda639b4aa48"),
]


def test_the_published_lists_are_taken_without_a_word(root: Path, lists: list[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        listed_images("set", root, lists, PUBLISHED)


def test_other_lists_than_the_published_ones_are_told_once(root: Path, lists: list[str]) -> None:
    for list_ in lists:
        with open(list_, "a") as file:
            file.write(os.linesep)
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        listed_images("set", root, lists, PUBLISHED)
    (note,) = notes
    assert "train.txt and " in str(note.message)
    assert "are not the published lists (a repository, train.txt and a repository, test.txt)" in str(
        note.message
    )


def test_the_published_lists_in_the_wrong_order_are_refused(root: Path, lists: list[str]) -> None:
    with pytest.raises(DataError, match=r"test\.txt is the published list of test images, not of training"):
        listed_images("set", root, lists[::-1], PUBLISHED)
