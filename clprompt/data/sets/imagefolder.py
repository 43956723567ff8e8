"""Folders of images, one per class; beside ``csv`` and ``npz`` one of the forms that your images may have.

What they have in common, beside the arguments of :class:`clprompt.data.selection.Selection`: ``on_bad_image``
("error" stops at an image that cannot be read and names it; "skip" reads every image once at the start,
leaves those out, and says how many), ``max_pixels`` (an image with more cannot be read), ``augment`` (see
:func:`clprompt.data.transforms.make_transform`) and ``cache`` (whether prepared images stay in memory, at
most 1 GiB each for training and test set).
"""

from __future__ import annotations

import os
from pathlib import Path

from clprompt import schema
from clprompt.data.bundle import DataBundle, takes_views
from clprompt.data.class_folders import folder_bundle
from clprompt.data.lists import Lists
from clprompt.data.reading import Reading, takes_reading
from clprompt.data.selection import Selection, takes_selection
from clprompt.errors import DataError
from clprompt.registry import datasets
from clprompt.schema import FilePath


@datasets.register("imagefolder", domains="data.domain_folders=true")
@schema.checked
@takes_views()
@takes_selection()
@takes_reading()
def imagefolder(
    *,
    path: FilePath = "data",
    domain_folders: bool = False,
    lists: Lists | None = None,
    selection: Selection,
    reading: Reading,
) -> DataBundle:
    """A folder with a folder of images per class, or with train/ and test/ (or val/) that hold such folders.

    Class names are the names of the folders; images may lie at any depth below them. Hidden files and folders
    are left out, and each real folder is read once, whatever links lead to it. The folders of a split may be
    called train, training, test, testing, val, valid or validation, in any case; of test and val, test is
    used. Tiny ImageNet and ImageNet are read as their archives lay them out: a val/ without class folders,
    and val_annotations.txt, LOC_val_solution.csv or the devkit beside it.

    Args:
        path: the folder.
        domain_folders: the class folders lie in a folder for each domain (``photo/dog/1.jpg``, below train/
            and test/ where there is a split): where an image comes from, for streams that go by it.
        lists: two files that name the training and the test images; see :mod:`clprompt.data.lists`.
        test_fraction: share of each class that is the test set, where there are no lists, test/ or val/.
        split_seed: decides which images those are, and those of ``train_per_class`` and ``test_per_class``.
        classes: the classes to keep: names, or positions in their alphabetical order such as 0-19.
        train_per_class: at most so many training images of each class.
        test_per_class: at most so many test images of each class.

    Raises:
        DataError: a missing or empty folder, a class that is too small, an image that cannot be read, a list
            that is empty, names an image that is not there or that the other has, or contradicts the folders.
    """
    root = Path(path)
    name = f"imagefolder {path}"
    if not os.path.isdir(root):
        raise DataError(
            f"data.path: there is no folder {path}; give the folder that holds one folder of images "
            "per class, or train/ and test/ with such folders"
        )
    return folder_bundle(
        name,
        root,
        selection,
        reading,
        domain_folders=domain_folders,
        lists=lists,
    )
