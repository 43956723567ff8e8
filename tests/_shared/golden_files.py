"""Golden files: outputs of reference implementations at tiny size, and the backbones they were made with."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import devices
import numpy as np
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from clprompt.backbones.vit import FrozenViT

FOLDER = Path(__file__).parents[1] / "golden"

#: Per file and dtype: (rtol, atol, fraction of the expected tensor's largest finite entry, added to atol).
#: Files stored as float32 cannot be matched better than their own rounding.
TOLERANCES = {
    "baselines": {torch.float64: (0.0, 1e-12, 1e-6), torch.float32: (1e-4, 1e-5, 0.0)},
    "mvp_forward": {torch.float64: (0.0, 1e-12, 1e-6), torch.float32: (1e-4, 1e-5, 0.0)},
    "tcpa_forward": {torch.float64: (0.0, 1e-10, 0.0), torch.float32: (1e-4, 3e-5, 0.0)},
    "multilane_forward": {torch.float64: (0.0, 1e-9, 0.0), torch.float32: (1e-4, 1e-5, 0.0)},
    "damvp": {torch.float64: (1e-6, 1e-6, 0.0), torch.float32: (1e-4, 1e-5, 0.0)},
    "clip": {torch.float64: (0.0, 1e-12, 1e-9), torch.float32: (1e-4, 1e-5, 0.0)},
    "prompt_cam": {torch.float64: (0.0, 1e-12, 1e-9), torch.float32: (1e-4, 1e-5, 0.0)},
    "semantic_proxies": {torch.float64: (0.0, 1e-12, 1e-9), torch.float32: (1e-4, 1e-5, 0.0)},
    "heads_reference": {torch.float64: (0.0, 0.0, 1e-10), torch.float32: (1e-4, 1e-5, 0.0)},
}


@lru_cache
def arrays(name: str) -> dict[str, np.ndarray]:
    with np.load(FOLDER / f"{name}.npz") as file:
        return {key: file[key] for key in file.files}


class Golden:
    """One golden file in one floating-point type.

    ``golden["key"]`` is a tensor, ``golden.leaf("key")`` one that takes gradients, ``golden.backbone()`` the
    frozen ViT of the file, ``golden.check(actual, "key")`` the comparison at the file's tolerance.
    """

    def __init__(self, name: str, dtype: torch.dtype) -> None:
        self.name = name
        self.dtype = dtype
        self.arrays = arrays(name)

    def __getitem__(self, key: str) -> Tensor:
        value = torch.from_numpy(np.array(self.arrays[key])).to(devices.DEVICE)
        return value.to(self.dtype) if value.is_floating_point() else value

    def __contains__(self, key: str) -> bool:
        return key in self.arrays

    def keys(self, prefix: str = "") -> Iterator[str]:
        return (key for key in self.arrays if key.startswith(prefix))

    def leaf(self, key: str) -> Tensor:
        return self[key].requires_grad_()

    def backbone(self) -> FrozenViT:
        """The file's ViT without its classifier; two heads in every file."""
        weights = {key.removeprefix("backbone."): self[key] for key in self.keys("backbone.")}
        weights = {key: value for key, value in weights.items() if not key.startswith("head.")}
        width, _, patch, _ = weights["patch_embed.proj.weight"].shape
        side = round((weights["pos_embed"].shape[1] - 1) ** 0.5)
        depth = sum(key.endswith("norm1.weight") for key in weights)
        vit = VisionTransformer(
            img_size=side * patch, patch_size=patch, embed_dim=width, depth=depth, num_heads=2, num_classes=0
        )
        vit.to(self.dtype).load_state_dict(weights)  # cast first: not all of them are of float32
        return FrozenViT(vit).to(devices.DEVICE)

    def check(self, actual: Tensor | None, key: str, *, scaled: float | None = None) -> None:
        """Compare with the expected tensor; ``scaled``: instead, a fraction of its largest entry, as atol."""
        assert actual is not None, f"{key}: nothing to compare, no gradient?"
        expected = self[key]
        rtol, atol, fraction = TOLERANCES[self.name][self.dtype]
        if scaled is not None:
            rtol, atol, fraction = 0.0, 1e-12, scaled
        if not expected.is_floating_point():
            rtol, atol = 0.0, 0.0
        if devices.DEVICE != "cpu" and expected.dtype == torch.float32:
            atol *= 2  # sums are made in another order
        if fraction and expected.is_floating_point():
            atol += fraction * expected[expected.isfinite()].abs().max().item()
        torch.testing.assert_close(
            actual.detach(), expected, rtol=rtol, atol=atol, msg=lambda text: f"{self.name}, {key}: {text}"
        )

    def differs(self, actual: Tensor, key: str, at_least: float) -> None:
        """Assert that the largest difference from the stored tensor is at least this."""
        assert (actual.detach() - self[key]).abs().max() >= at_least, f"{key} should not have been reproduced"
