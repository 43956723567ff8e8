"""Scenes, land use, styles and surroundings, read from small copies of their archives' layouts."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clprompt.data import DataBundle
from clprompt.data.sets.core50 import core50
from clprompt.data.sets.domainnet import domainnet
from clprompt.data.sets.mit67 import mit67
from clprompt.data.sets.resisc45 import resisc45
from clprompt.errors import ConfigError, DataError, DataWarning
from tests._shared import archives

#: of each data set its reader and what builds its archive
SETS: dict[str, tuple[Callable[..., DataBundle], Callable[..., dict[str, Any]]]] = {
    "mit67": (mit67, lambda root: archives.mit67(root, classes=3)),
    "resisc45": (resisc45, lambda root: archives.resisc45(root, classes=3)),
    "domainnet": (domainnet, lambda root: archives.domainnet(root, classes=3)),
    "core50": (core50, archives.core50),
}
#: the folder that its paths start from
FOLDERS = {
    "mit67": "MIT67/Images",
    "resisc45": "NWPU-RESISC45",
    "domainnet": "DomainNet",
    "core50": "core50_128x128",
}
every_set = pytest.mark.parametrize("name", ["domainnet", "core50"])  # test_archives.py has the others
pytestmark = pytest.mark.filterwarnings("ignore:.*validation images are left out")


def built(name: str, root: Path) -> Callable[..., DataBundle]:
    """A small copy of an archive, as a reader that may be given further arguments."""
    reader, build = SETS[name]
    arguments = build(root)
    return lambda **more: reader(**{**arguments, **more})


def rows(part: Any, names: list[str]) -> list[tuple[str, str]]:
    """The file of each image below the archive's folder, and its class."""
    load, chosen = part.load, range(len(part))
    while not hasattr(load, "paths"):
        chosen, load = [int(load.indices[row]) for row in chosen], load.load
    folders = rf".*(?:{'|'.join(FOLDERS.values())})/"
    paths = [re.sub(folders, "", str(load.paths[row])) for row in chosen]
    return [(path, names[target]) for path, target in zip(paths, part.targets, strict=True)]


def parts(bundle: DataBundle) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    return rows(bundle.train, bundle.class_names), rows(bundle.test, bundle.class_names)


# --------------------------------------------------------------------------------------- both with domains


@every_set
def test_the_path_may_be_the_folder_that_holds_the_archives(name: str, tmp_path: Path) -> None:
    read = built(name, tmp_path)
    assert parts(read(path=str(tmp_path))) == parts(read())


@every_set
def test_what_is_missing_is_one_line_that_says_what_to_download(name: str, tmp_path: Path) -> None:
    reader = SETS[name][0]
    with pytest.raises(DataError) as told:
        reader(path=str(tmp_path / "none"))
    text = str(told.value)
    assert text.startswith(f"data set {name}: there is no folder {tmp_path}/none; download ")
    assert "http" in text
    assert "\n" not in text
    with pytest.raises(DataError, match=f"data set {name}: {tmp_path} is not its folder; download "):
        reader(path=str(tmp_path))


@every_set
def test_an_archive_that_lies_a_level_deeper_is_one_line_that_says_where(name: str, tmp_path: Path) -> None:
    read = built(name, tmp_path)
    top = tmp_path / Path(FOLDERS[name]).parts[0]
    top.rename(tmp_path / "inner")
    top.mkdir()
    (tmp_path / "inner").rename(top / "inner")
    line = f"data set {name}: {top} is not its folder; give data.path={top}/inner$"
    with pytest.raises(DataError, match=line):
        read(path=str(top))


@every_set
def test_an_image_that_cannot_be_read_is_named_or_left_out(name: str, tmp_path: Path) -> None:
    read = built(name, tmp_path)
    before = parts(read())
    path, _ = before[0][0]
    (tmp_path / FOLDERS[name] / path).write_bytes(b"")
    with pytest.raises(DataError, match=f"{re.escape(path)}: the image cannot be read: it is empty; .*=skip"):
        read()
    with pytest.warns(DataWarning, match="1 of [0-9]+ images are left out"):
        assert parts(read(on_bad_image="skip")) == (before[0][1:], before[1])


@every_set
def test_classes_and_limits_select(name: str, tmp_path: Path) -> None:
    read = built(name, tmp_path)
    names = read().class_names
    bundle = read(classes="1", train_per_class=1, test_per_class=1)
    assert bundle.class_names == [names[1]]
    assert (len(bundle.train), len(bundle.test)) == (1, 1)
    with pytest.raises(ConfigError, match=rf"data\.classes: 0-99 is not within the {len(names)} classes"):
        read(classes="0-99")


# ------------------------------------------------------------------------------------------------- scenes


def test_the_lists_of_mit67_are_its_split(tmp_path: Path) -> None:
    train, test = parts(built("mit67", tmp_path)())
    assert train == [
        (f"room_{c:02d}/Train_{i} gallery.jpg", f"room_{c:02d}") for i in (0, 1) for c in range(3)
    ]
    assert test == [(f"room_{c:02d}/Test_0 gallery.jpg", f"room_{c:02d}") for c in range(3)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "room_00/gone.jpg",
            r"TrainImages\.txt, line 7: .*room_00/gone\.jpg: the image cannot be read: .*no such",
        ),
        ("room_00/Test_0 gallery.jpg", r"TestImages\.txt, line 1: .* is a training image, too"),
        ("../x.jpg", r"TrainImages\.txt, line 7: \.\./x\.jpg leads out"),
        ("loose.jpg", r"TrainImages\.txt, line 7: .*loose\.jpg lies in no class folder"),
    ],
)
def test_a_wrong_line_in_a_list_of_mit67_is_told_with_its_number(
    line: str, message: str, tmp_path: Path
) -> None:
    read = built("mit67", tmp_path)
    with open(tmp_path / "MIT67" / "TrainImages.txt", "a") as file:
        file.write(f"{line}\n")
    with pytest.raises(DataError, match=message) as told:
        read()
    assert "\n" not in str(told.value)


def test_a_list_of_mit67_that_is_missing_is_one_line(tmp_path: Path) -> None:
    read = built("mit67", tmp_path)
    (tmp_path / "MIT67" / "TestImages.txt").unlink()
    with pytest.raises(DataError, match=r"data set mit67: .*MIT67 lacks TestImages\.txt; download"):
        read()


# ----------------------------------------------------------------------------------------------- land use


def test_resisc45_is_split_by_lists_of_file_names(tmp_path: Path) -> None:
    read = built("resisc45", tmp_path)
    with pytest.warns(DataWarning, match="resisc45: 3 validation images are left out, as there are test"):
        bundle = read()
    train, test = parts(bundle)
    labels = ["airplane", "field_02", "wetland"]
    assert bundle.class_names == labels
    assert train == [(f"{label}/{label}_{i:03d}.jpg", label) for i in (0, 1) for label in labels]
    assert test == [(f"{label}/{label}_003.jpg", label) for label in labels]


def test_resisc45_without_lists_gets_a_split(tmp_path: Path) -> None:
    bundle = built("resisc45", tmp_path)(list_folder=None, test_fraction=0.5)
    assert (len(bundle.train), len(bundle.test)) == (6, 6)
    assert sorted(bundle.test.targets.tolist()) == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("part", "line", "message"),
    [
        (
            "train",
            "gone_001.jpg",
            r"resisc45-train\.txt, line 7: there is no image gone_001\.jpg in a class folder",
        ),
        (
            "test",
            "airplane_000.jpg",
            r"test\.txt, line 4: airplane_000\.jpg is listed before, in .*train\.txt, line 1",
        ),
        ("train", "airplane_000.jpg", r"train\.txt, line 7: airplane_000\.jpg is listed before, in .*line 1"),
    ],
)
def test_a_wrong_line_in_a_list_of_resisc45_is_told(
    part: str, line: str, message: str, tmp_path: Path
) -> None:
    read = built("resisc45", tmp_path)
    with open(tmp_path / f"resisc45-{part}.txt", "a") as file:
        file.write(f"{line}\n")
    with pytest.raises(DataError, match=message):
        read()


def test_a_list_of_resisc45_that_is_missing_or_empty_is_one_line(tmp_path: Path) -> None:
    read = built("resisc45", tmp_path)
    (tmp_path / "resisc45-test.txt").write_text("\n")
    with pytest.raises(DataError, match=r"resisc45-test\.txt: there is no image in it"):
        read()
    with pytest.raises(DataError, match=r"nowhere/resisc45-train\.txt: No such file"):
        read(list_folder=str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="embedded null byte"):
        read(list_folder="a\0b")


# ------------------------------------------------------------------------------------------------- styles


@pytest.mark.parametrize("splits", ["", "splits"])
def test_domainnet_has_the_styles_classes_and_split_of_its_lists(splits: str, tmp_path: Path) -> None:
    bundle = domainnet(**archives.domainnet(tmp_path, classes=3, splits=splits))
    assert bundle.class_names == [f"thing_{c:03d}" for c in range(3)]
    assert bundle.domain_names == list(archives.STYLES)
    train, test = parts(bundle)
    for held, domains, word, count in (
        (train, bundle.train.domains, "train", 2),
        (test, bundle.test.domains, "test", 1),
    ):
        assert held == [
            (f"{style}/thing_{c:03d}/{word}_{i}.jpg", f"thing_{c:03d}")
            for style in archives.STYLES
            for i in reversed(range(count))
            for c in reversed(range(3))
        ]
        assert [bundle.domain_names[d] for d in domains] == [path.partition("/")[0] for path, _ in held]


def test_of_domainnet_some_styles_can_be_read_by_themselves(tmp_path: Path) -> None:
    arguments = archives.domainnet(tmp_path, classes=3, styles=["real", "sketch"])
    bundle = domainnet(**arguments, domains=["sketch", "real"])
    assert bundle.domain_names == ["real", "sketch"]
    assert len(bundle.train) == 12
    with pytest.raises(
        DataError,
        match="/DomainNet lacks clipart and infograph and painting and quickdraw; download",
    ):
        domainnet(**arguments)
    with pytest.raises(ConfigError, match=r'domains must be list of one of "clipart", .*, got \["photo"\]'):
        domainnet(**arguments, domains=["photo"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "real/thing_000/gone.jpg 0",
            r"line 7: .*/gone\.jpg: the image cannot be read: .*no such file",
        ),
        (
            "sketch/thing_000/test_0.jpg 0",
            "line 7: it must be real/CLASS/IMAGE, a blank and the class id",
        ),
        (
            "real/thing_000/test_0.jpg",
            "line 7: it must be real/CLASS/IMAGE, a blank and the class id",
        ),
        ("real/../test_0.jpg 0", "line 7: it must be real/CLASS/IMAGE, a blank and the class id"),
        ("real/thing_000/test_0.jpg 1", "line 7: class 1 is thing_000, and thing_001 before"),
        ("real/thing_000/test_0.jpg 3", "line 7: the class of thing_000 is 3, and 0 before"),
    ],
)
def test_a_wrong_line_in_a_list_of_domainnet_is_told(line: str, message: str, tmp_path: Path) -> None:
    arguments = archives.domainnet(tmp_path, classes=3, styles=["real"])
    with open(tmp_path / "DomainNet" / "real_train.txt", "a") as file:
        file.write(f"{line}\n")
    with pytest.raises(DataError, match=f"real_train.txt, {message}"):
        domainnet(**arguments, domains=["real"])


def test_a_list_of_domainnet_that_is_missing_is_one_line(tmp_path: Path) -> None:
    arguments = archives.domainnet(tmp_path, classes=3, styles=["real"])
    (tmp_path / "DomainNet" / "real_test.txt").unlink()
    with pytest.raises(DataError, match=r"DomainNet/real_test\.txt: No such file"):
        domainnet(**arguments, domains=["real"])


# ------------------------------------------------------------------------------------------- surroundings


def test_of_core50_three_sessions_are_the_test_set_and_all_are_domains(tmp_path: Path) -> None:
    bundle = built("core50", tmp_path)()
    assert bundle.class_names == ["plug_adapter1", "plug_adapter2", "mobile_phone1"]
    assert bundle.domain_names == [str(session) for session in range(1, 12)]
    names = {1: "plug_adapter1", 2: "plug_adapter2", 6: "mobile_phone1"}
    expected = [
        [
            (f"s{s}/o{o}/C_{s:02d}_{o:02d}_{i:03d}.png", names[o])
            for s in range(1, 12)
            if (s in (3, 7, 10)) == is_test
            for o in names
            for i in (0, 1)
        ]
        for is_test in (False, True)
    ]
    assert list(parts(bundle)) == expected
    for part, held in zip((bundle.train, bundle.test), expected, strict=True):
        assert [f"s{bundle.domain_names[d]}" for d in part.domains] == [
            path.partition("/")[0] for path, _ in held
        ]


def test_a_class_of_core50_may_be_a_category_of_five_objects(tmp_path: Path) -> None:
    bundle = built("core50", tmp_path)(level="category")
    assert bundle.class_names == ["plug_adapter", "mobile_phone"]
    assert [bundle.class_names[c] for c in bundle.test.targets[:6]] == ["plug_adapter"] * 4 + [
        "mobile_phone"
    ] * 2


def test_a_session_of_core50_that_is_not_whole_is_one_line(tmp_path: Path) -> None:
    read = built("core50", tmp_path)
    folder = tmp_path / "core50_128x128" / "s5"
    for file in (folder / "o2").iterdir():
        file.unlink()
    with pytest.raises(DataError, match=r"s5/o2: the folder holds no image"):
        read()
    (folder / "o2").rmdir()
    with pytest.raises(DataError, match=r"data set core50: .*/s5 lacks the object o2"):
        read()
