"""Prompts that contradict themselves or that would be misread are refused before they compute anything."""

from __future__ import annotations

import pytest
import torch
from timm.models.vision_transformer import Block
from torch import Tensor

from clprompt.backbones.attention import BlockPrompt, prompted_block

B, N, P, D = 3, 5, 4, 12


def visible(*shape: int) -> Tensor:
    return torch.ones(*shape, dtype=torch.bool)


def test_contradictory_prompts_are_refused():
    tokens = torch.zeros(1, P, D)
    with pytest.raises(ValueError, match="kind must be"):
        BlockPrompt("shallow", tokens)
    with pytest.raises(ValueError, match="values belong to"):
        BlockPrompt("prefix", tokens)
    with pytest.raises(ValueError, match="values belong to"):
        BlockPrompt("fresh", tokens, tokens)
    with pytest.raises(ValueError, match="use a mask"):
        BlockPrompt("carried", tokens, rows=slice(0, 1))
    with pytest.raises(ValueError, match="use a mask"):
        BlockPrompt("carried", tokens, zero_values=True)
    with pytest.raises(ValueError, match=r"\[1 or B, P, D\]"):
        BlockPrompt("fresh", tokens[0])


def test_masks_that_would_be_misread_are_refused():
    block, x, tokens = Block(D, num_heads=2), torch.randn(B, N, D), torch.randn(1, P, D)
    with pytest.raises(ValueError, match="must be boolean"):
        BlockPrompt("fresh", tokens, mask=torch.ones(1, 1, N, P))
    with pytest.raises(ValueError, match="must be boolean"):
        BlockPrompt("fresh", tokens, mask=torch.ones(1, N, P, dtype=torch.bool))
    with pytest.raises(ValueError, match="6 rows for 5 rows"):
        prompted_block(block, x, [BlockPrompt("fresh", tokens, mask=visible(1, 1, N + 1, P))])
    prompt = BlockPrompt("fresh", tokens, mask=visible(1, 1, N, P), rows=slice(1, None))
    with pytest.raises(ValueError, match="5 rows for 4 rows"):
        prompted_block(block, x, [prompt])
    two = [BlockPrompt("carried", tokens, mask=visible(1, 1, N + 2 * P, P)) for _ in range(2)]
    with pytest.raises(ValueError, match="one mask over all carried"):
        prompted_block(block, x, two)
