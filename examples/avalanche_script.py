"""DualPrompt as an Avalanche strategy, on our stream or on one of Avalanche's own.

python examples/avalanche_script.py
"""

from clprompt import FrozenViT
from clprompt.data import datasets_for, digits
from clprompt.scenarios import benchmark
from clprompt.strategies import DualPrompt


def main(epochs: int = 2, seed: int = 0, stream=None, **avalanche):
    """Train on every experience of the stream; by default Split-Digits. Returns the strategy."""
    backbone = FrozenViT("vit_letters")
    train, _, test = datasets_for(digits(), backbone)
    stream = stream(train, test) if stream else benchmark("split", train, test, experiences=5, seed=seed)
    prompts = dict(g_layers=(0,), e_layers=(1, 2, 3, 4), e_length=10)
    strategy = DualPrompt(backbone=backbone, lr=0.01, train_epochs=epochs, seed=seed, **prompts, **avalanche)
    for experience in stream.train_stream:
        strategy.train(experience)
    strategy.eval(stream.test_stream)
    return strategy


if __name__ == "__main__":
    main()
