"""What older releases of torch and timm cannot do, so that a test says so and is left out."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn


def skip_where_timm_fails(vit: Any, images: Tensor) -> None:
    """Leave a test out whose network timm itself cannot run in the precision of these images.

    Up to timm 1.0.20 mixed rotary positions are float32 whatever the network is.
    """
    try:
        with torch.no_grad():
            vit.forward_features(images)
    except RuntimeError as error:
        if "expected scalar type" not in str(error):
            raise
        pytest.skip(f"timm {timm.__version__} cannot run it in {images.dtype}: {error}")


def made_by_timm(network: type[nn.Module], **arguments: Any) -> Any:
    """A network of timm's; a test is left out where this timm knows one of the arguments not yet."""
    try:
        return network(**arguments)
    except (TypeError, ValueError) as error:
        if not any(words in str(error) for words in ("unexpected keyword argument", "Unknown rope_type")):
            raise
        pytest.skip(f"timm {timm.__version__}: {error}")
