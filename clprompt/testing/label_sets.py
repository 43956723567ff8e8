"""The checks of :mod:`clprompt.testing` that multi-hot targets need, and the workbench on which they run."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from clprompt.seeding import generator
from clprompt.targets import visible
from clprompt.testing.asserts import finite_losses, refused, require, scale
from clprompt.testing.bench import CLASSES, SIDE, Workbench
from clprompt.training.evaluation import Evaluator
from clprompt.training.precision import autocast
from clprompt.training.steps import receive, train_step

_IDS = [c for group in CLASSES for c in group]


class ToyScenes:
    """A pattern for each class that an image shows, and noise: (image [3, 16, 16], 0/1 target [11]).

    Args:
        per_class: every class is the first of so many images; half of the images show a second one.
        part: "train" and "test" draw different scenes of the same patterns.
        device: where ``images`` and ``hot`` lie; items come from memory of the host.
    """

    random_transform = False

    def __init__(self, per_class: int, part: str = "train", device: str = "cpu") -> None:
        count, shape = per_class * len(_IDS), (3, SIDE, SIDE)
        first = torch.tensor(_IDS).repeat_interleave(per_class)
        second = torch.tensor(_IDS)[
            torch.randint(len(_IDS), (count,), generator=generator(0, "second", part))
        ]
        hot = torch.zeros(count, max(_IDS) + 1, dtype=torch.uint8)
        hot[torch.arange(count), first] = 1
        hot[torch.arange(0, count, 2), second[::2]] = 1
        patterns = torch.stack(
            [torch.randn(shape, generator=generator(0, "pattern", c)) for c in range(hot.shape[1])]
        )
        noise = torch.randn(count, *shape, generator=generator(0, "noise", part))
        self._items = torch.einsum("nc,cxyz->nxyz", hot.float(), patterns) + 0.3 * noise
        self.targets = hot.numpy()
        self.images, self.hot = self._items.to(device), hot.to(device)

    def __len__(self) -> int:
        return len(self.hot)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self._items[index], torch.from_numpy(self.targets[index])

    def groups(self) -> list[np.ndarray]:
        """Sample indices of each experience: the images with one of its labels."""
        return [np.flatnonzero(self.targets[:, list(group)].any(1)) for group in CLASSES]


class ScenesBench(Workbench):
    """A method on a toy stream of multi-hot targets: labels of other experiences are hidden."""

    @property
    def online(self) -> bool:  # type: ignore[override]
        """Never: which labels are hidden follows from the experiences."""
        return False

    def images(self, per_class: int, part: str = "train") -> ToyScenes:
        return ToyScenes(per_class, part, self.device)

    def evaluator(self) -> Evaluator:
        return Evaluator(self.test, self.test.targets, batch_size=16)

    def batch(self, experience: int, size: int = 8) -> tuple[Tensor, Tensor]:
        """Training samples of an experience and their visible labels: [B, 3, 16, 16] and [B, 11]."""
        indices = np.unique(self.arrived(self.train.groups(), experience))
        indices = indices[np.linspace(0, len(indices) - 1, size).astype(int)]
        return self.train.images[indices], visible(self.train.hot[indices], self.arrived(CLASSES, experience))


def check_learning_in_map(bench: Workbench) -> None:
    """It learns above chance in mAP, with finite loss terms, after the first and the last experience."""
    require(len(bench.stages) == len(CLASSES), "the stream did not run to its end")
    finite_losses(bench.log.records, "")
    evaluations = [record for record in bench.log.records if record["kind"] == "evaluation"]
    for record, more in ((evaluations[0], 0.3), (evaluations[-1], 0.25)):
        seen = bench.seen(record["experience"])
        hot = bench.test.targets[:, seen]
        chance = float(hot[hot.any(1)].mean())
        require(
            record["mAP"] >= chance + more,
            f"mAP {record['mAP']:.2f} after experience {record['experience'] + 1} of a separable problem; "
            f"at least {chance + more:.2f} is expected, chance is {chance:.2f}",
        )


def check_visible_labels(bench: Workbench) -> None:
    """observe marks the classes that some image of the batch shows, and a step on them has a finite loss."""
    model, optimizer = bench.begun(experience=0)
    images, targets = bench.batch(0)
    shown = targets.any(0).nonzero().flatten().tolist()
    receive(model, optimizer, targets)
    seen = model.seen.nonzero().flatten().tolist()
    require(seen == shown, f"observe marks {seen} as seen, the batch shows {shown}")
    for hot in (targets, targets[:, : max(shown) + 1]):  # columns that no image shows may be missing
        loss = train_step(model, optimizer, images, hot).loss.detach()
        require(bool(loss.isfinite()), f"the loss of multi-hot targets is {float(loss)}")


def check_labels_under_autocast(bench: Workbench) -> None:
    """bf16 autocast trains with finite losses and predicts the same labels where that is not close."""
    records = bench.run(bench.make(), experiences=2, train=bench.few, precision="bf16")
    finite_losses(records, " under bf16 autocast")
    model, images = bench.copy(), bench.test.images
    with torch.no_grad():
        full = model(images)
        with autocast(images.device, "bf16"):
            half = model(images)
    clear = full.isfinite() & (full.abs() > 0.02 * scale(full))
    equal = float(((full > 0) == (half > 0))[clear].float().mean())
    require(
        equal >= 0.97, f"bf16 autocast keeps {equal:.1%} of {int(clear.sum())} clear labels; 97 % expected"
    )


def check_multi_label_refusals(bench: Workbench) -> None:
    """Labels never observed, targets that are not 0 or 1 and empty batches are refused, in one line each."""
    model, optimizer = bench.begun()
    images, targets = bench.batch(1)
    receive(model, optimizer, targets)
    targets = targets.cpu()  # labels are looked at where that makes nobody wait
    wrong = targets.clone()
    wrong[-1, 2] = 1
    refused(lambda: model.training_loss(images, wrong), "a label that was never observed")
    refused(lambda: model.training_loss(images[:0], targets[:0]), "an empty batch")
    refused(lambda: model.observe(2 * targets), "a target that is neither 0 nor 1")


CHECKS = (
    check_learning_in_map,
    check_visible_labels,
    check_multi_label_refusals,
    check_labels_under_autocast,
)
