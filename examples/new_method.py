"""A new method, whole: prompts that learn in the first experience, a linear head that goes on learning.

python examples/new_method.py                                                   # does it keep every promise?
clprompt run quickstart --import examples/new_method.py strategy=first_session  # train it, with all tracking
"""

from typing import Annotated

from torch import Tensor

from clprompt import BlockPrompt, Cache, Encoded, FrozenViT, PromptModel, at_least, checked, registry, uniform


@registry.strategies.register("first_session", paper="an example", year=2026)
class FirstSessionModel(PromptModel):
    """First-session prompts: tokens in every block adapt to the first experience and stay as they are.

    Args:
        backbone: the frozen vision transformer.
        seed: where all initial values come from.
        length: prompt tokens per block.
    """

    @checked
    def __init__(self, backbone: FrozenViT, *, seed: int = 0, length: Annotated[int, at_least(1)] = 8):
        super().__init__(backbone, seed=seed, mask="experience")
        self.prompt = uniform(backbone.depth, 1, length, backbone.width, seed=seed, name="prompt", bound=0.1)

    def encode(self, images: Tensor, cached: Cache | None = None) -> Encoded:
        x = self.backbone.embed(images)
        return Encoded(self.backbone.prompted(x, lambda block, _: BlockPrompt("fresh", self.prompt[block])))

    def set_stage(self) -> None:
        self.prompt.requires_grad_(self.experience_index <= 0)


if __name__ == "__main__":
    from clprompt.testing import check_strategy

    check_strategy(FirstSessionModel)
