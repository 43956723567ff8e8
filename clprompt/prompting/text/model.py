"""TextModel: class-incremental learners whose classifier is the text of the class names."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from clprompt import schema
from clprompt.backbones.text import FrozenText
from clprompt.backbones.vit import FrozenViT
from clprompt.errors import ConfigError, ProtocolError
from clprompt.prompting.heads import grow_rows
from clprompt.prompting.losses import SoftLabels
from clprompt.prompting.model import Cache, Encoded, Mask, PromptModel, evaluating
from clprompt.prompting.plugin import Samples
from clprompt.prompting.step import BatchPart
from clprompt.prompting.text.names import ClassNames
from clprompt.prompting.text.plugin import LiveText, TextPlugin
from clprompt.prompting.text.sources import check_template, fill
from clprompt.targets import as_index, checked_classes, classes_in

Made = TypeVar("Made")
#: Which text features classify, see :class:`TextModel`.
Rows = Literal["kept", "live", "frozen"]


class Batch(NamedTuple):
    """Which images were encoded, for terms of the loss over more than their features.

    Attributes:
        images: [B, 3, H, W].
        cached: what was kept of them, the frozen tower's features among it.
    """

    images: Tensor
    cached: Cache


class TextModel(PromptModel):
    """An image is of the class whose text is nearest: logits = s cos(f(x), t_c), [B, C].

    f [B, E] are image features and t_c [E] the text feature of class c in the space that both towers share,
    s is the frozen scale of the backbone; its bias is added where it has one. A new class is a new name:
    nothing grows but ``rows`` [C, E], the normalised text feature of each class.

    ``rows`` of the constructor says where they come from:

    * "kept": those of the current experience come from the live prompts, and are stored when it ends; older
      ones stay as they were stored. Without experiences those of a batch are live, and stored at each step.
    * "live": all come from the live prompts, the published reading of context learning.
    * "frozen": none is trained; the template alone makes them (zero-shot).

    A method implements :meth:`live_rows`, and :meth:`image_features` where it prompts the images, too.

    Args:
        backbone: the frozen towers; its ``text`` is needed.
        seed: where all initial values come from.
        mask: which classes compete in training; None for "seen" where rows are kept, else "experience"
            ("seen" when boundary-free).
        boundary_free: the method is used without experiences and is never told of one.
        rows: see above.
        template: the text of an unprompted class, with {} in place of its name.

    Attributes:
        rows: float [C, E], normalised; 0 for a class that has none yet.
        names: of the classes, by id.

    Raises:
        ConfigError: a backbone without a text tower, a template without {}, or frozen rows where nothing else
            is trained.
        ProtocolError: from the loop's calls, a class that was never named.
    """

    needs_text: ClassVar[bool] = True
    multi_label: bool = False  # type: ignore[misc]  # True for one whose backbone has a bias

    @schema.checked
    def __init__(
        self,
        backbone: FrozenViT,
        *,
        seed: int = 0,
        mask: Mask | None = None,
        boundary_free: bool = False,
        rows: Rows = "kept",
        template: str = "a photo of a {}.",
    ) -> None:
        if backbone.text is None:
            raise ConfigError(
                f"{type(self).__name__} needs a backbone with a text tower, such as backbone.name=clip or "
                f"clip_letters; {backbone.source} has none"
            )
        check_template(template, "template")
        super().__init__(
            backbone,
            seed=seed,
            mask=mask or ("seen" if rows == "kept" else None),
            boundary_free=boundary_free,
        )
        if rows == "frozen" and self.trains and self.features_stay:
            raise ConfigError(
                f"rows=frozen leaves {type(self).__name__} nothing to train: its names alone would predict; "
                "take rows=kept or live"
            )
        self.head = None
        self.first_block = backbone.depth
        self.rows_from: Rows = rows
        self.template = template
        self.multi_label = backbone.logit_bias is not None
        self.names = ClassNames()
        self.rows: Tensor
        self.register_buffer("rows", torch.zeros(0, backbone.joint_width))
        self._latest: dict[str, tuple[Hashable, Any]] = {}  # see once
        self._made_at: Any = None  # rows that evaluation made of the prompts, and the state that these had
        self._made: dict[Hashable, Tensor] = {}
        self._encoded: list[tuple[Tensor, Encoded]] | None = None  # of the latest images, while it is wanted

    # ------------------------------------------------------------------ what a method says of itself

    @property
    def text(self) -> FrozenText:
        """The frozen text tower."""
        assert self.backbone.text is not None
        return self.backbone.text

    @property
    def feature_width(self) -> int:
        """E: the features are projected."""
        return self.backbone.joint_width

    @property
    def images_stay(self) -> bool:
        """Whether :meth:`image_features` of an image never change in later experiences or batches."""
        return type(self).image_features is TextModel.image_features

    @property
    def text_plugins(self) -> list[TextPlugin]:
        """The plug-ins that have to do with text, by their names."""
        found = [plugin for plugin in self.plugins if isinstance(plugin, TextPlugin)]
        return sorted(found, key=lambda plugin: plugin.name)

    def why_unanchored(self) -> str | None:
        """Why no class has one learned text that could be held near another; None where each has."""
        return None

    @property
    def features_stay(self) -> bool:
        return self.images_stay and not any(plugin.changes_features for plugin in self.plugins)

    @abstractmethod
    def live_rows(self, names: Sequence[str]) -> Tensor:
        """Normalised text features [n, E] of any names under the prompts as they are, with gradient."""

    def live_class_rows(self, classes: Sequence[int]) -> Tensor:
        """:meth:`live_rows` of classes that have names; for a method with prompts of each class's own."""
        return self.live_rows([self.names.shown(c) for c in classes])

    def image_features(self, images: Tensor, cached: Cache | None = None) -> Tensor:
        """Image features [B, E] before normalisation: the frozen tower's, unless a method prompts it."""
        return self.backbone.project(PromptModel.features(self, images, cached))

    def trained_rows(self, classes: Sequence[int], encoded: Encoded) -> tuple[Tensor, dict[str, Tensor]]:
        """The live rows of a step, [n, E], with gradient, and terms of the loss over them by name.

        For a method whose terms need more of the text than its rows, in place of :meth:`row_terms`.
        """
        rows = self.live_class_rows(classes)
        return rows, dict(self.row_terms(classes, rows, encoded))

    def image_tokens(self, images: Tensor) -> Tensor:
        """The stream behind the last block [B, N, D]; the frozen tower's, unless a method prompts it."""
        return self.backbone.run(self.backbone.embed(images))

    def context_rows(self) -> Tensor | None:
        """Context tokens [n, W] of every name, for :meth:`explain`; None for a method without."""
        return None

    def row_terms(self, classes: Sequence[int], rows: Tensor, encoded: Encoded) -> Mapping[str, Tensor]:
        """Terms of the loss over the live rows of a step, scalars by name.

        Args:
            classes: whose rows are live, rising.
            rows: theirs, [n, E], with gradient.
            encoded: the batch.
        """
        return {}

    # ------------------------------------------------------------------ names and rows

    def name_classes(self, names: Mapping[int, str | Sequence[str]]) -> None:
        """Tell the names of classes by id; before the first experience or batch that holds them.

        Raises:
            ConfigError: two classes whose names the text tower reads alike, or a name that is too long.
        """
        self.names.add(names, self.read)
        for plugin in self.text_plugins:
            plugin.name_classes([self.names.shown(c) for c in names])

    def once(self, what: str, key: Hashable, make: Callable[[], Made]) -> Made:
        """What the latest key made: the same classes are asked for step after step.

        Args:
            what: is made, for one latest key of each.
            key: what it is made of, beside the frozen towers.
            make: makes it.
        """
        key = (key, self.device, self.backbone.dtype)
        if what not in self._latest or self._latest[what][0] != key:
            self._latest[what] = key, make()
        return self._latest[what][1]

    def read(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """What the text tower reads of each text: its tokens, padded."""
        return [tuple(row) for row in self.text.tokens(texts).ids.tolist()] if texts else []

    @torch.no_grad()
    def frozen_rows(self, names: Sequence[str]) -> Tensor:
        """The unprompted text features of names in the template, normalised, [n, E]."""
        return F.normalize(self.text.features([fill(self.template, name) for name in names]), dim=-1)

    def similarity(self, features: Tensor, rows: Tensor) -> Tensor:
        """s features rows^T (and the bias), both normalised: [B, E], [n, E] -> [B, n]; never in few bits."""
        with torch.autocast(features.device.type, enabled=False):
            wide = torch.promote_types(torch.promote_types(features.dtype, rows.dtype), torch.float32)
            logits = self.backbone.scale * features.to(wide) @ rows.to(wide).T
            return logits if self.backbone.logit_bias is None else logits + self.backbone.logit_bias

    @torch.no_grad()
    def name_logits(self, images: Tensor, names: Sequence[str]) -> Tensor:
        """Logits of any names, trained on or not, under the prompts as they are: [B, 3, H, W] -> [B, n]."""
        make = self.frozen_rows if self.rows_from == "frozen" else self._name_rows
        with evaluating(self):
            rows = self._made_once(tuple(names), lambda: make(names))
            return self.similarity(self.encode(images).features, rows)

    @torch.no_grad()
    def open_rows(self, classes: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Rows [n, E] by which named classes answer, seen or not, in eval mode; and their unprompted rows.

        A seen class answers by its own row, one still to come by its name under the prompts as they are.
        """
        frozen = self.frozen_rows([self.names.shown(c) for c in classes])
        seen = self.seen.tolist()
        is_old = [c < len(seen) and seen[c] for c in classes]
        old, coming = ([at for at, was in enumerate(is_old) if was == wanted] for wanted in (True, False))
        rows = frozen.new_zeros(len(classes), self.rows.shape[1])
        rows[old] = self._rows_in_use()[[classes[at] for at in old]].to(rows)
        if coming and self.rows_from == "frozen":
            rows[coming] = frozen[coming]
        elif coming:
            rows[coming] = self._name_rows([self.names.shown(classes[at]) for at in coming]).to(rows)
        return rows, frozen

    def template_rows(self, classes: Sequence[int]) -> dict[str, Tensor]:
        """The unprompted rows [n, E] of classes by each template alone; {} where there are not several."""
        return {}

    def zero_shot_logits(self, images: Tensor, rows: Tensor, cached: Cache | None = None) -> Tensor:
        """Logits [B, n] of unprompted images by unprompted rows [n, E]."""
        return TextModel.similarity(self, self.features(images, cached), rows)

    def rows_of_patches(self) -> Tensor:
        """What :meth:`explain` compares patches with, [C, E]: the rows that predict."""
        return self._rows_in_use()

    def _store(self, classes: Sequence[int]) -> None:
        """Keep the rows of classes as the prompts make them now."""
        with torch.no_grad(), evaluating(self):
            if self.rows_from == "frozen":
                rows = self.frozen_rows([self.names.shown(c) for c in classes])
            else:
                rows = self._adapted(self.live_class_rows(classes))
        self.rows[list(classes)] = rows.to(self.rows)

    def _check_named(self, classes: Iterable[int]) -> None:
        names = [self.names.all(c)[0] for c in classes]
        for plugin in self.text_plugins:
            plugin.check_names(names)

    def check_stream(self, classes: Sequence[Sequence[int]]) -> None:
        super().check_stream(classes)
        self._check_named(c for group in classes for c in group if c in self.names)

    def _live_classes(self, targets: Tensor | None) -> list[int]:
        """The classes whose rows come from the live prompts.

        Args:
            targets: of a training batch; None in evaluation.
        """
        if self.rows_from == "frozen":
            return []
        seen, current = self.seen_classes, self.current_classes
        if self.rows_from == "live" and (targets is None or self.mask in ("seen", "none")):
            return sorted(seen)
        if self.rows_from == "kept" and (self.is_open or targets is None):
            return [c for c in current if c in seen] if self.is_open else []
        assert targets is not None
        shown = classes_in(self.on_host(targets))
        if self.rows_from == "kept":
            return shown
        added = [] if targets.ndim == 2 and self.mask == "experience" else shown
        return sorted({*(current if self.mask == "experience" else ()), *added} & seen)

    @torch.no_grad()
    def explain(self, images: Tensor, *, classes: Sequence[int] = ()) -> dict[str, Any]:
        """Plots: where each image is like the two likeliest names, and the words nearest to the context.

        Args:
            images: [B, 3, H, W].
            classes: these beside the likeliest name; the second likeliest where there are none.
        """
        from clprompt.prompting.text import explain

        with evaluating(self):
            scores = self(images)
            count = min(explain.NAMES, int(self.predictable().sum()))
            best = scores.topk(count, dim=1).indices.tolist()
            rows = self.rows_of_patches()
            cosines = explain.patch_similarity(self.backbone, self.image_tokens(images), rows)
        shown = [list(dict.fromkeys([first, *(classes or rest)])) for first, *rest in best]
        maps = [of_image[ids].float().cpu().numpy() for of_image, ids in zip(cosines, shown, strict=True)]
        titles = [
            [
                f"{self.names.shown(c)} ({chance:.0%})"
                for c, chance in zip(ids, likely[ids].tolist(), strict=True)
            ]
            for ids, likely in zip(shown, scores.softmax(dim=1), strict=True)
        ]
        pictures = images.detach().float().cpu().permute(0, 2, 3, 1).numpy()
        drawn = {"patches": explain.draw_patches(pictures, maps, titles)}
        context = self.context_rows()
        if context is not None:
            drawn["words"] = explain.draw_words(explain.nearest_words(self.text, context))
        return drawn

    # ------------------------------------------------------------------ the contract of PromptModel

    def encode(self, images: Tensor, cached: Cache | None = None) -> Encoded:
        if self._encoded is None:
            return self._encode(images, cached)
        if not self._encoded or self._encoded[0][0] is not images:
            self._encoded = [(images, self._encode(images, cached))]
        return self._encoded[0][1]

    def _encode(self, images: Tensor, cached: Cache | None) -> Encoded:
        batch = Batch(images, {} if cached is None else cached)
        features = self.image_features(images, batch.cached)
        for plugin in self.text_plugins:
            features = plugin.adapt_images(features)
        return Encoded(F.normalize(features, dim=-1), details=batch)

    @contextmanager
    def encoded_once(self) -> Iterator[None]:
        """Encode once what is asked for again, the very same tensor; nothing may change meanwhile."""
        self._encoded = []
        try:
            yield
        finally:
            self._encoded = None

    def features(
        self, images: Tensor, cached: Cache | None = None, *, stem: Tensor | None = None, first: int = 0
    ) -> Tensor:
        """The unprompted image features, projected and normalised, [B, E], without gradient."""
        raw = super().features(images, cached, stem=stem, first=first)
        return F.normalize(self.backbone.project(raw), dim=-1).detach()

    def classify(self, encoded: Encoded) -> Tensor:
        return self.similarity(encoded.features, self._rows_in_use())

    def losses(
        self, encoded: Encoded, targets: Tensor, soft: SoftLabels | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        classes = self._live_classes(targets)
        rows = self.rows
        terms: dict[str, Tensor] = {}
        if classes:
            live, terms = self.trained_rows(classes, encoded)
            live = self._adapted(live)
            rows = rows.to(live).index_copy(0, as_index(classes, rows.device), live)
            if self.rows_from == "kept" and not self.is_open:
                self.rows.index_copy_(0, as_index(classes, rows.device), live.detach().to(self.rows))
        logits = self.similarity(encoded.features, rows)
        if classes:
            self._show_plugins(classes, live, encoded, logits, targets)
        name = "cross_entropy" if targets.ndim == 1 else "binary_cross_entropy"
        return logits, {name: self.base_loss(logits, targets, soft), **encoded.terms, **terms}

    def gather(self, encoded: Encoded, part: BatchPart) -> Encoded:
        """Features of the whole batch; its images stay where they are."""
        gathered = super().gather(encoded._replace(details=None), part)
        return gathered._replace(details=encoded.details)

    def _show_plugins(
        self, classes: list[int], rows: Tensor, encoded: Encoded, logits: Tensor, targets: Tensor
    ) -> None:
        """Leave a step's live text with the plug-ins that add terms over it."""
        if self._collected is None or not self.text_plugins:
            return
        batch: Batch = encoded.details
        wide = logits.dtype
        live = LiveText(
            classes,
            rows.to(wide),
            encoded.features.to(wide),
            logits[:, as_index(classes, logits.device)],
            targets,
            batch.images,
            cache(lambda: self.whole(self.features(batch.images, batch.cached)).to(wide)),
        )
        for plugin in self.text_plugins:
            self._collected[plugin.name].append(live)

    def _adapted(self, rows: Tensor) -> Tensor:
        """Rows of learned texts as plug-ins change them, [n, E]."""
        for plugin in self.text_plugins:
            rows = plugin.adapt_rows(rows)
        return rows

    def _name_rows(self, names: Sequence[str]) -> Tensor:
        return self._adapted(self.live_rows(names))

    def observe(self, targets: Tensor) -> bool:
        before = set(self.seen_classes)
        grew = super().observe(targets)
        added = sorted(self.seen_classes - before)
        self._check_named(added)
        if added and (self.rows_from == "frozen" or not self.is_open):
            self._store(added)
        return grew

    def begin_experience(self, classes: Iterable[int], samples: Samples | None = None) -> None:
        classes = checked_classes(classes)
        self._check_named(classes)
        super().begin_experience(classes, samples)

    def finish_experience(self) -> None:
        classes = [c for c in self.current_classes if c in self.seen_classes]
        if classes and self.rows_from != "frozen":
            self._store(classes)

    def grow_classes(self, num_classes: int) -> None:
        grow_rows(self.rows, torch.zeros(num_classes - self.rows.shape[0], self.rows.shape[1]))

    def check_label_sets(self) -> None:
        if self.backbone.logit_bias is None:
            raise ProtocolError(
                f"{type(self).__name__} takes label sets on a backbone whose text tower has a bias alone "
                "(SigLIP's): elsewhere its logits have no zero point"
            )
        super().check_label_sets()

    def train(self, mode: bool = True) -> TextModel:
        if mode:
            self._made.clear()
        return super().train(mode)

    def _rows_in_use(self) -> Tensor:
        """The rows that predict, [C, E]; in evaluation made once for each state of the prompts."""
        classes = self._live_classes(None)
        if not classes:
            return self.rows
        if torch.is_grad_enabled() and self.training:
            return self._with_live(classes)
        return self._made_once("rows in use", lambda: self._with_live(classes))

    def _made_once(self, what: Hashable, make: Callable[[], Tensor]) -> Tensor:
        """What evaluation makes of the prompts, once for each state of them."""
        state = tuple((v.data_ptr(), v._version) for v in self.method_state().values())
        if state != self._made_at:
            self._made_at = state
            self._made.clear()
        if what not in self._made:
            with torch.no_grad():
                self._made[what] = make()
        return self._made[what]

    def _with_live(self, classes: Sequence[int]) -> Tensor:
        live = self._adapted(self.live_class_rows(classes))
        return self.rows.to(live).index_copy(0, as_index(classes, live.device), live)
