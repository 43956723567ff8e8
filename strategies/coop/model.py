"""CoOp: the context of class names is learned, and with it what classifies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clprompt import schema
from clprompt.backbones.vit import FrozenViT
from clprompt.errors import ConfigError
from clprompt.prompting.heads import grown
from clprompt.prompting.losses import SoftLabels
from clprompt.prompting.model import Encoded, Mask
from clprompt.prompting.plugin import LearnedPrompts
from clprompt.prompting.text import sequences
from clprompt.prompting.text.model import TextModel
from clprompt.prompting.text.sequences import Frame, Names
from clprompt.prompting.text.sources import (
    ClassTexts,
    fill,
    read_descriptions,
    rows_one_by_one,
    tell_of_strangers,
)
from clprompt.registry import strategies
from clprompt.schema import FilePath, at_least
from clprompt.seeding import generator
from clprompt.strategies.coop.encoder import ContextEncoder
from clprompt.strategies.coop.gate import Gate, gate_loss, group_loss
from clprompt.targets import as_index

#: Learned rows of a context that is initialised by no words.
_LENGTH = 16


@strategies.register(
    "coop", paper="Zhou et al., IJCV 2022, arXiv 2109.01134", year=2022, boundaries="optional or unused"
)
class CoOpModel(TextModel):
    """CoOp (Zhou et al., "Learning to Prompt for Vision-Language Models"), class-incrementally.

    The text of a class is start, v_1 .. v_n, its name, a dot, end. The cross-entropy over the classes that
    compete learns the rows v, and all classes share them: a new class is a new name in the same context.

    What others have put beside it, each by an argument, to be combined:

    * ``encoder`` (PRE, Tran et al. 2023): rows are learned through a small network with a skip connection.
    * ``attributes`` (ATPrompt, Li et al. 2025): further learned rows before words such as "shape" and
      "color", in front of the context. The released code takes an attribute for one token; here it is any
      words.
    * ``contexts`` (MSGCoOp, Wang et al. 2025): several contexts whose logits are averaged, kept apart by
      ``diversity``, the mean squared cosine between their features of a class.
    * ``knowledge`` (KgCoOp, Yao et al. 2023; the semantic term of MSGCoOp): text features stay near those of
      unprompted texts: 1 - cosine, with ``knowledge_weight``.
    * ``keywords`` (the discrete prompts of KAPT, Kan et al. 2023): words of a class's own before its name.
    * ``gate`` (MoCoOp, Du et al. 2024): a context for each group of templates; an image's text features are
      mixed from two groups, by a gate on its own features.
    * ``residual`` (ConES, Lin et al. 2023): no context: the text features of classes are trained, as
      what is added to those of ``template``. No text passes through the tower in training.

    A name without a context of its own (``class_specific``) or without a residual is asked in ``template``.

    Args:
        backbone: the frozen towers.
        seed: where all initial values come from.
        length: n, learned rows; None for 16, or as many as ``init`` has tokens.
        init: words that the rows start from, such as "a photo of a". The first n tokens are learned, the
            others stand between them and the name and are not. None: N(0, 0.02).
        position: where the name stands: behind the rows, in their middle, or in front.
        class_specific: each class has a context of its own.
        contexts: M, contexts whose logits are averaged.
        diversity: weight of the term that keeps several contexts apart.
        knowledge: unprompted texts near which the text features stay: a template with {}, a file of templates
            or of sentences by class name, or ``imagenet_7`` or ``imagenet_80``.
        knowledge_weight: of that term.
        keywords: a file of words by class name, which stand before the name and are not learned.
        encoder: a network for the learned rows: one that all "shared", or a "separate" one for each.
        encoder_width: between the two layers of the network.
        attributes: words with learned rows before them, in front of the context.
        attribute_length: learned rows before each attribute.
        gate: groups of templates, two or more; {} stands in place of the name.
        gate_weight: of the cross-entropy of the gate to the groups nearest to an image.
        group_weight: of the cross-entropy of each group's context to the group's templates.
        residual: train what is added to the unprompted text features in place of a context.
        rows: "kept" rows of earlier experiences stay as they were when their experience ended; "live" ones
            move with the context.
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
        length: Annotated[int, at_least(1)] | None = None,
        init: str | None = None,
        position: Literal["end", "middle", "front"] = "end",
        class_specific: bool = False,
        contexts: Annotated[int, at_least(1)] = 1,
        diversity: Annotated[float, at_least(0)] = 0.1,
        knowledge: FilePath | None = None,
        knowledge_weight: Annotated[float, at_least(0)] = 8.0,
        keywords: FilePath | None = None,
        encoder: Literal["shared", "separate"] | None = None,
        encoder_width: Annotated[int, at_least(1)] = 64,
        attributes: tuple[str, ...] = (),
        attribute_length: Annotated[int, at_least(1)] = 4,
        gate: tuple[tuple[str, ...], ...] = (),
        gate_weight: Annotated[float, at_least(0)] = 1.0,
        group_weight: Annotated[float, at_least(0)] = 5.0,
        residual: bool = False,
        rows: Literal["kept", "live"] = "kept",
        template: str = "a photo of a {}.",
        mask: Mask | None = None,
        boundary_free: bool = False,
    ) -> None:
        super().__init__(
            backbone, seed=seed, mask=mask, boundary_free=boundary_free, rows=rows, template=template
        )
        given: dict[str, Any] = {
            "length": length,
            "init": init,
            "position": position != "end",
            "contexts": contexts != 1,
        }
        given["class_specific"] = class_specific
        if residual:
            given |= {"encoder": encoder, "attributes": attributes, "gate": gate, "keywords": keywords}
            _refuse(given, "residual=true trains the text features themselves and has no context")
        if gate:
            _refuse(given, "with gate, the templates say what the contexts start from and where they stand")
            _check_groups(gate)
        self.class_specific = class_specific
        self.init, self.several = init, contexts > 1
        self.diversity = diversity
        self.knowledge, self.knowledge_weight = knowledge, knowledge_weight
        self.known_texts = None if knowledge is None else ClassTexts(knowledge, "knowledge")
        self.keywords_file = keywords
        self.keywords = read_descriptions(keywords, "keywords") if keywords is not None else {}
        self.gate_weight, self.group_weight = gate_weight, group_weight
        self.groups = [list(group) for group in gate]
        self.attribute_words = list(attributes)
        #: [n, W] each, or [C, n, W] where class-specific; where the rows of each stand
        self.contexts = nn.ParameterList()
        self.frames: list[Frame] = []
        self.attributes = nn.ParameterList()  # [a, W] each
        self.encoder: ContextEncoder | None = None
        self.gate: Gate | None = None
        self.residual: nn.Parameter | None = None
        if residual:
            self.residual = nn.Parameter(torch.zeros(0, backbone.joint_width))  # [C, E]
            return
        if gate:
            for group in gate:
                frame, start = self._of_template(group[0])
                self.frames.append(frame)
                self.contexts.append(nn.Parameter(start))
        else:
            words = self._initial_words(length, position)
            self.length = length or len(words) or _LENGTH
            before = {"end": self.length, "middle": self.length // 2, "front": 0}[position]
            for index in range(contexts):
                self.frames.append(Frame(before, words[self.length :]))
                start = torch.zeros(0, self.length, self.text.width) if class_specific else self._start(index)
                self.contexts.append(nn.Parameter(start))
        for index, attribute in enumerate(attributes):
            if not len(sequences.word_ids(self.text, attribute)):
                raise ConfigError(f'attributes must be words, got "{attribute}"')
            rows_before = torch.randn(
                attribute_length, self.text.width, generator=generator(seed, "attributes", index)
            )
            self.attributes.append(nn.Parameter(0.01 * rows_before))
        if encoder:
            networks = 1 if encoder == "shared" else max(context.shape[-2] for context in self.contexts)
            self.encoder = ContextEncoder(self.text.width, encoder_width, networks, seed=seed)
        if gate:
            self.gate = Gate(backbone.joint_width, len(gate), seed=seed)
            self.multi_label = False  # the gate's loss asks for an image's class
            self.rows = torch.zeros(0, len(gate) * backbone.joint_width)

    def why_unanchored(self) -> str | None:
        if self.residual is not None:
            return "residual=true trains rows without a text"
        if self.gate is not None or self.several:
            return "gate and contexts give a class several"
        return None

    # ------------------------------------------------------------------ what contexts start from

    def _initial_words(self, length: int | None, position: str) -> tuple[int, ...]:
        """The ids of ``init``, refused where ``length`` and ``position`` do not go with them."""
        ids = sequences.initial_ids(self.text, self.init, length)
        if length is not None and length < len(ids) and position != "end":
            raise ConfigError(
                f"length must be {len(ids)}, the tokens of init, with position={position}; got {length}: "
                "words that are not learned stand before the name"
            )
        return ids

    def _start(self, context: int, class_id: int | None = None) -> Tensor:
        """The first values of a context, [n, W]: a function of the seed, its number and its class."""
        where = ("context", context) if class_id is None else ("context", context, class_id)
        noise = 0.02 * torch.randn(self.length, self.text.width, generator=generator(self.seed, *where))
        if self.init is None:
            return noise
        ids = sequences.word_ids(self.text, self.init)[: self.length]
        words = sequences.initial_rows(self.text, ids)
        return words + noise if self.several else words  # equal contexts would have equal gradients

    def _of_template(self, template: str) -> tuple[Frame, Tensor]:
        """Where the words of a template stand, and their embeddings, [n, W]."""
        before, _, after = template.partition("{}")
        tail = "." if after.endswith(".") else ""
        ids = [sequences.word_ids(self.text, words) for words in (before, after.removesuffix("."))]
        return Frame(len(ids[0]), (), tail), sequences.initial_rows(self.text, torch.cat(ids))

    def grow_classes(self, num_classes: int) -> None:
        super().grow_classes(num_classes)
        if self.residual is not None:
            missing = num_classes - len(self.residual)
            self.residual = grown(self.residual, self.residual.new_zeros(missing, self.residual.shape[1]))
        if self.class_specific:
            for index, context in enumerate(self.contexts):
                rows = [self._start(index, c) for c in range(len(context), num_classes)]
                self.contexts[index] = grown(context, torch.stack(rows))

    # ------------------------------------------------------------------ texts

    def _names(self, names: Sequence[str], tail: str) -> Names:
        names = tuple(names)
        return self.once(f"names{tail}", names, lambda: self._tokenised(names, tail))

    def _tokenised(self, names: Sequence[str], tail: str) -> Names:
        return sequences.name_ids(
            self.text, [" ".join([*self.keywords.get(name, ()), name]) for name in names], tail
        )

    def learned_contexts(self) -> list[Tensor]:
        """The rows of each context as the text tower gets them, [n, W], or [C, n, W] where class-specific."""
        return [context if self.encoder is None else self.encoder(context) for context in self.contexts]

    def learned_prompts(self) -> dict[str, LearnedPrompts]:
        if self.residual is not None or self.class_specific or self.encoder is not None:
            return {}  # what is learned belongs to the classes, or goes through a network beside it
        contexts = {f"context_{index}": context for index, context in enumerate(self.contexts)}
        attributes = {f"attribute_{index}": rows for index, rows in enumerate(self.attributes)}
        return {
            name: LearnedPrompts(("length",), tuple(rows.shape), [rows], reads_front=name in contexts)
            for name, rows in (contexts | attributes).items()
        }

    def _head_of(self, context: int) -> Tensor | None:
        """What stands in front of a context: frozen rows, then attributes, [A, W]."""
        front, head = self.in_front(f"context_{context}"), self.head_rows()
        if front is None or head is None:
            return head if front is None else front.to(self.dtype)
        return torch.cat([front.to(head), head])

    def head_rows(self) -> Tensor | None:
        """Learned rows and words of the attributes, which stand in front of the context, [A, W]."""
        if not self.attributes:
            return None
        words = [
            self.text.embed(sequences.word_ids(self.text, attribute)) for attribute in self.attribute_words
        ]
        pairs = zip(self.attributes, words, strict=True)
        return torch.cat([part.to(self.dtype) for pair in pairs for part in pair])

    def text_features(self, names: Sequence[str], classes: Sequence[int] | None = None) -> Tensor:
        """Features of names in each context, with gradient, not normalised, [M, n, E]; M is 1 for a residual.

        Args:
            names: any; with ``classes`` those of the classes.
            classes: ids of as many classes, whose own contexts or residuals are taken.
        """
        if self.residual is not None:
            unprompted = self._unprompted(names)
            return (unprompted if classes is None else unprompted + self._own(self.residual, classes))[None]
        if self.class_specific and classes is None:
            return self._unprompted(names).expand(len(self.contexts), -1, -1)
        found = []
        for index, (frame, context) in enumerate(zip(self.frames, self.learned_contexts(), strict=True)):
            rows = self._own(context, classes) if self.class_specific and classes is not None else context
            head = self._head_of(index)
            found.append(sequences.features(self.text, frame, self._names(names, frame.tail), rows, head))
        features = torch.stack(found)
        return features.to(torch.promote_types(features.dtype, torch.float32))

    @staticmethod
    def _own(rows: Tensor, classes: Sequence[int]) -> Tensor:
        """Those of classes."""
        return rows[as_index(classes, rows.device)]

    def _unprompted(self, names: Sequence[str]) -> Tensor:
        """Zero-shot rows [n, E], asked one by one: the tower keeps an answer for each list of texts."""
        key = tuple(names)
        return self.once("unprompted", key, lambda: torch.cat([self.frozen_rows([name]) for name in key]))

    def _rows_of(self, features: Tensor) -> Tensor:
        """Text features of all contexts [M, n, E] -> rows [n, E]; with a gate side by side, [n, M E]."""
        normalised = F.normalize(features, dim=-1)
        # logits are linear in the rows: their mean over contexts is that of the logits
        return normalised.mean(0) if self.gate is None else normalised.transpose(0, 1).flatten(1)

    def live_rows(self, names: Sequence[str]) -> Tensor:
        own = {self.names.shown(c): c for c in sorted(self.seen_classes)}
        if (self.class_specific or self.residual is not None) and any(name in own for name in names):
            rows = [
                self.live_class_rows([own[name]])
                if name in own
                else self._rows_of(self.text_features([name]))
                for name in names
            ]
            return torch.cat(rows)
        return self._rows_of(self.text_features(names))

    def live_class_rows(self, classes: Sequence[int]) -> Tensor:
        return self._rows_of(self.class_features(classes))

    def class_features(self, classes: Sequence[int]) -> Tensor:
        """:meth:`text_features` of classes, [M, n, E]."""
        return self.text_features([self.names.shown(c) for c in classes], classes)

    def files_read(self) -> dict[str, Any]:
        known = {} if self.known_texts is None else self.known_texts.files_read()
        return super().files_read() | known | ({"keywords": self.keywords} if self.keywords else {})

    def context_rows(self) -> Tensor | None:
        if self.residual is not None or self.class_specific:
            return None
        return torch.cat(self.learned_contexts())

    def rows_of_patches(self) -> Tensor:
        rows = super().rows_of_patches()
        return (
            rows
            if self.gate is None
            else F.normalize(rows.unflatten(1, (len(self.groups), -1)).mean(1), dim=-1)
        )

    # ------------------------------------------------------------------ logits and losses

    def similarity(self, features: Tensor, rows: Tensor) -> Tensor:
        if self.gate is None:
            return super().similarity(features, rows)
        weights = self.gate.weights(features)  # (B, G)
        with torch.autocast(features.device.type, enabled=False):
            wide = torch.promote_types(torch.promote_types(features.dtype, rows.dtype), torch.float32)
            # an image's features beside themselves, each time with a group's weight: (B, G E)
            weighted = (weights[..., None].to(wide) * features[:, None].to(wide)).flatten(1)
        return super().similarity(weighted, rows)

    def trained_rows(self, classes: Sequence[int], encoded: Encoded) -> tuple[Tensor, dict[str, Tensor]]:
        features = self.class_features(classes)  # (M, n, E)
        terms = {}
        if self.known_texts and self.knowledge_weight:
            terms["knowledge"] = self.knowledge_weight * distance(
                features, self._teacher(classes).to(features)
            )
        if self.several and self.diversity:
            terms["diversity"] = self.diversity * diversity(features)
        if self.gate is not None and self.group_weight:
            loss = group_loss(F.normalize(features, dim=-1), self._prototypes(classes).to(features))
            terms["groups"] = self.group_weight * loss
        return self._rows_of(features), terms

    def losses(
        self, encoded: Encoded, targets: Tensor, soft: SoftLabels | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        logits, terms = super().losses(encoded, targets, soft)
        if self.gate is not None and self.gate_weight:
            classes, label = self.on_host(targets).unique(return_inverse=True)
            label = label.to(targets.device, non_blocking=True)
            prototypes = self._prototypes(classes.tolist()).to(encoded.features)[:, label].transpose(0, 1)
            loss = gate_loss(self.gate(encoded.features), encoded.features, prototypes)
            terms["gate"] = self.gate_weight * loss
        return logits, terms

    def _teacher(self, classes: Sequence[int]) -> Tensor:
        """Rows of the unprompted texts of ``knowledge``, [n, E]."""
        names, known = tuple(self.names.shown(c) for c in classes), self.known_texts
        assert known is not None
        return self.once(
            "teacher", names, lambda: rows_one_by_one(self.text, [known.of(name) for name in names])
        )

    @torch.no_grad()
    def _prototypes(self, classes: Sequence[int]) -> Tensor:
        """Mean features of each group's templates, normalised, [G, n, E]."""
        names = tuple(self.names.shown(c) for c in classes)

        def of_name(name: str) -> Tensor:
            groups = [[fill(template, name) for template in group] for group in self.groups]
            means = [F.normalize(self.text.features(group), dim=-1).mean(0) for group in groups]
            return F.normalize(torch.stack(means), dim=-1)

        return self.once("prototypes", names, lambda: torch.stack([of_name(name) for name in names], dim=1))

    # ------------------------------------------------------------------ refusals

    def name_classes(self, names: Mapping[int, str | Sequence[str]]) -> None:
        super().name_classes(names)
        shown = [self.names.shown(c) for c in names]
        for given, where in self._by_name():
            tell_of_strangers(given, shown, where)
        self._check_fit(shown)

    def _by_name(self) -> list[tuple[Mapping[str, Any], str]]:
        """What files say of single classes, and where."""
        known = self.known_texts
        found = [
            ((known.sentences if known else None) or {}, f"knowledge {self.knowledge}"),
            (self.keywords, f"keywords {self.keywords_file}"),
        ]
        return [(given, where) for given, where in found if given]

    def _check_named(self, classes: Iterable[int]) -> None:
        classes = list(classes)
        super()._check_named(classes)
        for given, where in self._by_name():
            for name in map(self.names.shown, classes):
                if name not in given:
                    raise ConfigError(f'{where} says nothing of class "{name}"')

    def _check_fit(self, names: Sequence[str]) -> None:
        """Refuse names whose text does not fit into the tower with all that is learned."""
        for index, (frame, context) in enumerate(zip(self.frames, self.contexts, strict=True)):
            head = self._head_of(index)
            rows = (
                self.text.start_rows
                + context.shape[-2]
                + len(frame.words)
                + (0 if head is None else len(head))
            )
            sequences.check_fit(self.text, names, self._tokenised(names, frame.tail), rows)


def distance(features: Tensor, teacher: Tensor) -> Tensor:
    """How far text features are from others: mean of 1 - cosine over the classes, a scalar.

    Args:
        features: of each class in each context, not normalised, [M, C, E]; their mean over contexts counts.
        teacher: normalised, [C, E].

    Source: Yao et al. 2023 (KgCoOp), eq. 5; with several contexts Wang et al. 2025 (MSGCoOp).
    """
    return 1 - (F.normalize(features.mean(0), dim=-1) * teacher).sum(-1).mean()


def diversity(features: Tensor) -> Tensor:
    """How alike several contexts are: mean squared cosine over classes and pairs of contexts, a scalar.

    Args:
        features: of each class in each context, [M, C, E].

    Source: Wang et al. 2025 (MSGCoOp), arXiv 2507.21786.
    """
    normalised = F.normalize(features, dim=-1).transpose(0, 1)  # (C, M, E)
    first, second = torch.triu_indices(len(features), len(features), 1, device=features.device)
    return (normalised @ normalised.mT)[:, first, second].square().mean()


def _refuse(given: Mapping[str, Any], why: str) -> None:
    """Refuse arguments that have no meaning beside another."""
    for name, value in given.items():
        if value:
            raise ConfigError(f"{why}: leave out {name}")


def _check_groups(groups: Sequence[Sequence[str]]) -> None:
    if len(groups) < 2 or not all(groups):
        raise ConfigError(f"gate must be two groups of templates or more, none empty; got {list(groups)}")
    for template in (template for group in groups for template in group):
        if template.count("{}") != 1:
            raise ConfigError(f'gate: a template holds one {{}} in place of the name, got "{template}"')
