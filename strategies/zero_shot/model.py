"""Zero-shot: classes are the texts of their names; nothing is trained by gradient."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from clprompt import schema
from clprompt.backbones.vit import FrozenViT
from clprompt.errors import CheckpointError, ConfigError, DataError, ProtocolError, nearest, tell
from clprompt.prompting.losses import SoftLabels, mask_logits
from clprompt.prompting.model import Boundaries, Encoded, evaluating
from clprompt.prompting.plugin import Samples
from clprompt.prompting.text.model import TextModel
from clprompt.prompting.text.sources import (
    Ensemble,
    check_fit,
    check_template,
    fill,
    read_candidates,
    read_descriptions,
    read_pairs,
    read_templates,
    tell_of_strangers,
    text_rows,
)
from clprompt.registry import strategies
from clprompt.schema import FilePath, above, at_least
from clprompt.seeding import generator
from clprompt.strategies.zero_shot.cache import FeatureCache
from clprompt.strategies.zero_shot.pairs import PairTexts, pair_texts
from clprompt.strategies.zero_shot.search import Chosen, Fitness, Scored, fitness_of, search
from clprompt.training.finite import check_features

#: Characters of a text that a caller's ``propose`` gives, at most.
_LONGEST_PROPOSAL = 1000


@strategies.register(
    "zero_shot", paper="Radford et al., ICML 2021, arXiv 2103.00020", year=2021, boundaries="unused"
)
class ZeroShotModel(TextModel):
    """Zero-shot classification: an image is of the class whose text is nearest to it; nothing is trained.

    What the text of a class is:

    * ``template``, or the ensemble of several ``templates``;
    * ``descriptions``: sentences about each class (CuPL, Pratt et al., ICCV 2023);
    * ``pairs``: between the ``top_k`` best classes of an image decide sentences that tell two classes apart
      (FuDD, Esfandiarpoor and Bach, ICLR 2024); the others come behind them. For a pair that the file lacks
      stand the class's own texts. A class's logit then depends on which others are among the best, so that a
      new class may change it;
    * ``candidates``: templates, or sentences by class, among which a seeded search takes those that score
      best on the images of each experience, against the classes seen before (ProAPO, Qu et al., CVPR 2025,
      without its language model). The rows that an experience chose stay; the next one begins with the best
      sets of templates. A language model of your own writes further templates in :meth:`propose`.

    ``cache_size`` adds a cache of image features (TFUP): of the images of each experience, whose labels are
    not read, the most confident ones of each class that they are predicted to be. No image is stored, but
    features of single images are, at most so many a class.

    Where released codes differ: FuDD's best classes are those of one template (here of whatever the texts of
    the classes are); TFUP multiplies cosines by 100 (here by the backbone's scale) and fills its cache from
    the images that it is evaluated on.

    Args:
        backbone: the frozen towers.
        seed: where the random choices of the search come from.
        template: the text of a class, with {} in place of its name.
        templates: a file of several (a JSON or YAML list, or one a line), or imagenet_7, imagenet_80.
        descriptions: a JSON or YAML file of sentences by class name, ``{name: [...]}``.
        ensemble: how several texts become one row: the mean of "normalised" features, or of "raw" ones.
        synonyms: all names of a class take part, not the shown one alone.
        pairs: a JSON or YAML file, ``[{classes: [a, b], prompts: {a: [...], b: [...]}}]``.
        top_k: classes of an image between which pairs decide.
        candidates: a file as that of ``templates`` or ``descriptions``, to choose from.
        fitness: what the search looks for, "top1" accuracy, or "proapo": accuracies and cross-entropy.
        budget: sets of texts that are scored in an experience at most.
        population: the best sets, of which others are made.
        cache_size: features kept of a class at most; 0 for no cache.
        cache_weight: the most that a cached feature adds to a logit.
        cache_sharpness: how fast that falls with the distance.
    """

    trains: ClassVar[bool] = False
    soft_labels: ClassVar[bool] = False

    @schema.checked
    def __init__(
        self,
        backbone: FrozenViT,
        *,
        seed: int = 0,
        template: str = "a photo of a {}.",
        templates: FilePath | None = None,
        descriptions: FilePath | None = None,
        ensemble: Ensemble = "normalised",
        synonyms: bool = False,
        pairs: FilePath | None = None,
        top_k: Annotated[int, at_least(2)] = 10,
        candidates: FilePath | None = None,
        fitness: Fitness = "top1",
        budget: Annotated[int, at_least(1)] = 100,
        population: Annotated[int, at_least(1)] = 8,
        cache_size: Annotated[int, at_least(0)] = 0,
        cache_weight: Annotated[float, above(0)] = 0.3,
        cache_sharpness: Annotated[float, above(0)] = 1.0,
    ) -> None:
        super().__init__(backbone, seed=seed, mask="none", rows="frozen", template=template)
        sources = {"templates": templates, "descriptions": descriptions, "candidates": candidates}
        _at_most_one({key: path for key, path in sources.items() if path is not None})
        _at_most_one({"pairs": pairs, "candidates": candidates} if pairs and candidates else {})
        if pairs is not None and cache_size:
            raise ConfigError("give pairs or cache_size, not both: pairs leave no rows that a cache adds to")
        self.ensemble: Ensemble = ensemble
        self.synonyms = synonyms
        self.top_k = top_k
        self.fitness: Fitness = fitness
        self.budget = budget
        self.population = population
        self.cache_weight = cache_weight
        self.cache_sharpness = cache_sharpness
        self.templates = [template] if templates is None else read_templates(templates)
        self.sentences = None if descriptions is None else read_descriptions(descriptions)
        self.pairs = None if pairs is None else read_pairs(pairs)
        self.searches = candidates is not None
        if candidates is not None:
            read = read_candidates(candidates)
            if isinstance(read, list):
                self.templates = read
            else:
                self.sentences = read
        self._source = next((key for key, path in sources.items() if path is not None), None)
        self._where = next((f"{key} {path}" for key, path in sources.items() if path is not None), "template")
        self._pairs_where = f"pairs {pairs}"
        self._has_told: set[str] = set()
        self._pair_texts: tuple[list[int], PairTexts] | None = None  # of the seen classes
        if self.pairs is not None:
            check_fit(self.text, (line for texts in self.pairs.values() for line in texts), self._pairs_where)
        self.found: Tensor
        if self.searches and self.sentences is None:
            # [[score, [template, ...]], ...] of the best sets, best first, as JSON in UTF-8
            self.register_buffer("found", torch.zeros(0, dtype=torch.uint8))
        self.cache = FeatureCache(cache_size, backbone.joint_width) if cache_size else None

    # ------------------------------------------------------------------ what the method says of itself

    @property
    def scores_are(self) -> str:
        return "similarities to texts"

    @property
    def boundaries(self) -> Boundaries:
        return "required" if self.searches or self.cache is not None else "unused"

    def max_state_size(self, experiences: int) -> int | None:
        """The best sets of a search are text, whose length the data decide."""
        if not self._keeps_sets:
            return None
        longest = [len(json.dumps(template)) + 2 for template in self.templates]
        if self._proposes:
            longest += [6 * _LONGEST_PROPOSAL] * (experiences * self.budget)
        return self.state_size() - self.found.numel() + self.population * (sum(longest) + 40) + 2

    @property
    def _keeps_sets(self) -> bool:
        return self.searches and self.sentences is None

    @property
    def _proposes(self) -> bool:
        return type(self).propose is not ZeroShotModel.propose

    def propose(self, history: list[tuple[float, list[str]]]) -> Iterable[str]:
        """Further templates for the search, each with {}; a subclass may ask a language model here.

        Called once a round, before sets are changed at random; a text that is known already is passed over.

        Args:
            history: (score, templates) of the best sets so far, best first.
        """
        return ()

    # ------------------------------------------------------------------ texts

    @property
    def best_sets(self) -> list[tuple[float, list[str]]]:
        """(score, templates) of the best sets that the last search found, best first; none before one."""
        if not self._keeps_sets or not self.found.numel():
            return []
        try:
            return [(float(score), list(texts)) for score, texts in json.loads(bytes(self.found.tolist()))]
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"the state holds no sets of templates in found: {error}") from error

    def texts_of(self, name: str) -> list[str]:
        """The texts of a class, by its shown name, or of any other name.

        Raises:
            ConfigError: the file of sentences has none of a class.
        """
        names = self.names.called(name)
        if self.sentences is not None:
            described = next((n for n in names or [name] if n in self.sentences), None)
            if described is not None:
                return self.sentences[described]
            if names:
                raise ConfigError(
                    f'{self._where} has no sentences of class "{name}"{nearest(name, self.sentences)}'
                )
        best = self.best_sets
        templates = best[0][1] if best else self.templates
        return [fill(t, n) for n in self._in_use(names or [name]) for t in templates]

    def files_read(self) -> dict[str, Any]:
        texts = {} if self._source is None else {self._source: self.sentences or self.templates}
        return super().files_read() | texts | ({} if self.pairs is None else {"pairs": self.pairs})

    def _in_use(self, names: Sequence[str]) -> Sequence[str]:
        return names if self.synonyms else names[:1]

    def name_classes(self, names: Mapping[int, str | Sequence[str]]) -> None:
        super().name_classes(names)
        shown = [self.names.shown(c) for c in names]
        check_fit(self.text, (text for name in shown for text in self.texts_of(name)), self._where)
        known = self.names.every()
        if self.sentences is not None:
            self._tell_once("sentences", lambda: tell_of_strangers(self.sentences or (), known, self._where))
        if self.pairs is not None:
            first = [name for name, _ in self.pairs]
            self._tell_once("pairs", lambda: tell_of_strangers(first, known, self._pairs_where))

    def _tell_once(self, what: str, notice: Callable[[], None]) -> None:
        if what not in self._has_told:
            self._has_told.add(what)
            notice()

    def live_rows(self, names: Sequence[str]) -> Tensor:
        return self.frozen_rows(names)

    @torch.no_grad()
    def frozen_rows(self, names: Sequence[str]) -> Tensor:
        """The normalised text features of names, [n, E], by the texts that are in use."""
        return text_rows(self.text, [self.texts_of(name) for name in names], self.ensemble)

    @torch.no_grad()
    def template_rows(self, classes: Sequence[int]) -> dict[str, Tensor]:
        if self.searches or self.sentences is not None or len(self.templates) < 2:
            return {}
        groups = [self.texts_of(self.names.shown(c)) for c in classes]
        # the very list that the rows of all templates together are made of, so its features are kept
        features = self._for_mean(self.text.features([text for group in groups for text in group]))
        parts = features.split([len(group) for group in groups])
        of_names = [part.unflatten(0, (-1, len(self.templates))).mean(0) for part in parts]  # (T, E) each
        rows = F.normalize(torch.stack(of_names, dim=1), dim=-1)  # (T, n, E)
        return dict(zip(self.templates, rows, strict=True))

    def _store(self, classes: Sequence[int]) -> None:
        """Rows of an experience that was searched were stored when it began."""
        super()._store([c for c in classes if not (self.searches and bool(self.current[c]))])

    # ------------------------------------------------------------------ prediction

    def losses(
        self, encoded: Encoded, targets: Tensor, soft: SoftLabels | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """No loss: nothing is trained by gradient."""
        return super().classify(encoded), {}

    def classify(self, encoded: Encoded) -> Tensor:
        logits = super().classify(encoded)
        if self.training:
            return logits
        with torch.autocast(logits.device.type, enabled=False):
            features = encoded.features.to(logits.dtype)
            if self.cache is not None:
                return logits + self.cache.added(
                    features,
                    self.rows.to(logits),
                    self.seen,
                    weight=self.cache_weight,
                    sharpness=self.cache_sharpness,
                )
            return logits if self.pairs is None else self._told_apart(features, logits)

    def _told_apart(self, features: Tensor, logits: Tensor) -> Tensor:
        """Logits of the best classes by pair texts, below them the others: [B, E], [B, C] -> [B, C]."""
        seen = self.seen.nonzero().flatten()
        if len(seen) < 2:
            return logits
        if self._pair_texts is None or self._pair_texts[0] != seen.tolist():
            self._pair_texts = seen.tolist(), self._texts_of_pairs(seen.tolist())
        top = logits[:, seen].topk(min(self.top_k, len(seen)), dim=1).indices
        cosines = self._pair_texts[1].cosines(features, top)
        told = (self.backbone.scale * cosines + (self.backbone.logit_bias or 0.0)).to(logits)
        # the lowest of these is -s (+ bias), and a cosine of another class less 3 is below -1
        return (logits - 3 * self.backbone.scale).scatter(1, seen[top], told)

    def _texts_of_pairs(self, classes: Sequence[int]) -> PairTexts:
        names = [self.names.all(c) for c in classes]
        own = [self.texts_of(synonyms[0]) for synonyms in names]
        texts, missing = pair_texts(self.text, names, self.pairs or {}, own, self.names.every())
        if missing:
            one, other = missing[0]
            line = f'{self._pairs_where} lacks {len(missing)} of the pairs, such as "{one}" against "{other}"'
            self._tell_once("missing pairs", lambda: tell(f"{line}; the texts of the class take their place"))
        return texts

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        self._pair_texts = None
        return super()._apply(fn, recurse)

    # ------------------------------------------------------------------ experiences

    def check_label_sets(self) -> None:
        super().check_label_sets()
        if self.searches:
            raise ProtocolError("candidates are scored by one label per image, got multi-hot targets")

    def grow_classes(self, num_classes: int) -> None:
        super().grow_classes(num_classes)
        if self.cache is not None:
            self.cache.grow(num_classes)

    def resize_to(self, state: Mapping[str, Tensor]) -> None:
        super().resize_to(state)
        self._pair_texts = None
        if self._keeps_sets and "found" in state:
            self.found = torch.zeros_like(state["found"], device=self.found.device)

    @torch.no_grad()
    def start_experience(self, index: int, samples: Samples | None) -> None:
        """Search for texts and fill the cache with the images of the experience, which are then dropped."""
        if samples is None:
            raise ProtocolError(
                f"{type(self).__name__} with candidates or cache_size looks at the images of an experience: "
                "call begin_experience(classes, samples)"
            )
        features, labels = self._looked_at(samples)
        if labels.ndim != 1:
            self.check_label_sets()
        classes = self.current.nonzero().flatten().tolist()
        if self.searches:
            self._search(index, classes, features, labels)
        else:
            self.rows[classes] = self.frozen_rows([self.names.shown(c) for c in classes]).to(self.rows)
        if self.cache is not None:
            logits = self.similarity(features, self.rows[classes])
            confidence, best = logits.softmax(1).max(1)
            self.cache.add(features, torch.tensor(classes, device=best.device)[best], confidence)

    def _looked_at(self, samples: Samples) -> tuple[Tensor, Tensor]:
        """The features [N, E] and targets [N] or [N, C] of an experience's images.

        Raises:
            DataError: there are none.
        """
        features, targets = [], []
        with evaluating(self):
            for images, labels in samples():
                images = self.placed(images)
                features.append(self.encode(images).features)
                check_features(self, features[-1], images, lambda row: "an image of the experience")
                targets.append(labels.to(self.device))
        if not features:
            raise DataError(f"{type(self).__name__}: the experience has no images to look at")
        return torch.cat(features), torch.cat(targets)

    def _search(self, index: int, classes: Sequence[int], features: Tensor, labels: Tensor) -> None:
        """Choose the texts of an experience, and store the rows of its classes."""
        draws = generator(self.seed, "text search", index)
        allowed = self.seen | self.current
        rows = self.rows.clone()

        def score(live: Tensor) -> float:
            rows[list(classes)] = live.to(rows)
            logits = mask_logits(self.similarity(features, rows), allowed)
            return fitness_of(logits, labels, self.fitness, sentences=self.sentences is not None)

        shown = [self.names.shown(c) for c in classes]
        if self.sentences is not None:
            groups = [self.texts_of(name) for name in shown]
            parts = [self._for_mean(self.text.features(group)) for group in groups]

            def live_of(chosen: Chosen) -> Tensor:
                means = [part[list(texts)].mean(0) for part, texts in zip(parts, chosen, strict=True)]
                return F.normalize(torch.stack(means), dim=-1)

            best = self._best(score, live_of, [len(group) for group in groups], draws)
            chosen = [[group[i] for i in texts] for group, texts in zip(groups, best[0].chosen, strict=True)]
            self.rows[list(classes)] = text_rows(self.text, chosen, self.ensemble).to(self.rows)
            return
        before = self.best_sets
        pool = list(dict.fromkeys([*self.templates, *(t for _, texts in before for t in texts)]))
        names = [list(self._in_use(self.names.called(name))) for name in shown]
        by_template = [self._of_template(template, names) for template in pool]
        sizes = [len(pool)]

        def live_of_templates(chosen: Chosen) -> Tensor:
            return F.normalize(torch.stack([by_template[i] for i in chosen[0]]).mean(0), dim=-1)

        def proposed(ranking: list[Scored]) -> list[Chosen]:
            history = [(scored.score, [pool[i] for i in scored.chosen[0]]) for scored in ranking]
            first = len(pool)
            for template in self._checked_proposals(history, shown):
                if template not in pool:
                    pool.append(template)
                    by_template.append(self._of_template(template, names))
            sizes[0] = len(pool)
            return [((number,),) for number in range(first, len(pool))]

        start = [(tuple(sorted(pool.index(t) for t in texts)),) for _, texts in before]
        best = self._best(score, live_of_templates, sizes, draws, start, proposed if self._proposes else None)
        found = [[scored.score, [pool[i] for i in scored.chosen[0]]] for scored in best]
        self.found = torch.tensor(
            list(json.dumps(found).encode()), dtype=torch.uint8, device=self.found.device
        )
        self.rows[list(classes)] = self.frozen_rows(shown).to(self.rows)

    def _best(
        self,
        score: Callable[[Tensor], float],
        live_of: Callable[[Chosen], Tensor],
        sizes: list[int],
        draws: torch.Generator,
        start: Sequence[Chosen] = (),
        propose: Callable[[list[Scored]], list[Chosen]] | None = None,
    ) -> list[Scored]:
        return search(
            sizes,
            lambda chosen: score(live_of(chosen)),
            draws=draws,
            budget=self.budget,
            population=self.population,
            start=start,
            propose=propose,
        )

    def _for_mean(self, features: Tensor) -> Tensor:
        """Features of which the mean of the chosen ones is taken: [..., E]."""
        return F.normalize(features, dim=-1) if self.ensemble == "normalised" else features

    def _of_template(self, template: str, names: Sequence[Sequence[str]]) -> Tensor:
        """What a template adds to the rows of classes, the mean over the names of each: [C, E]."""
        features = self.text.features([fill(template, name) for synonyms in names for name in synonyms])
        parts = self._for_mean(features).split([len(synonyms) for synonyms in names])
        return torch.stack([part.mean(0) for part in parts])

    def _checked_proposals(self, history: list[tuple[float, list[str]]], names: Sequence[str]) -> list[str]:
        where = f"{type(self).__name__}.propose"
        texts = self.propose(history)
        texts = [texts] if isinstance(texts, str) else list(texts)
        for text in texts:
            if not isinstance(text, str):
                raise ConfigError(f"{where} must give texts, got {schema.show(text)}")
            check_template(text, where)
            if len(text) > _LONGEST_PROPOSAL:
                raise ConfigError(f"{where} gave {len(text)} characters; at most {_LONGEST_PROPOSAL}")
            check_fit(self.text, (fill(text, name) for name in names), where)
        return texts[: self.budget]


def _at_most_one(given: Mapping[str, str]) -> None:
    if len(given) > 1:
        raise ConfigError(f"give {' or '.join(given)}, not {'both' if len(given) == 2 else 'all'}")
