"""What a model learns from: images, label sets, bundles, plans, transforms and batches.

``data/sets/`` holds one data set a file:

========================================= ==========================================================
digits, letters                           8x8 images that come with clprompt; no download
synthetic                                 generated coloured blobs, of any size and number
imagefolder, csv, npz                     your own images, see :mod:`clprompt.data.sets.imagefolder`
multi_label_csv, multi_label_npz          the same with a set of labels for each image
cifar100, flowers102, ...                 torchvision's, see :mod:`clprompt.data.sets.torchvision`
imagenet_r, cub200, domainnet, ...        other published sets, each by its archive's own layout
hf                                        data sets of Hugging Face's library
coco, voc2007, mosaic, digit_mosaics      label sets of published images, or composed of labelled ones
========================================= ==========================================================

A data set of your own is a function that returns a :class:`DataBundle`; its typed keyword arguments are the
keys of the configuration's ``data`` section:

    @datasets.register("mine")
    @takes_views()
    @takes_selection()
    def mine(*, path: str = "data", selection: Selection) -> DataBundle:
        return assemble(path, ..., selection)

:func:`takes_views` and :func:`takes_selection` give it the arguments that every data set has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from clprompt import lazy_names

if TYPE_CHECKING:
    from clprompt.data.bundle import DataBundle as DataBundle
    from clprompt.data.bundle import assemble as assemble
    from clprompt.data.bundle import assemble_sets as assemble_sets
    from clprompt.data.bundle import takes_views as takes_views
    from clprompt.data.dataset import ImageDataset as ImageDataset
    from clprompt.data.dataset import datasets_for as datasets_for
    from clprompt.data.dataset import inputs_for as inputs_for
    from clprompt.data.images import ImageArray as ImageArray
    from clprompt.data.images import ImageFiles as ImageFiles
    from clprompt.data.images import ImageSource as ImageSource
    from clprompt.data.loading import image_stream as image_stream
    from clprompt.data.loading import sample_stream as sample_stream
    from clprompt.data.loading import training_batches as training_batches
    from clprompt.data.normalisation import Normalisation as Normalisation
    from clprompt.data.plan import Plan as Plan
    from clprompt.data.reading import Reading as Reading
    from clprompt.data.reading import takes_reading as takes_reading
    from clprompt.data.selection import Selection as Selection
    from clprompt.data.selection import takes_selection as takes_selection
    from clprompt.data.sets.digits import digits as digits
    from clprompt.data.sets.imagefolder import imagefolder as imagefolder
    from clprompt.data.sets.letters import letters as letters
    from clprompt.data.sets.mosaic import mosaic as mosaic
    from clprompt.data.sets.synthetic import synthetic as synthetic
    from clprompt.data.transforms import make_transform as make_transform
    from clprompt.data.views import Augment as Augment
    from clprompt.data.views import Views as Views
    from clprompt.registry import datasets as datasets

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Augment": "clprompt.data.views",
        "DataBundle": "clprompt.data.bundle",
        "ImageArray": "clprompt.data.images",
        "ImageDataset": "clprompt.data.dataset",
        "ImageFiles": "clprompt.data.images",
        "ImageSource": "clprompt.data.images",
        "Normalisation": "clprompt.data.normalisation",
        "Plan": "clprompt.data.plan",
        "Reading": "clprompt.data.reading",
        "Selection": "clprompt.data.selection",
        "Views": "clprompt.data.views",
        "assemble": "clprompt.data.bundle",
        "assemble_sets": "clprompt.data.bundle",
        "datasets": "clprompt.registry",
        "datasets_for": "clprompt.data.dataset",
        "digits": "clprompt.data.sets.digits",
        "image_stream": "clprompt.data.loading",
        "imagefolder": "clprompt.data.sets.imagefolder",
        "inputs_for": "clprompt.data.dataset",
        "letters": "clprompt.data.sets.letters",
        "make_transform": "clprompt.data.transforms",
        "mosaic": "clprompt.data.sets.mosaic",
        "sample_stream": "clprompt.data.loading",
        "synthetic": "clprompt.data.sets.synthetic",
        "takes_reading": "clprompt.data.reading",
        "takes_selection": "clprompt.data.selection",
        "takes_views": "clprompt.data.bundle",
        "training_batches": "clprompt.data.loading",
    },
)
