"""MaPLe: learned prompts in both towers of an image-text model, coupled in one of several ways."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clprompt import schema
from clprompt.backbones.attention import BlockPrompt
from clprompt.backbones.vit import FrozenViT, Prompts
from clprompt.errors import ConfigError
from clprompt.prompting.model import Boundaries, Cache, Mask
from clprompt.prompting.plugin import LearnedPrompts, PromptSet
from clprompt.prompting.text import sequences
from clprompt.prompting.text.model import TextModel
from clprompt.prompting.text.sequences import Frame, Names
from clprompt.prompting.text.sources import ClassTexts, check_fit, fill, rows_one_by_one, tell_of_strangers
from clprompt.registry import strategies
from clprompt.schema import FilePath, at_least
from clprompt.seeding import generator
from clprompt.strategies.maple.couplings import Hierarchical, Independent, TextAlone, TextToVision

#: Prompted blocks, where the towers have as many.
_DEPTH = 9


@strategies.register(
    "maple", paper="Khattak et al., CVPR 2023, arXiv 2210.03117", year=2023, boundaries="required or unused"
)
class MaPLeModel(TextModel):
    """MaPLe (Khattak et al., "Multi-modal Prompt Learning"), class-incrementally.

    In each of the first J blocks of the text tower n learned rows stand behind the start token, in the place
    of what the block before made of them; in each of the first J blocks of the image tower n learned tokens
    stand beside the image's. Behind block J both run on as they are. The cross-entropy over the classes that
    compete learns them.

    ``coupling`` says what the image prompts have to do with the text's:

    * "text_to_vision" (MaPLe): they are linear in them, by a map of each block.
    * "none" (independent prompts, IVLP; what PromptSRC builds on).
    * "hierarchical" (HiCroPL, Zheng et al. 2025): the first half of the blocks maps text prompts to the
      images', the other half image prompts to the text's, by attention. The released code writes mapped
      prompts into the parameters, so that its maps get no gradient and evaluation moves the prompts; here
      they are computed from the parameters in each pass.

    All classes share the image prompts: moving them moves every image away from the rows that were kept.
    With ``vision="first"`` they are trained in the first experience alone; what they are when it ends is
    stored and used from then on, and the maps are trained no more. That, and kept rows, are ours.

    ``residual_features`` (HiCroPL): to the features of image and text those of the frozen towers are added,
    each normalised, and the sums classify.

    ``decouple`` (after DPL, Xu et al. 2023, of which the abstract was read): what image tokens take from
    prompts in attention has a learned weight in each prompted block of the image tower but the last, whose
    prompts join the sequence. Weights start at 1. Which part is weighted, and how, is ours.

    Args:
        backbone: the frozen towers.
        seed: where all initial values come from.
        length: n, rows of each prompted block and tower.
        depth: J, prompted blocks of each tower; None for 9, or as many as both towers have.
        init: words that the rows of block 0 start from. The first n tokens are learned, the others stand
            between them and the name and are not. None: N(0, 0.02), as deeper blocks start.
        coupling: see above.
        cross_block: of a hierarchical coupling, the first block that maps image prompts to the text's; None
            for the middle of the prompted ones.
        vision: whether image prompts are trained in every experience ("train"), in the "first" alone, or
            there are "none"; None for "first", or "train" when boundary-free.
        decouple: weigh what image tokens take from prompts.
        residual_features: unprompted texts whose features are added to those of a class: a template with {},
            a file of templates or of sentences by class name, or ``imagenet_7`` or ``imagenet_80``. With it
            the frozen tower's image features are added to the prompted ones.
        rows: "kept" rows of earlier experiences stay as they were when their experience ended; "live" ones
            move with the prompts.
        template: the unprompted text.
        mask: which classes compete in training; None for "seen" where rows are kept, else "experience".
        boundary_free: the method is used without experiences and is never told of one.
    """

    @schema.checked
    def __init__(
        self,
        backbone: FrozenViT,
        *,
        seed: int = 0,
        length: Annotated[int, at_least(1)] = 2,
        depth: Annotated[int, at_least(1)] | None = None,
        init: str | None = "a photo of a",
        coupling: Literal["text_to_vision", "none", "hierarchical"] = "text_to_vision",
        cross_block: Annotated[int, at_least(1)] | None = None,
        vision: Literal["train", "first", "none"] | None = None,
        decouple: bool = False,
        residual_features: FilePath | None = None,
        rows: Literal["kept", "live"] = "kept",
        template: str = "a photo of a {}.",
        mask: Mask | None = None,
        boundary_free: bool = False,
    ) -> None:
        if vision == "first" and boundary_free:
            raise ConfigError(
                "vision=first needs to know where the first experience ends; with boundary_free=true take "
                "train or none"
            )
        # before the others, which ask what stays as it is
        self.vision = vision or ("train" if boundary_free else "first")
        super().__init__(
            backbone, seed=seed, mask=mask, boundary_free=boundary_free, rows=rows, template=template
        )
        self.length = length
        self.depth = self._checked_depth(depth)
        words = sequences.initial_ids(self.text, init, length)
        self.frame = Frame(length, words[length:])
        self.prompts = self._coupled(coupling, cross_block, words)
        self.unprompted = (
            None if residual_features is None else ClassTexts(residual_features, "residual_features")
        )
        #: of what image tokens take from prompts, [J - 1]
        self.weights = nn.Parameter(torch.ones(self._decoupled_blocks())) if decouple else None
        if self.vision != "none":
            self.first_block = 0
        shape = (self.depth if self.vision == "first" else 0, length, backbone.width)
        self.stored_prompts: Tensor
        self.stored: Tensor
        # image prompts as they were when the first experience ended, and whether it has
        self.register_buffer("stored_prompts", torch.zeros(shape))
        self.register_buffer("stored", torch.tensor(False))
        self.is_stored = False

    # ------------------------------------------------------------------ prompts

    def _checked_depth(self, depth: int | None) -> int:
        blocks = {"text": self.text.depth} | ({} if self.vision == "none" else {"image": self.backbone.depth})
        tower = min(blocks, key=lambda name: blocks[name])
        if depth is not None and depth > blocks[tower]:
            raise ConfigError(
                f"depth must be at most {blocks[tower]}, the blocks of the {tower} tower; got {depth}"
            )
        return depth or min(_DEPTH, blocks[tower])

    def _coupled(self, coupling: str, cross_block: int | None, words: Sequence[int]) -> TextAlone:
        text, width, seed = self._text_starts(words), self.backbone.width, self.seed
        if coupling == "hierarchical":
            return Hierarchical(text, width, self._checked_cross_block(cross_block), seed)
        if cross_block is not None:
            raise ConfigError(f"cross_block belongs to coupling=hierarchical, got coupling={coupling}")
        if self.vision == "none":
            return TextAlone(text)
        return (TextToVision if coupling == "text_to_vision" else Independent)(text, width, seed)

    def _checked_cross_block(self, cross_block: int | None) -> int:
        if self.vision == "none":
            raise ConfigError("coupling=hierarchical needs image prompts; got vision=none")
        if self.depth < 2:
            raise ConfigError("coupling=hierarchical needs depth of at least 2, a block for each direction")
        if cross_block is not None and cross_block >= self.depth:
            raise ConfigError(
                f"cross_block must be below {self.depth}, the prompted blocks; got {cross_block}"
            )
        return cross_block or self.depth // 2

    def _decoupled_blocks(self) -> int:
        if self.vision == "none" or self.depth < 2:
            got = "vision=none" if self.vision == "none" else f"depth={self.depth}"
            raise ConfigError(
                f"decouple=true weighs image prompts in every prompted block but the last; got {got}"
            )
        return self.depth - 1

    def _text_starts(self, words: Sequence[int]) -> list[Tensor]:
        """First values of the text prompts, [n, W] for each block."""
        starts = [
            0.02 * torch.randn(self.length, self.text.width, generator=generator(self.seed, "maple", block))
            for block in range(self.depth)
        ]
        if words:
            starts[0] = sequences.initial_rows(self.text, torch.tensor(words[: self.length]))
        return starts

    def image_rows(self) -> list[Tensor]:
        """The image prompts in use, before the norm in front of block 0: [n, D] for each prompted block."""
        return list(self.stored_prompts) if self.is_stored else self.prompts.image_rows()

    def image_prompts(self) -> Prompts:
        """What each block of the image tower gets; the prompts of the last prompted block stay to the end."""
        rows = self.image_rows()

        def prompts(block: int, x: Tensor) -> BlockPrompt | None:
            if block >= len(rows):
                return None
            tokens = rows[block][None]
            if block == 0:  # they join in front of the norm
                tokens = self.backbone.norm_pre(tokens)
            if block == len(rows) - 1:
                return BlockPrompt("carried", tokens)
            return BlockPrompt("fresh", tokens, weight=None if self.weights is None else self.weights[block])

        return prompts

    @property
    def prompt_tokens(self) -> int:
        return 0 if self.vision == "none" else self.length

    def prompt_sets(self) -> dict[str, PromptSet]:
        # one that is trained and frozen with the image prompts
        first = self.prompts.beside_text()[:1]
        return {"prompts": PromptSet(tuple(range(self.depth)), self.length, first)} if first else {}

    def learned_prompts(self) -> dict[str, LearnedPrompts]:
        listed = {}
        for name, parameter in self.prompts.named_parameters():
            axes = ("length",) if name.startswith(("text.", "images.")) else ("rows",) * (parameter.ndim - 1)
            listed[name.replace(".", "_")] = LearnedPrompts(axes, tuple(parameter.shape), [parameter])
        return listed

    # ------------------------------------------------------------------ images

    @property
    def images_stay(self) -> bool:
        return self.vision != "train"

    @property
    def boundaries(self) -> Boundaries:
        return "required" if self.vision == "first" else super().boundaries

    def image_features(self, images: Tensor, cached: Cache | None = None) -> Tensor:
        features = self._prompted_features(images, cached)
        if self.unprompted is None:
            return features
        return F.normalize(features, dim=-1) + self.features(images, cached)

    def _prompted_features(self, images: Tensor, cached: Cache | None) -> Tensor:
        if self.vision == "none":
            return super().image_features(images, cached)
        kept = cached if self.is_stored and not self.training else None  # they never change again
        key = "features under stored prompts"
        if kept is not None and key in kept:
            return kept[key]
        stem = self.backbone.stem(images, 0)
        features = self.backbone.project(self.backbone.prompted(stem, self.image_prompts()))
        if kept is not None:
            kept[key] = features
        return features

    def image_tokens(self, images: Tensor) -> Tensor:
        if self.vision == "none":
            return super().image_tokens(images)
        return self.backbone.run(self.backbone.embed(images), self.image_prompts())

    # ------------------------------------------------------------------ texts

    def text_features(self, names: Sequence[str]) -> Tensor:
        """Features of any names under the text prompts, not normalised, with gradient, [n, E]."""
        context, *deeper = self.prompts.text_rows()
        deep = dict(enumerate(deeper, 1))
        features = sequences.features(self.text, self.frame, self._tokenised(names), context, deep=deep)
        return features.to(torch.promote_types(features.dtype, torch.float32))

    def live_rows(self, names: Sequence[str]) -> Tensor:
        rows = F.normalize(self.text_features(names), dim=-1)
        if self.unprompted is None:
            return rows
        added = rows_one_by_one(self.text, [self._unprompted_texts(name) for name in names])
        return F.normalize(rows + added.to(rows), dim=-1)

    def _unprompted_texts(self, name: str) -> list[str]:
        """Those of ``residual_features``; the template's of a name that its file does not know."""
        texts = self.unprompted
        if texts is None or (texts.sentences is not None and name not in texts.sentences):
            return [fill(self.template, name)]
        return texts.of(name)

    def files_read(self) -> dict[str, Any]:
        return super().files_read() | ({} if self.unprompted is None else self.unprompted.files_read())

    def context_rows(self) -> Tensor:
        return self.prompts.text_rows()[0]

    def _tokenised(self, names: Sequence[str]) -> Names:
        names = tuple(names)
        return self.once("names", names, lambda: sequences.name_ids(self.text, names, self.frame.tail))

    def name_classes(self, names: Mapping[int, str | Sequence[str]]) -> None:
        super().name_classes(names)
        shown = [self.names.shown(c) for c in names]
        rows = self.text.start_rows + self.length + len(self.frame.words)
        sequences.check_fit(self.text, shown, sequences.name_ids(self.text, shown, self.frame.tail), rows)
        if self.unprompted is not None:
            tell_of_strangers(self.unprompted.sentences or (), shown, self.unprompted.where)
            texts = [text for name in shown for text in self._unprompted_texts(name)]
            check_fit(self.text, texts, self.unprompted.where)

    def _check_named(self, classes: Iterable[int]) -> None:
        classes = list(classes)
        super()._check_named(classes)
        if self.unprompted is not None:
            self.unprompted.check(map(self.names.shown, classes))

    # ------------------------------------------------------------------ experiences

    def finish_experience(self) -> None:
        if self.vision == "first" and not self.is_stored:
            with torch.no_grad():
                self.stored_prompts.copy_(torch.stack(self.prompts.image_rows()))
            self.stored.fill_(True)
            self.is_stored = True
            self._restage()
        super().finish_experience()

    def set_stage(self) -> None:
        """Once image prompts are stored, they and all maps are trained no more."""
        self.is_stored = bool(self.stored)
        weights = [] if self.weights is None else [self.weights]
        for parameter in [*self.prompts.beside_text(), *weights]:
            parameter.requires_grad_(not self.is_stored)
