"""5-datasets: five data sets of ten classes each, one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from clprompt import schema
from clprompt.data.bundle import DataBundle, assemble, takes_views
from clprompt.data.class_folders import folder_bundle
from clprompt.data.images import Joined
from clprompt.data.reading import Reading, takes_reading
from clprompt.data.selection import Selection, takes_selection
from clprompt.errors import ConfigError, DataError
from clprompt.registry import datasets
from clprompt.schema import FilePath

Part = Literal["cifar10", "mnist", "svhn", "not_mnist", "fashion_mnist"]
_NOT_MNIST = "https://github.com/facebookresearch/Adversarial-Continual-Learning/raw/main/data/notMNIST.zip"


@datasets.register("five_datasets", paper="Ebrahimi et al., ECCV 2020")
@schema.checked
@takes_views()
@takes_selection(but=("test_fraction",))
@takes_reading(but=("max_pixels",), on_bad_image="skip")
def five_datasets(
    *,
    path: FilePath = "data",
    order: Sequence[Part] = ("cifar10", "mnist", "svhn", "not_mnist", "fashion_mnist"),
    download: bool = False,
    selection: Selection,
    reading: Reading,
) -> DataBundle:
    """5-datasets: CIFAR-10, MNIST, SVHN, notMNIST and Fashion-MNIST, 50 classes, each with its own split.

    A stream of one data set an experience is ``scenario: {name: split, experiences: 5, shuffle: false}``. The
    default order is that of L2P's released code; its port to PyTorch has svhn, mnist, cifar10, not_mnist,
    fashion_mnist, and the authors' code draws one from its seed.

    Args:
        path: the folder that holds the four of torchvision as its downloads make them, and notMNIST/ with
            Train/ and Test/.
        order: the five, in the order of their class ids.
        download: get what torchvision has and is not there yet; notMNIST is not among it.
        classes: the classes to keep: names such as "mnist 0 - zero", or class ids such as 0-19.
        train_per_class: at most so many training images of each class.
        test_per_class: at most so many test images of each class.
        split_seed: decides which images those are.
        on_bad_image: "skip" leaves out images of notMNIST that cannot be read, as released loaders do
            (each is read once at the start); "error" names the first.

    Raises:
        ConfigError: an order that does not hold each of the five once.
        DataError: a data set that is not there, or cannot be read.
    """
    if sorted(order) != sorted(get_args(Part)):
        raise ConfigError(
            f"data.order must hold each of {', '.join(get_args(Part))} once, got {', '.join(order)}"
        )
    bundles = [_bundle(name, path, download, reading) for name in order]
    sources = [*(bundle.train for bundle in bundles), *(bundle.test for bundle in bundles)]
    starts = np.cumsum([0, *(len(bundle.class_names) for bundle in bundles)])[:-1]
    counts = [len(source) for source in sources]
    return assemble(
        "five_datasets",
        Joined([source.load for source in sources], counts),
        np.concatenate(
            [source.targets + start for source, start in zip(sources, [*starts, *starts], strict=True)]
        ),
        np.arange(sum(counts)) >= sum(counts[: len(bundles)]),
        selection,
        cache=reading.cache,
        names=[
            f"{part} {name}"
            for part, bundle in zip(order, bundles, strict=True)
            for name in bundle.class_names
        ],
    )


def _bundle(name: Part, path: str, download: bool, reading: Reading) -> DataBundle:
    """One of the five, all of it."""
    if name != "not_mnist":
        return datasets.get(name).target(path=path, download=download, cache=False)
    folder = Path(path, "notMNIST")
    if not all((folder / part).is_dir() for part in ("Train", "Test")):
        raise DataError(
            f"data set five_datasets: there is no notMNIST/ with Train/ and Test/ in {path}; download "
            f"{_NOT_MNIST} and unpack it there"
        )
    return folder_bundle("not_mnist", folder, Selection(), reading)
