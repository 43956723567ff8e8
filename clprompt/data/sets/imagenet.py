"""ImageNet and what is made of its classes: ImageNet-100, ImageNet-R, ImageNet-A, Tiny ImageNet."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from clprompt import schema
from clprompt.data.archives import Archive
from clprompt.data.bundle import DataBundle, takes_views
from clprompt.data.class_folders import class_folders, folder_bundle, found_bundle
from clprompt.data.folders import folders_in
from clprompt.data.lists import FoundImages, Lists, Published, listed_images, numbered_lines
from clprompt.data.names import class_name
from clprompt.data.normalisation import IMAGENET, TINY_IMAGENET
from clprompt.data.reading import Reading, takes_reading
from clprompt.data.selection import Selection, takes_selection
from clprompt.errors import DataError, nearest, tell
from clprompt.registry import datasets
from clprompt.schema import FilePath

_WNID = r"n\d{8}"

# ---------------------------------------------------------------------------------------------- ImageNet-R

_IMAGENET_R = Archive(
    "imagenet-r",
    (rf"{_WNID}|train",),
    "imagenet-r.tar from https://people.eecs.berkeley.edu/~hendrycks/imagenet-r.tar",
)
_IMAGENET_R_LISTS = (
    Published(
        "GT-RIPL/CODA-Prompt, dataloaders/splits/imagenet-r_train.yaml",
        "a039907f411700078d505572df4df09ab6e2d669",
    ),
    Published(
        "GT-RIPL/CODA-Prompt, dataloaders/splits/imagenet-r_test.yaml",
        "23c3881c77e253ff492bf97a2b8ed0b0a966adad",
    ),
)


@datasets.register("imagenet_r", paper="Hendrycks et al., ICCV 2021")
@schema.checked
@takes_views(normalisation=IMAGENET)
@takes_selection()
@takes_reading()
def imagenet_r(
    *,
    path: FilePath = "data/imagenet-r",
    lists: Lists | None = None,
    selection: Selection,
    reading: Reading,
) -> DataBundle:
    """ImageNet-R: 200 classes of ImageNet as art, toys, graffiti and the like; 30000 images, no split.

    With ``lists`` class ids are the lists' own, which follow no order of names. An archive with train/ and
    test/, as PILOT distributes it, is read as such.

    Args:
        path: the folder imagenet-r of the archive, or the one that holds it.
        lists: the files of the 24000 training and the 6000 test images, imagenet-r_train.yaml and
            imagenet-r_test.yaml of GT-RIPL/CODA-Prompt; others are told. null draws test images.
        test_fraction: share of each class that is the test set, where there are no lists and no test/.
        split_seed: decides which images those are, and those of ``train_per_class`` and ``test_per_class``.
        classes: the classes to keep: names, or class ids such as 0-19.
        train_per_class: at most so many training images of each class.
        test_per_class: at most so many test images of each class.

    Raises:
        DataError: the data is not there, a list is wrong, or an image cannot be read.
    """
    return folder_bundle(
        "imagenet_r",
        _IMAGENET_R.top("imagenet_r", path),
        selection,
        reading,
        lists=lists,
        published=_IMAGENET_R_LISTS,
    )


# ---------------------------------------------------------------------------------------------- ImageNet-A

_IMAGENET_A = Archive(
    "imagenet-a",
    (rf"{_WNID}|train",),
    "imagenet-a.tar from https://people.eecs.berkeley.edu/~hendrycks/imagenet-a.tar",
)


@datasets.register("imagenet_a", paper="Hendrycks et al., CVPR 2021")
@schema.checked
@takes_views()
@takes_selection()
@takes_reading()
def imagenet_a(
    *,
    path: FilePath = "data/imagenet-a",
    lists: Lists | None = None,
    selection: Selection,
    reading: Reading,
) -> DataBundle:
    """ImageNet-A: 200 classes of ImageNet in photographs that classifiers mistake; 7500 images, no split.

    An archive with train/ and test/, as PILOT distributes it, is read as such.

    Args:
        path: the folder imagenet-a of the archive, or the one that holds it.
        lists: two files that name the training and the test images; see :mod:`clprompt.data.lists`.
        test_fraction: share of each class that is the test set, where there are no lists and no test/.
        split_seed: decides which images those are, and those of ``train_per_class`` and ``test_per_class``.
        classes: the classes to keep: names, or positions in their alphabetical order such as 0-19.
        train_per_class: at most so many training images of each class.
        test_per_class: at most so many test images of each class.

    Raises:
        DataError: the data is not there, a list is wrong, or an image cannot be read.
    """
    return folder_bundle(
        "imagenet_a",
        _IMAGENET_A.top("imagenet_a", path),
        selection,
        reading,
        lists=lists,
    )


# ------------------------------------------------------------------------------------------- Tiny ImageNet

_TINY_IMAGENET = Archive(
    "tiny-imagenet-200",
    ("train", "val|test", r"wnids\.txt"),
    "tiny-imagenet-200.zip from http://cs231n.stanford.edu/tiny-imagenet-200.zip",
)


@datasets.register("tiny_imagenet", paper="Le & Yang, 2015")
@schema.checked
@takes_views(normalisation=TINY_IMAGENET)
@takes_selection(but=("test_fraction",))
@takes_reading()
def tiny_imagenet(
    *,
    path: FilePath = "data/tiny-imagenet-200",
    selection: Selection,
    reading: Reading,
) -> DataBundle:
    """Tiny ImageNet: 200 classes, 100000 + 10000 images, 64x64; the test images are those of val/.

    Class ids are the lines of wnids.txt, as the released code of Si-Blurry numbers them; ``imagefolder``
    sorts the classes by name.

    Args:
        path: the folder tiny-imagenet-200 of the archive, or the one that holds it.
        classes: the classes to keep: names, or class ids such as 0-19.
        train_per_class: at most so many training images of each class.
        test_per_class: at most so many test images of each class.
        split_seed: decides which images those are.

    Raises:
        DataError: the data is not there, wnids.txt lacks a class, or an image cannot be read.
    """
    top = _TINY_IMAGENET.top("tiny_imagenet", path)
    return folder_bundle(
        "tiny_imagenet",
        top,
        selection,
        reading,
        order=[class_name(line) for _, line in numbered_lines(top / "wnids.txt")],
    )


# -------------------------------------------------------------------------------- ImageNet and ImageNet-100

_IMAGENET = Archive(
    "ILSVRC/Data/CLS-LOC",
    ("train", "val"),
    "ILSVRC2012 from https://www.image-net.org/download.php, with train/ and val/ in one folder, or "
    "imagenet-object-localization-challenge from Kaggle",
)
_IMAGENET100_LISTS = (
    Published(
        "arthurdouillard/incremental_learning.pytorch, imagenet_split/train_100.txt",
        "e2133270bca8a2cfac3935f79035a6e5f3bb4f94",
    ),
    Published(
        "arthurdouillard/incremental_learning.pytorch, imagenet_split/val_100.txt",
        "af17445f3451c512f2e8e7498492c4c37858d6f0",
    ),
)


@datasets.register("imagenet", paper="Russakovsky et al., IJCV 2015")
@schema.checked
@takes_views(normalisation=IMAGENET)
@takes_selection(but=("test_fraction",))
@takes_reading()
def imagenet(
    *,
    path: FilePath = "data/imagenet",
    selection: Selection,
    reading: Reading,
) -> DataBundle:
    """ImageNet (ILSVRC2012): 1000 classes, 1281167 + 50000 images; the test images are those of val/.

    val/ holds class folders, or the labels of its images stand in LOC_val_solution.csv or the devkit.

    Args:
        path: the folder with train/ and val/, or the one in which Kaggle's archive was unpacked.
        classes: the classes to keep: names, or positions in their alphabetical order such as 0-19.
        train_per_class: at most so many training images of each class.
        test_per_class: at most so many test images of each class.
        split_seed: decides which images those are.

    Raises:
        DataError: the data is not there, or an image cannot be read.
    """
    return folder_bundle(
        "imagenet",
        _IMAGENET.top("imagenet", path),
        selection,
        reading,
    )


@datasets.register("imagenet100", paper="Hou et al., CVPR 2019; Tian et al., ECCV 2020")
@schema.checked
@takes_views(normalisation=IMAGENET)
@takes_selection(but=("test_fraction",))
@takes_reading()
def imagenet100(
    *,
    path: FilePath = "data/imagenet",
    class_list: FilePath | None = None,
    lists: Lists | None = None,
    selection: Selection,
    reading: Reading,
) -> DataBundle:
    """ImageNet-100: 100 classes of ImageNet by a published list; which ones differs between publications.

    Args:
        path: the folder with train/ and val/, of ImageNet or of the 100 classes alone.
        class_list: a file that begins each line with a class, such as imagenet100.txt of HobbitLong/CMC.
        lists: the files of the training and the test images, such as train_100.txt and val_100.txt of
            arthurdouillard/incremental_learning.pytorch; others are told.
        classes: the classes to keep of those: names, or positions in their order such as 0-19.
        train_per_class: at most so many training images of each class.
        test_per_class: at most so many test images of each class.
        split_seed: decides which images those are.

    Raises:
        DataError: the data is not there, nothing says which classes, a list is wrong, or an image cannot be
            read.
    """
    top = _IMAGENET.top("imagenet100", path)
    if class_list is not None and lists is not None:
        raise DataError("data.class_list: data.lists says which images, and so which classes; drop one")
    if lists is not None:
        images = listed_images("imagenet100", top, lists, _IMAGENET100_LISTS)
    else:
        images = _of_classes(class_folders("imagenet100", top), _hundred(top, class_list))
    return found_bundle("imagenet100", images, selection, reading)


def _of_classes(images: FoundImages, names: Collection[str]) -> FoundImages:
    """The images of some classes."""
    rows = [row for row, label in enumerate(images.labels) if label in names]
    is_test = None if images.is_test is None else images.is_test[rows]
    return FoundImages([images.paths[row] for row in rows], [images.labels[row] for row in rows], is_test)


def _hundred(top: Path, class_list: str | None) -> set[str]:
    """The classes of a list, or those of the folder where it holds no more than 100.

    Raises:
        DataError: no list and more classes; a list that is missing or empty, or that names a class twice or
            one that has no folder.
    """
    folders = {class_name(folder) for folder in folders_in(top / "train")}
    if class_list is None:
        if len(folders) > 100:
            raise DataError(
                f"data.class_list: {top} holds {len(folders)} classes; give a file that names 100, such as "
                "imagenet100.txt from https://github.com/HobbitLong/CMC, or data.lists"
            )
        return folders
    places: dict[str, str] = {}
    for place, line in numbered_lines(Path(class_list)):
        name = class_name(line.split()[0])
        if name in places:
            raise DataError(f"{place}: the class {name} stands in {places[name]}, too")
        if name not in folders:
            raise DataError(f"{place}: there is no folder {top / 'train' / name}{nearest(name, folders)}")
        places[name] = place
    if not places:
        raise DataError(f"data.class_list: {class_list} names no class")
    if len(places) != 100:
        tell(f"imagenet100: {class_list} names {len(places)} classes, not 100")
    return set(places)
