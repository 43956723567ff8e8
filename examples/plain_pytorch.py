"""DualPrompt in a plain PyTorch loop: no Avalanche, no run folder, nothing hidden.

python examples/plain_pytorch.py
"""

import torch

from clprompt import FrozenViT, optim
from clprompt.data import datasets_for, digits, training_batches
from clprompt.scenarios import split
from clprompt.strategies.dualprompt import DualPromptModel


def main(epochs: int = 2, seed: int = 0) -> DualPromptModel:
    """Train on Split-Digits and print the accuracy over all seen classes after each experience."""
    backbone = FrozenViT("vit_letters")
    train, _, test = datasets_for(digits(), backbone)
    plan = split.plan(train.targets, experiences=5, seed=seed)
    model = DualPromptModel(backbone, seed=seed, g_layers=(0,), e_layers=(1, 2, 3, 4), e_length=10)
    images = torch.stack([image for image, _ in test])
    labels = torch.as_tensor(test.targets)

    for experience, (indices, classes) in enumerate(zip(plan.indices, plan.classes, strict=True)):
        data = torch.utils.data.Subset(train, indices.tolist())
        model.begin_experience(classes)
        optimizer = optim.build(
            model, lr=0.01, empty=True
        )  # a new one per experience: old moments would move old rows
        model.train()
        for epoch in range(epochs):
            for batch, targets in training_batches(
                data, seed=seed, experience=experience, epoch=epoch, batch_size=32
            ):
                if model.observe(targets):
                    optim.sync(optimizer, model)
                loss = model.training_loss(batch, targets).loss
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        model.end_experience()

        model.eval()
        seen = model.knows(labels)
        with torch.no_grad():
            predicted = model(images[seen]).argmax(1)
        print(f"after experience {experience + 1}: {(predicted == labels[seen]).float().mean():.3f}")
    return model


if __name__ == "__main__":
    main()
