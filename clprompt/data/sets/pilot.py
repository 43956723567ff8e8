"""ObjectNet, OmniBenchmark and VTAB as PILOT distributes them: subsets with train/ and test/."""

from __future__ import annotations

from collections.abc import Callable

from clprompt import schema
from clprompt.data.archives import Archive
from clprompt.data.bundle import DataBundle, takes_views
from clprompt.data.class_folders import folder_bundle
from clprompt.data.folders import folders_in
from clprompt.data.names import class_name
from clprompt.data.reading import Reading, takes_reading
from clprompt.data.selection import Selection, takes_selection
from clprompt.registry import datasets
from clprompt.schema import FilePath

_SETS = {
    "objectnet": (
        "objectnet",
        "Barbu et al., NeurIPS 2019",
        "ObjectNet: 200 classes of objects in odd places, the subset of PILOT, which has a split.",
    ),
    "omnibenchmark": (
        "omnibenchmark",
        "Zhang et al., ECCV 2022",
        "OmniBenchmark: 300 classes of many realms, the subset of PILOT.",
    ),
    "vtab": (
        "vtab-cil/vtab",
        "Zhai et al., 2019",
        "VTAB: 50 classes, ten each of five data sets, the subset of PILOT.",
    ),
}

_ARGUMENTS = """

    Class ids are those of torchvision's ImageFolder, with which the released code reads it: by the characters
    of the folders' names.

    Args:
        path: the folder with train/ and test/, or the one in which the archive was unpacked.
        classes: the classes to keep: names, or class ids such as 0-19.
        train_per_class: at most so many training images of each class.
        test_per_class: at most so many test images of each class.
        split_seed: decides which images those are.

    Raises:
        DataError: the data is not there, or an image cannot be read.
    """


def _register(name: str, folder: str, paper: str, summary: str) -> Callable[..., DataBundle]:
    archive = Archive(
        folder,
        ("train", "test"),
        f'"{name}" from the links under "Datasets" of https://github.com/LAMDA-CL/LAMDA-PILOT',
    )

    def load(
        *,
        path: FilePath = f"data/{folder}",
        selection: Selection,
        reading: Reading,
    ) -> DataBundle:
        top = archive.top(name, path)
        names = {class_name(label) for part in ("train", "test") for label in folders_in(top / part)}
        return folder_bundle(
            name,
            top,
            selection,
            reading,
            order=sorted(names),
        )

    load.__name__ = load.__qualname__ = name
    load.__doc__ = summary + _ARGUMENTS
    decorated = takes_views()(takes_selection(but=("test_fraction",))(takes_reading()(load)))
    return datasets.register(name, paper=paper)(schema.checked(decorated))


for _name, _facts in _SETS.items():
    _register(_name, *_facts)
