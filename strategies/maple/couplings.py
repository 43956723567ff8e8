"""Prompts of both towers, and what couples them: one class a coupling.

A coupling holds what is trained and answers, block by block, with the rows that each tower gets. Nothing is
written into a parameter on the way: every map gets its gradient.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from clprompt.seeding import generator, preserved_rng


class TextAlone(nn.Module):
    """Prompts of the text tower, none of the images; what all couplings build on.

    Args:
        text: first values of each prompted block, [n, W] each.
    """

    def __init__(self, text: Sequence[Tensor]) -> None:
        super().__init__()
        self.text = nn.ParameterList(nn.Parameter(rows) for rows in text)

    def text_rows(self) -> list[Tensor]:
        """What the text tower gets in each prompted block, [n, W] each."""
        return list(self.text)

    def beside_text(self) -> list[nn.Parameter]:
        """What is trained beside the text prompts: those of the images, and maps."""
        return [parameter for name, parameter in self.named_parameters() if not name.startswith("text.")]

    def image_rows(self) -> list[Tensor]:
        """What the image tower gets in each prompted block, [n, D] each; nothing here."""
        return []


class TextToVision(TextAlone):
    """Image prompts are linear in those of the text, p_l = A_l v_l + b_l, with a map of each block's own.

    The deeper maps start equal, as released.

    Args:
        text: first values of each prompted block, [n, W] each.
        width: of the image tower, D.
        seed: where the initial values of the maps come from.

    Source: Khattak et al. 2023 (MaPLe).
    """

    def __init__(self, text: Sequence[Tensor], width: int, seed: int) -> None:
        super().__init__(text)
        with preserved_rng():
            self.maps = nn.ModuleList(nn.Linear(rows.shape[1], width) for rows in text)
        for block, linear in enumerate(self.maps):
            bound = text[0].shape[1] ** -0.5
            for name, parameter in linear.named_parameters():
                source = generator(seed, "maple map", name, min(block, 1))
                parameter.data.uniform_(-bound, bound, generator=source)

    def image_rows(self) -> list[Tensor]:
        return [linear(rows) for linear, rows in zip(self.maps, self.text, strict=True)]


class Independent(TextAlone):
    """Each tower has prompts of its own.

    Args:
        text: first values of each prompted block, [n, W] each.
        width: of the image tower, D.
        seed: where the initial values of the image prompts come from.

    Source: Rasheed et al. 2023 (ViFi-CLIP; independent vision-language prompts, IVLP).
    """

    def __init__(self, text: Sequence[Tensor], width: int, seed: int) -> None:
        super().__init__(text)
        starts = [
            0.02 * torch.randn(len(rows), width, generator=generator(seed, "maple image prompts", block))
            for block, rows in enumerate(text)
        ]
        self.images = nn.ParameterList(nn.Parameter(start) for start in starts)

    def image_rows(self) -> list[Tensor]:
        return list(self.images)


class Hierarchical(Independent):
    """The first blocks map text prompts to the images', the others image prompts to the text's.

    Of each block a proxy token gathers the prompts of the tower that gives; the prompts of the tower that
    takes attend to the proxies of all blocks of their direction.

    The released code writes mapped prompts into the parameters: its maps get no gradient, and every pass,
    in evaluation too, moves the prompts. Here they are a function of the parameters.

    Args:
        text: first values of each prompted block, [n, W] each.
        width: of the image tower, D.
        cross_block: the first block that maps image prompts to the text's.
        seed: where all other initial values come from.

    Source: Zheng et al. 2025 (HiCroPL).
    """

    def __init__(self, text: Sequence[Tensor], width: int, cross_block: int, seed: int) -> None:
        super().__init__(text, width, seed)
        self.cross_block = cross_block
        text_width = text[0].shape[1]
        with preserved_rng():
            self.text_proxies = nn.ModuleList(Proxy(text_width) for _ in text[:cross_block])
            self.image_proxies = nn.ModuleList(Proxy(width) for _ in text[cross_block:])
            self.to_images = Mapper(width, text_width)
            self.to_text = Mapper(text_width, width)
        for name, part in self.named_children():
            if not isinstance(part, nn.ParameterList):
                _draw(part, seed, name)

    def text_rows(self) -> list[Tensor]:
        text, giving = list(self.text), list(self.images)[self.cross_block :]
        mapped = _mapped(self.to_text, text[self.cross_block :], self.image_proxies, giving)
        return text[: self.cross_block] + mapped

    def image_rows(self) -> list[Tensor]:
        text, images = list(self.text), list(self.images)
        taking, giving, last = (
            images[: self.cross_block],
            text[: self.cross_block],
            images[self.cross_block :],
        )
        return _mapped(self.to_images, taking, self.text_proxies, giving) + last


class Proxy(nn.Module):
    """One token that gathers the prompts of a block by attention: q + attention(LN q, LN x, LN x), LN.

    Args:
        width: of the prompts.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, width))
        self.attention = nn.MultiheadAttention(width, heads(width))
        self.norm = nn.LayerNorm(width)
        self.final_norm = nn.LayerNorm(width)

    def forward(self, rows: Tensor) -> Tensor:
        """[n, W] -> [1, W]."""
        given = self.norm(rows)
        gathered, _ = self.attention(self.norm(self.token), given, given, need_weights=False)
        return self.final_norm(self.token + gathered)


class Mapper(nn.Module):
    """Prompts of one tower attend to proxies of the other: linear maps, attention and an MLP, both residual.

    Args:
        width: of the prompts that take.
        given_width: of the proxies.
    """

    def __init__(self, width: int, given_width: int) -> None:
        from timm.layers import QuickGELU  # timm takes seconds to import: not before a mapper is built

        super().__init__()
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(given_width, width)
        self.value = nn.Linear(given_width, width)
        self.attention = nn.MultiheadAttention(width, heads(width))
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), QuickGELU(), nn.Linear(4 * width, width))
        self.mlp_norm = nn.LayerNorm(width)

    def forward(self, rows: Tensor, proxies: Tensor) -> Tensor:
        """Rows that take [R, W] and proxies [P, W'] -> [R, W]."""
        x, keys, values = self.query(rows), self.key(proxies), self.value(proxies)
        taken, _ = self.attention(self.norm(x), self.norm(keys), self.norm(values), need_weights=False)
        x = x + taken
        return x + self.mlp(self.mlp_norm(x))


def heads(width: int) -> int:
    """Attention heads of a proxy or mapper: 8 as released, fewer where the width does not divide by 8."""
    return math.gcd(width, 8)


def _mapped(
    mapper: nn.Module, taking: Sequence[Tensor], proxies: nn.ModuleList, giving: Sequence[Tensor]
) -> list[Tensor]:
    """The prompts [n, W] of some blocks mapped by what the other tower has in the same blocks."""
    gathered = torch.cat([proxy(rows) for proxy, rows in zip(proxies, giving, strict=True)])
    return list(mapper(torch.cat(list(taking)), gathered).split([len(rows) for rows in taking]))


def _draw(part: nn.Module, seed: int, where: str) -> None:
    """First values that depend on the seed alone: proxies N(0, 1), matrices as torch draws linear layers."""
    for name, parameter in part.named_parameters():
        source = generator(seed, "maple", where, name)
        if name.endswith("token"):
            parameter.data.normal_(generator=source)
        elif parameter.ndim == 2:
            bound = parameter.shape[1] ** -0.5
            parameter.data.uniform_(-bound, bound, generator=source)
        elif name.endswith("bias"):
            parameter.data.zero_()
