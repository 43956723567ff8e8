"""DualPrompt in Lightning's trainer: one ``fit`` per experience, on Split-Digits.

pip install lightning
python examples/lightning_loop.py
"""

import logging
from collections.abc import Sequence
from typing import Any

import lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from clprompt import FrozenViT, PromptModel, optim
from clprompt.data import datasets_for, digits, training_batches
from clprompt.scenarios import split
from clprompt.strategies.dualprompt import DualPromptModel


class Learner(lightning.LightningModule):
    """A method of clprompt as Lightning wants it; ``begin`` and ``end`` stand around each ``fit``."""

    def __init__(self, model: PromptModel, seed: int = 0) -> None:
        super().__init__()
        self.model, self.seed = model, seed

    def begin(self, experience: int, data: Any, classes: Sequence[int]) -> None:
        self.experience, self.data = experience, data
        self.model.begin_experience(classes)
        self.train()  # Lightning trains a module in the mode that it finds

    def end(self) -> None:
        self.model.end_experience()

    def train_dataloader(self) -> DataLoader:
        """The batches of one epoch; the trainer asks anew for each."""
        where = {"seed": self.seed, "experience": self.experience, "epoch": self.current_epoch}
        return training_batches(self.data, batch_size=32, **where)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Called by each ``fit``: old moments would move old rows."""
        return optim.build(self.model, lr=0.01, empty=True)

    def on_train_batch_start(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        if self.model.observe(batch[1]):
            optim.sync(self.optimizers(use_pl_optimizer=False), self.model)

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        return self.model.training_loss(*batch).loss

    def test_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        images, targets = batch
        right = self.model(images).argmax(1) == targets
        self.log("accuracy", right.float().mean(), batch_size=len(right))


def trainer(epochs: int) -> lightning.Trainer:
    """A new one for each experience; of one process, as a step of a method sees its whole batch."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    silent = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    return lightning.Trainer(
        max_epochs=epochs, devices=1, reload_dataloaders_every_n_epochs=1, **dict.fromkeys(silent, False)
    )


def main(epochs: int = 2, seed: int = 0) -> DualPromptModel:
    """Train on Split-Digits and print the accuracy over all seen classes after each experience."""
    backbone = FrozenViT("vit_letters")
    train, _, test = datasets_for(digits(), backbone)
    plan = split.plan(train.targets, experiences=5, seed=seed)
    model = DualPromptModel(backbone, seed=seed, g_layers=(0,), e_layers=(1, 2, 3, 4), e_length=10)
    learner, labels = Learner(model, seed), torch.as_tensor(test.targets)

    for experience, (indices, classes) in enumerate(zip(plan.indices, plan.classes, strict=True)):
        learner.begin(experience, Subset(train, indices.tolist()), classes)
        trainer(epochs).fit(learner)
        learner.end()

        seen = Subset(test, model.knows(labels).nonzero().flatten().tolist())
        (result,) = trainer(epochs).test(learner, DataLoader(seen, batch_size=128), verbose=False)
        print(f"after experience {experience + 1}: {result['accuracy']:.3f}")
    return model


if __name__ == "__main__":
    main()
