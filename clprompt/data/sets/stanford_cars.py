"""Stanford Cars: torchvision reads its tables, which it no longer downloads."""

from __future__ import annotations

import numpy as np

from clprompt import schema
from clprompt.data.archives import Archive
from clprompt.data.bundle import DataBundle, takes_views
from clprompt.data.class_folders import found_bundle
from clprompt.data.lists import FoundImages
from clprompt.data.normalisation import STANFORD_CARS
from clprompt.data.reading import Reading, takes_reading
from clprompt.data.selection import Selection, takes_selection
from clprompt.errors import DataError
from clprompt.registry import datasets
from clprompt.schema import FilePath

_ARCHIVE = Archive(
    "stanford_cars",
    ("devkit", "cars_train", "cars_test", r"cars_test_annos_withlabels\.mat"),
    "cars_train.tgz, cars_test.tgz, car_devkit.tgz and cars_test_annos_withlabels.mat, once at "
    "https://ai.stanford.edu/~jkrause/cars/car_dataset.html, into a folder stanford_cars",
)


@datasets.register("stanford_cars", paper="Krause et al., 3dRR 2013")
@schema.checked
@takes_views(normalisation=STANFORD_CARS)
@takes_selection(but=("test_fraction",))
@takes_reading()
def stanford_cars(
    *,
    path: FilePath = "data/stanford_cars",
    selection: Selection,
    reading: Reading,
) -> DataBundle:
    """Stanford Cars: 196 models of cars, 8144 + 8041 images.

    Args:
        path: the folder stanford_cars as torchvision.datasets.StanfordCars lays it out, or what holds it.
        classes: the classes to keep: names, or class ids such as 0-19.
        train_per_class: at most so many training images of each class.
        test_per_class: at most so many test images of each class.
        split_seed: decides which images those are.

    Raises:
        DataError: the data is not there, its tables are damaged, or an image cannot be read.
    """
    from torchvision.datasets import StanfordCars

    top = _ARCHIVE.top("stanford_cars", path).absolute()
    if top.name != "stanford_cars":
        raise DataError(f"data set stanford_cars: {top}: torchvision wants it to be called stanford_cars")
    try:
        parts = [StanfordCars(top.parent, split=split) for split in ("train", "test")]
        samples = [(str(image), int(label)) for part in parts for image, label in part._samples]
        names = [str(name) for name in parts[0].classes]
    except Exception as error:  # damaged files fail in scipy, zlib and numpy in ways of their own
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"data set stanford_cars in {top}: its tables cannot be read: {reason}") from error
    images = FoundImages(
        [path for path, _ in samples],
        [label for _, label in samples],
        np.arange(len(samples)) >= len(parts[0]),
        names=names,
    )
    return found_bundle("stanford_cars", images, selection, reading)
