"""The walk below folders, for those who train and those who predict alike; splits; what is told."""

from __future__ import annotations

import os
import tempfile
import unicodedata
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from clprompt.data.sets.imagefolder import imagefolder
from clprompt.errors import DataError, DataWarning
from clprompt.experiment.inference import find_images

COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "\u00e9") for form in ("NFC", "NFD"))


def write(*names: Path, kind: str | None = None) -> None:
    """One image for each name, no two of them alike."""
    for name in names:
        name.parent.mkdir(parents=True, exist_ok=True)
        write.shade = (write.shade + 1) % 256
        Image.new("L", (4, 4), write.shade).save(name, kind or {"": "JPEG"}.get(name.suffix))


write.shade = 0


def classes(root: Path, names: str | list[str] = "ab", count: int = 3) -> Path:
    write(*(root / name / f"{index}.png" for name in names for index in range(count)))
    return root


def trained(root: Path) -> list[str]:
    """The images that training reads, by their paths below a folder, sorted."""
    bundle = imagefolder(path=str(root))
    paths = bundle.train.load.load.load.paths
    return sorted(os.path.relpath(path, root) for path in paths)


def predicted(root: Path) -> list[str]:
    return sorted(os.path.relpath(path, root) for path in find_images([str(root)]))


def by_pattern(root: Path) -> list[str]:
    return sorted(os.path.relpath(path, root) for path in find_images([f"{root}/**/[!x]*.*[gfE]"]))


READERS = pytest.mark.parametrize("read", [trained, predicted, by_pattern])
PLAIN = [f"{name}/{index}.png" for name in "ab" for index in range(3)]


def told(text: str) -> pytest.WarningsRecorder:
    return pytest.warns(DataWarning, match=text)


# ------------------------------------------------------------------------------------------------ one walk


@READERS
@pytest.mark.parametrize(
    "name",
    [
        "a/._0.png",
        "a/.ipynb_checkpoints/0.png",
        "a/deeper/.cache/0.png",
        ".cache/0.png",
        "__MACOSX/a/0.png",
        "b/__MACOSX/._0.png",
        "a/@eaDir/0.jpg",
        "$RECYCLE.BIN/0.png",
    ],
)
def test_hidden_and_system_files_are_left_out_at_every_depth(
    name: str, read: Callable[[Path], list[str]], tmp_path: Path
) -> None:
    write(classes(tmp_path) / name)
    (tmp_path / "a" / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "b" / "desktop.ini").write_bytes(b"x")
    assert read(tmp_path) == PLAIN


@READERS
def test_a_folder_is_read_once_whatever_links_lead_to_it(
    read: Callable[[Path], list[str]], tmp_path: Path
) -> None:
    classes(tmp_path)
    for target, link in ((".", "a/loop"), ("..", "a/up"), ("../b", "a/other"), ("../..", "b/above")):
        (tmp_path / link).symlink_to(target)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert read(tmp_path) == PLAIN


@pytest.mark.parametrize("read", [trained, predicted])
def test_links_that_are_not_followed_are_told(read: Callable[[Path], list[str]], tmp_path: Path) -> None:
    (classes(tmp_path) / "a" / "loop").symlink_to(".")
    with told("links to folders that are read already, or hold them, are left out: 1, the first: .*a/loop"):
        read(tmp_path)


@READERS
def test_a_link_to_a_folder_elsewhere_is_followed(read: Callable[[Path], list[str]], tmp_path: Path) -> None:
    pool = classes(tmp_path / "pool", "xy")
    root = classes(tmp_path / "root", "a")
    (root / "b").symlink_to(pool / "x")
    (root / "a" / "more").symlink_to(pool / "y")
    more = [f"{name}/{index}.png" for name in ("a/more", "b") for index in range(3)]
    assert read(root) == sorted([*PLAIN[:3], *more])


@pytest.mark.parametrize("read", [trained, predicted])
def test_files_are_read_by_their_extension_in_any_case(
    read: Callable[[Path], list[str]], tmp_path: Path
) -> None:
    write(classes(tmp_path) / "a" / "3.jfif", kind="JPEG")
    write(tmp_path / "a" / "4.JPG", tmp_path / "b" / "5.JPEG", tmp_path / "b" / "folder.png" / "6.png")
    more = ["a/3.jfif", "a/4.JPG", "b/5.JPEG", "b/folder.png/6.png"]
    assert read(tmp_path) == sorted([*PLAIN, *more])


@pytest.mark.parametrize("read", [trained, predicted])
def test_photographs_of_other_kinds_are_counted_by_extension(
    read: Callable[[Path], list[str]], tmp_path: Path
) -> None:
    classes(tmp_path)
    for name in (
        "a/1.heic",
        "a/2.HEIC",
        "b/3.avif",
        "b/4.dng",
        "a/named_by_hash",
        "b/5.jpg_large",
        "b/.6.heic",
    ):
        write(tmp_path / name, kind="JPEG")
    for name in ("a/notes.txt", "b/README", "b/labels.odd"):
        (tmp_path / name).write_text("Photographs")
    with told(
        r"6 photographs are left out for the extension \(2 \.heic, 1 without one, 1 \.avif, 1 \.dng, "
        r"1 \.jpg_large\); read are \.jpg, \.jpeg, "
    ) as notes:
        assert read(tmp_path) == PLAIN
    assert len(notes) == 1


@pytest.mark.parametrize("read", [trained, predicted])
def test_the_folders_of_runs_are_no_photographs(read: Callable[[Path], list[str]], tmp_path: Path) -> None:
    write(classes(tmp_path) / "a" / "run" / "figures" / "forgetting.png")
    for name in ("config.yaml", "run.log"):
        (tmp_path / "a" / "run" / name).write_text("")
    with told("folders of runs are left out: 1, the first: .*a/run"):
        assert read(tmp_path) == PLAIN


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A folder that other users reach, which pytest's own are not."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


@READERS
def test_a_folder_that_is_closed_is_named(read: Callable[[Path], list[str]], reachable: Path) -> None:
    closed = classes(reachable) / "a" / "closed"
    write(closed / "0.png")
    closed.chmod(0)
    before = os.geteuid()
    try:
        if before == 0:  # root reads everything
            os.seteuid(65534)
        with pytest.raises(DataError, match=r"a/closed: the folder cannot be read: Permission denied"):
            read(reachable)
    finally:
        os.seteuid(before)
        closed.chmod(0o700)


def test_a_pattern_means_the_folders_that_a_shell_would_find(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(classes(tmp_path))
    write(tmp_path / "a" / "c" / "d" / "9.png")
    for pattern, names in {
        "**/*.png": [*PLAIN, "a/c/d/9.png"],
        "a/**/*.png": [*PLAIN[:3], "a/c/d/9.png"],
        "a/**": [*PLAIN[:3], "a/c/d/9.png"],
        "a/**/d/*": ["a/c/d/9.png"],
        "**/c/**/9.png": ["a/c/d/9.png"],
        "[b-z]**/*.png": PLAIN[3:],
        "?/0.png": ["a/0.png", "b/0.png"],
    }.items():
        assert [str(path) for path in find_images([pattern])] == sorted(names), pattern


def test_the_folder_of_a_run_is_refused_as_images(tmp_path: Path) -> None:
    write(tmp_path / "figures" / "0.png")
    for name in ("config.yaml", "run.log"):
        (tmp_path / name).write_text("")
    with pytest.raises(DataError, match="this is the folder of a run, which holds no photographs"):
        find_images([str(tmp_path)])


# ------------------------------------------------------------------------------------------------ classes


def test_two_classes_that_are_one_folder_are_refused(tmp_path: Path) -> None:
    classes(tmp_path)
    for target in ("a", ".", ".."):
        (tmp_path / "z").symlink_to(target)
        with pytest.raises(DataError, match=r"/z: this is the folder .*, which is read already"):
            imagefolder(path=str(tmp_path))
        (tmp_path / "z").unlink()


@pytest.mark.filterwarnings("ignore:.*left out for the extension")
@pytest.mark.parametrize(
    "name", ["c/.0.png", "c/.hidden/0.png", "c/0.heic", "c/notes.txt", "lost+found/0.png"]
)
def test_a_class_folder_without_photographs_is_refused(name: str, tmp_path: Path) -> None:
    write(classes(tmp_path) / name, kind="JPEG")
    if name.startswith("lost"):
        assert trained(tmp_path) == PLAIN
        return
    with pytest.raises(DataError, match="/c: the class folder holds no image") as error:
        imagefolder(path=str(tmp_path))
    assert ("left out for the extension are 1 .heic" in str(error.value)) == name.endswith("heic")


@pytest.mark.parametrize("name", ["a/9.png", "a/self.png"])
def test_a_broken_link_is_an_image_that_cannot_be_read(name: str, tmp_path: Path) -> None:
    (classes(tmp_path) / name).symlink_to("self.png")
    with pytest.raises(DataError, match=rf"{name}: the image cannot be read: ") as error:
        imagefolder(path=str(tmp_path))
    assert "\n" not in str(error.value)
    with told("1 of 7 images are left out"):
        imagefolder(path=str(tmp_path), on_bad_image="skip")


def test_a_pipe_is_no_image(tmp_path: Path) -> None:
    os.mkfifo(classes(tmp_path) / "a" / "9.png")
    with told("1 of 7 images are left out; the first: .*9.png: .* it is not a file"):
        imagefolder(path=str(tmp_path), on_bad_image="skip")


def test_classes_that_differ_in_letter_case_are_told(tmp_path: Path) -> None:
    classes(tmp_path, ["Cat", "cat"])
    with told('"Cat", "cat" differ in letter case alone; they are 2 classes'):
        assert imagefolder(path=str(tmp_path)).class_names == ["Cat", "cat"]


def test_a_test_class_in_another_letter_case_is_refused(tmp_path: Path) -> None:
    classes(tmp_path / "train", ["Cat", "dog"])
    classes(tmp_path / "test", ["cat", "dog"])
    with pytest.raises(DataError, match=r'test: class "cat" is "Cat" in .*train; rename one'):
        imagefolder(path=str(tmp_path))


def test_a_class_has_one_name_in_both_unicode_forms(tmp_path: Path) -> None:
    classes(tmp_path / "train", [COMPOSED, "b"])
    classes(tmp_path / "test", [DECOMPOSED, "b"])
    bundle = imagefolder(path=str(tmp_path))
    assert bundle.class_names == ["b", COMPOSED]
    assert bundle.test.targets.tolist() == [0, 0, 0, 1, 1, 1]


def test_two_folders_of_one_class_are_told(tmp_path: Path) -> None:
    classes(tmp_path, [COMPOSED, DECOMPOSED, "b"])
    with told(f'2 folders are called "{COMPOSED}", in two Unicode forms: one class'):
        assert imagefolder(path=str(tmp_path)).class_names == ["b", COMPOSED]


def test_a_class_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    try:
        classes(tmp_path, ["a", os.fsdecode(b"\xff")])
    except OSError:
        pytest.skip("the file system takes text alone")
    with pytest.raises(DataError, match=r"the name of a class folder, b'\\xff', is not UTF-8"):
        imagefolder(path=str(tmp_path))


# ------------------------------------------------------------------------------------------------ splits


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("Training", "Testing"),
        ("Train", "Test"),
        ("TRAIN", "VAL"),
        ("train", "Validation"),
        ("training_set", "test_set"),
        ("Train", "valid"),
    ],
)
def test_the_folders_of_a_split_are_known_by_their_names_in_any_case(
    train: str, test: str, tmp_path: Path
) -> None:
    classes(tmp_path / train, count=5)
    classes(tmp_path / test)
    bundle = imagefolder(path=str(tmp_path))
    assert (len(bundle.train), len(bundle.test), bundle.class_names) == (10, 6, ["a", "b"])


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (["Train/a", "train/a", "test/a"], "Train/ and train/ are all folders of training images; keep one"),
        (["train/a", "val/a", "Valid/a"], "Valid/ and val/ are all folders of test images; keep one"),
        (["Train", "Test"], "Test/ and Train/ hold no class folders"),
        (["Training/a", "Testing"], "nothing says the classes of the images in Testing/: sort them"),
        (["Testing/a", "b"], "there is a folder Testing/ but no train/ beside it"),
        (["a/train", "a/test", "b/train", "b/test"], r"/a: it holds test/ and train/; .* give data\.path="),
        (["set/train/a", "set/test/a"], r"/set: it holds test/ and train/; .* give data\.path=.*/set"),
    ],
)
def test_half_or_double_splits_are_refused(folders: list[str], message: str, tmp_path: Path) -> None:
    classes(tmp_path, folders)
    with pytest.raises(DataError, match=message) as error:
        imagefolder(path=str(tmp_path))
    assert "\n" not in str(error.value)


def test_of_test_and_val_the_test_folder_is_used_and_told(tmp_path: Path) -> None:
    for number, part in enumerate(("train", "Test", "val", "extra")):
        classes(tmp_path / part, count=3 + number)
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        assert len(imagefolder(path=str(tmp_path)).test) == 8
    assert [str(note.message).removeprefix(f"imagefolder {tmp_path}: ") for note in notes] == [
        "the test set is Test/; val/ beside it is left out",
        "beside train/ and Test/, extra/ is left out",
    ]


def test_a_test_folder_that_is_the_training_folder_is_refused(tmp_path: Path) -> None:
    classes(tmp_path / "train")
    (tmp_path / "test").symlink_to("train")
    with pytest.raises(DataError, match=r"test/a: this is the folder .*train/a, which is read already"):
        imagefolder(path=str(tmp_path))
