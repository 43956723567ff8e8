"""MVP-R: MVP on an online Si-Blurry stream with Avalanche's replay plugin and a reservoir of images.

Everything else in clprompt is rehearsal-free; this is how a memory is added to any of its strategies. Each
batch that arrives is one experience: half a batch of memory joins it in each of its iterations, and the
reservoir is updated after it.

python examples/mvp_replay.py
"""

import warnings

import torch

from clprompt import FrozenViT, evaluate
from clprompt.data import datasets_for, digits
from clprompt.scenarios import to_online_avalanche
from clprompt.scenarios.si_blurry import plan
from clprompt.strategies import MVP


def main(memory: int = 500, batch: int = 16, iterations: int = 3, seed: int = 1, samples: int | None = None):
    """Train on one pass over the stream; 0 for no memory. Returns the strategy and its final accuracy."""
    from avalanche.training.plugins import ReplayPlugin
    from avalanche.training.storage_policy import ReservoirSamplingBuffer

    backbone = FrozenViT("vit_letters")
    train, _, test = datasets_for(digits(), backbone)
    stream = to_online_avalanche(plan(train.targets, seed=seed), train, test, batch_size=batch, seed=seed)
    plugins = []
    if memory:
        reservoir = ReservoirSamplingBuffer(max_size=memory)
        plugins.append(ReplayPlugin(memory, batch, batch_size_mem=batch // 2, storage_policy=reservoir))
    strategy = MVP(
        backbone=backbone,
        g_layers=(0,),
        e_layers=(1, 2, 3),
        e_length=5,
        lr=0.005,
        train_mb_size=batch,
        train_epochs=iterations,
        seed=seed,
        plugins=plugins,
        evaluator=None,
    )
    torch.manual_seed(seed)  # Avalanche's reservoir and loader draw from the global state
    with warnings.catch_warnings(record=True):  # Avalanche announces a deprecation after each batch
        for experience in stream.train_stream[: None if samples is None else samples // batch]:
            strategy.train(experience)
    return strategy, evaluate(strategy.model, test).accuracy


if __name__ == "__main__":
    for size in (0, 500):
        print(f"memory of {size} images: accuracy {100 * main(size)[1]:.1f} % at the end")
