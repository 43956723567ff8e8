"""Published means and deviations of the pixels of data sets, for ``backbone.normalise: dataset``.

A data set gives its own with ``@takes_views(normalisation=...)``. Codes differ in the third digit of some
deviations; these are those of Si-Blurry's released code (Moon et al., ICCV 2023, ``datasets/__init__.py`` at
c4024ce), which has ImageNet's for ImageNet-R and CUB-200 as well. DTD has ImageNet's in the released codes of
DAM-VP (dec5821) and TCPA (dce8b3a), ``data_utils/transforms.py``; Stanford Cars' are those of FlyGCL
(79a6b51), ``utils/data_loader.py``.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Normalisation:
    """What is subtracted from pixels in [0, 1], and what the rest is divided by, one value per channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


CIFAR10 = Normalisation((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
CIFAR100 = Normalisation((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))
SVHN = Normalisation((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970))
MNIST = Normalisation((0.1307,), (0.3081,))
FASHION_MNIST = Normalisation((0.2860,), (0.3530,))
TINY_IMAGENET = Normalisation((0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262))
IMAGENET = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
STANFORD_CARS = Normalisation((0.46951303, 0.45906875, 0.45407656), (0.29279903, 0.2917511, 0.2999349))
