"""The golden baselines, put into models: logits, losses and gradients of methods are compared with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from golden_files import Golden
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from clprompt.backbones.vit import FrozenViT
from clprompt.prompting.model import PromptModel, Step
from clprompt.seeding import preserved_rng


class Baselines(Golden):
    """``baselines.npz`` and what its README says of the runs: 5 experiences of 2 classes, the third is on.

    Runs: "train" (current classes compete), "online_seen", "online_batch" (no boundaries), "eval" (no loss).
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__("baselines", dtype)

    @staticmethod
    def arguments(run: str) -> dict[str, object]:
        """What makes a model the one of a run."""
        if not run.startswith("online"):
            return {}
        return {"boundary_free": True, "mask": run.removeprefix("online_")}

    def batch(self, run: str) -> tuple[Tensor, Tensor]:
        """Images [6, 3, 32, 32] and labels [6] of a run."""
        if run == "eval":
            return self["eval_images"], self["eval_labels"]
        return self["images"], self["labels"] if run == "train" else self["online_labels"]

    def put(self, model: PromptModel, tensors: Mapping[str, Tensor] | None = None) -> PromptModel:
        """Bring a model to the third experience: 10 columns, the golden head, and the method's tensors."""
        classes = torch.zeros(10, dtype=torch.bool)
        state = model.method_state() | {
            "seen": self["seen"].bool(),
            "current": classes.index_fill(0, self["current_classes"], True),
            "experience": self["task"],
            "open": torch.tensor(True),
            "head.weight": self["head.weight"],
            "head.bias": self["head.bias"],
            **(tensors or {}),
        }
        model.load_state_dict(state)
        return model.to(self.dtype)

    def check_step(
        self, model: PromptModel, run: str, prefix: str, gradients: Mapping[str, Callable[[], Tensor]]
    ) -> Step | None:
        """Features, logits, losses, all stored gradients of one run; ``gradients`` by their golden names."""
        images, labels = self.batch(run)
        model.train(run != "eval")
        feature = model.encode(images)[0]
        self.check(feature, prefix + "feature")
        self.check(model.logits(feature), prefix + "logits")
        if run == "eval":
            self.check(model(images), prefix + "logits_masked")
            return None
        step = model.training_loss(images, labels)
        masked = model.logits(feature).masked_fill(~model.training_mask(labels), float("-inf"))
        if prefix + "logits_masked" in self:
            self.check(masked, prefix + "logits_masked")
        if prefix + "loss_ce" in self:
            self.check(step.terms["cross_entropy"], prefix + "loss_ce")
        self.check(step.loss, prefix + "loss")
        step.loss.backward()
        self.check_gradients(prefix + "grad.", gradients)
        return step

    def check_gradients(self, prefix: str, gradients: Mapping[str, Callable[[], Tensor]]) -> None:
        """Every stored gradient under a prefix is there and equal."""
        assert {key.removeprefix(prefix) for key in self.keys(prefix)} == set(gradients)
        for name, gradient in gradients.items():
            self.check(gradient(), prefix + name)


def gradients_of(model: PromptModel, **own: Callable[[], Tensor]) -> dict[str, Callable[[], Tensor]]:
    """The head's gradients and the method's own, by golden name."""
    head = {f"head.{name}": lambda name=name: grad(getattr(model.head, name)) for name in ("weight", "bias")}
    return {**own, **head}


def grad(parameter: Tensor) -> Tensor:
    """A parameter's gradient; zeros where it has none."""
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def baselines(request: pytest.FixtureRequest) -> Baselines:
    """The golden file in both floating-point types."""
    return Baselines(request.param)


@pytest.fixture
def exact() -> Baselines:
    """The golden file in float64."""
    return Baselines(torch.float64)


@pytest.fixture
def backbone() -> FrozenViT:
    """The golden backbone in float32: 6 blocks, width 32, 16 patches."""
    return Baselines(torch.float32).backbone()


@pytest.fixture
def grey_backbone() -> FrozenViT:
    """A backbone in float64 for grey images: 3 blocks, width 16, 16 patches, all of its weights drawn."""
    with preserved_rng(1):
        vit = VisionTransformer(
            img_size=16, patch_size=4, in_chans=1, embed_dim=16, depth=3, num_heads=2, num_classes=0
        )
        for parameter in vit.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return FrozenViT(vit).double()


@pytest.fixture
def gradients() -> Callable[..., dict[str, Callable[[], Tensor]]]:
    """``gradients(model, name=function, ...)`` for :meth:`Baselines.check_step`."""
    return gradients_of


@pytest.fixture
def per_sample() -> Callable[[PromptModel, Tensor], None]:
    """Asserts that a sample's logits are the same alone, in batches of any size, and in any place."""

    @torch.no_grad()
    def check(model: PromptModel, images: Tensor) -> None:
        model.eval()
        alone = torch.cat([model(image[None]) for image in images])
        for size in (2, 3, len(images)):
            together = torch.cat([model(part) for part in images.split(size)])
            torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
        order = torch.arange(len(images)).roll(1).flip(0)
        torch.testing.assert_close(model(images[order]), alone[order], rtol=1e-4, atol=1e-5)

    return check
