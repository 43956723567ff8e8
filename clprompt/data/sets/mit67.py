"""MIT indoor scenes."""

from __future__ import annotations

from clprompt import schema
from clprompt.data.archives import Archive
from clprompt.data.bundle import DataBundle, takes_views
from clprompt.data.class_folders import folder_bundle
from clprompt.data.reading import Reading, takes_reading
from clprompt.data.selection import Selection, takes_selection
from clprompt.registry import datasets
from clprompt.schema import FilePath

_ARCHIVE = Archive(
    "MIT67",
    ("Images", r"TrainImages\.txt", r"TestImages\.txt"),
    "http://groups.csail.mit.edu/vision/LabelMe/NewImages/indoorCVPR_09.tar, and TrainImages.txt and "
    "TestImages.txt from https://web.mit.edu/torralba/www/",
)


@datasets.register("mit67", paper="Quattoni & Torralba, CVPR 2009")
@schema.checked
@takes_views()
@takes_selection(but=("test_fraction",))
@takes_reading()
def mit67(
    *,
    path: FilePath = "data/MIT67",
    selection: Selection,
    reading: Reading,
) -> DataBundle:
    """MIT-67: 67 indoor scenes, 5360 + 1340 images by the lists of the authors.

    Args:
        path: the folder with Images/, TrainImages.txt and TestImages.txt, or the one that holds it as MIT67.
        classes: the classes to keep: names, or positions in their alphabetical order such as 0-19.
        train_per_class: at most so many training images of each class.
        test_per_class: at most so many test images of each class.
        split_seed: decides which images those are.

    Raises:
        DataError: the data is not there, a list names an image that is not there or is in both, or an image
            cannot be read.
    """
    top = _ARCHIVE.top("mit67", path)
    return folder_bundle(
        "mit67",
        top / "Images",
        selection,
        reading,
        lists=(str(top / "TrainImages.txt"), str(top / "TestImages.txt")),
    )
