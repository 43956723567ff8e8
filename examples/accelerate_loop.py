"""DualPrompt in a loop of Hugging Face's Accelerate, which chooses device and precision, on Split-Digits.

pip install accelerate
python examples/accelerate_loop.py
"""

from collections.abc import Iterable

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor

from clprompt import FrozenViT, PromptModel, optim
from clprompt.data import datasets_for, digits, training_batches
from clprompt.scenarios import split
from clprompt.strategies.dualprompt import DualPromptModel


def train_epoch(
    accelerator: Accelerator,
    model: PromptModel,
    optimizer: AcceleratedOptimizer,
    batches: Iterable[tuple[Tensor, Tensor]],
) -> None:
    """One pass over the batches of an experience."""
    model.train()
    for images, targets in batches:
        if model.observe(targets):  # before they travel, so that no step waits for the device
            optim.sync(optimizer.optimizer, model)
        with accelerator.autocast():
            loss = model.training_loss(model.placed(images), targets).loss
        optimizer.zero_grad()
        accelerator.backward(loss)
        optimizer.step()


def main(epochs: int = 2, seed: int = 0) -> DualPromptModel:
    """Train on Split-Digits and print the accuracy over all seen classes after each experience."""
    accelerator = Accelerator()
    if accelerator.num_processes > 1:
        raise SystemExit("this loop is for one process: each would train a model of its own")
    backbone = FrozenViT("vit_letters")
    train, _, test = datasets_for(digits(), backbone)
    plan = split.plan(train.targets, experiences=5, seed=seed)
    model = DualPromptModel(backbone, seed=seed, g_layers=(0,), e_layers=(1, 2, 3, 4), e_length=10)
    model.to(accelerator.device)
    images = torch.stack([image for image, _ in test])
    labels = torch.as_tensor(test.targets)

    for experience, (indices, classes) in enumerate(zip(plan.indices, plan.classes, strict=True)):
        data = torch.utils.data.Subset(train, indices.tolist())
        model.begin_experience(classes)
        optimizer = accelerator.prepare(optim.build(model, lr=0.01, empty=True))
        for epoch in range(epochs):
            batches = training_batches(data, seed=seed, experience=experience, epoch=epoch, batch_size=32)
            train_epoch(accelerator, model, optimizer, batches)
        model.end_experience()

        model.eval()
        seen = model.knows(labels)
        with torch.no_grad(), accelerator.autocast():
            predicted = model(model.placed(images[seen])).argmax(1).cpu()
        print(f"after experience {experience + 1}: {(predicted == labels[seen]).float().mean():.3f}")
    return model


if __name__ == "__main__":
    main()
