"""What training keeps of the frozen backbone: the same bits, once per image, and for one experience only."""

from __future__ import annotations

import contextlib
import gc
from typing import Any

import numpy as np
import pytest
import torch
from small_methods import SMALL
from torch import Tensor

from clprompt.errors import ConfigError, Interrupted
from clprompt.experiment import run as experiment
from clprompt.registry import strategies
from clprompt.strategies.dualprompt import DualPromptModel
from clprompt.strategies.mvp import MVPModel
from clprompt.system.runtime import has_bf16
from clprompt.testing.asserts import same_bits
from clprompt.testing.bench import CLASSES, Log, ToyImages, tiny_backbone, tiny_model, tiny_vit
from clprompt.training.engine import Engine
from clprompt.training.kept import Keeping, KeptRows
from clprompt.training.settings import Online, Training

BACKBONE = tiny_vit(depth=2)
TRAINING = Training(train_mb_size=8, train_epochs=3, lr=0.01, eval_mb_size=5, log_every=1)
IMAGES = ToyImages(5)  # 10 in each of 3 experiences: batches of 8 and 2


class Unsure(ToyImages):
    """The same images of a data set that does not promise them: nothing of them is kept."""

    random_transform = True


class Noisy(Unsure):
    """Another image each time."""

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, target = super().__getitem__(index)
        return image + 0.3 * torch.randn(3, 16, 16), target


class Counted(DualPromptModel):
    """Counts the batches of which the backbone was asked for a query in training, and notes the queries."""

    def __init__(self, backbone: Any, **arguments: Any) -> None:
        super().__init__(backbone, g_layers=(0,), e_layers=(1,), g_length=2, e_length=3, **arguments)
        self.asked = 0
        self.queries: list[Tensor] = []

    def query(self, images: Tensor, first: int, cached: Any = None) -> tuple[Tensor, Tensor]:
        self.asked += self.training and torch.is_grad_enabled() and not cached
        stem, query = super().query(images, first, cached)
        if torch.is_grad_enabled():
            self.queries.append(query)
        return stem, query


class Forgetful(Counted):
    """Asks for its query each time."""

    def query(self, images: Tensor, first: int, cached: Any = None) -> tuple[Tensor, Tensor]:
        return super().query(images, first)


class Uneven(Counted):
    """Rounds each row by its place in the batch, as kernels of several threads do."""

    def features(self, images: Tensor, cached: Any = None, **where: Any) -> Tensor:
        if cached and "features" in cached:
            return cached["features"]
        features = super().features(images, **where)
        features = features + 1e-6 * torch.arange(len(features))[:, None]
        if cached is not None:
            cached["features"] = features
        return features


def trained(model: Any, images: Any = IMAGES, **settings: Any) -> tuple[Engine, list[dict[str, Any]]]:
    """Train on the first two experiences; the engine and its records."""
    log = Log()
    settings = {"training": TRAINING, "listeners": [log], **settings}
    engine = Engine(model, images, images.groups()[:2], CLASSES[:2], **settings)
    engine.run()
    return engine, log.records


# ------------------------------------------------------------------------------------------------ exact


@pytest.mark.parametrize("name", strategies.names())
def test_what_is_kept_changes_no_bit(name: str) -> None:
    model_class = strategies.get(name).target
    backbone = tiny_backbone(model_class)
    runs = []
    for images in (IMAGES, Unsure(5)):
        model = tiny_model(model_class, backbone, **SMALL.get(name, {}))
        training, log = Training(train_mb_size=8, train_epochs=2, lr=0.01, log_every=1), Log()
        parts = images.groups()[:1], CLASSES[:1]
        Engine(model, images, *parts, training=training, listeners=[log]).run()
        runs.append((model.method_state(), log.records))
    assert same_bits(*runs)


def test_a_query_is_computed_once_for_all_epochs() -> None:
    model = Counted(BACKBONE)
    engine, _ = trained(model)
    if engine._moves[8]:
        pytest.skip("here a row's bits depend on its place in the batch")
    assert model.asked == 2 * (2 + 2)  # an epoch of two batches, and the small one of each later epoch


@pytest.mark.parametrize(
    ("images", "training"),
    [(Unsure(5), {}), (IMAGES, {"mixup": 0.5}), (IMAGES, {"train_epochs": 1})],
    ids=["augmented", "mixed", "one epoch"],
)
def test_nothing_is_kept_of_images_that_change_or_come_once(images: Any, training: dict[str, Any]) -> None:
    model = Counted(BACKBONE)
    settings = Training(**{**vars(TRAINING), **training})
    trained(model, images, training=settings)
    assert model.asked == 2 * 2 * settings.train_epochs


def test_nothing_is_kept_where_a_rows_bits_depend_on_its_place() -> None:
    kept, plain = Uneven(BACKBONE), Uneven(BACKBONE)
    engine, records = trained(kept)
    assert engine._moves == {8: True}
    assert records == trained(plain, Unsure(5))[1]
    assert same_bits(kept.method_state(), plain.method_state())


@pytest.mark.parametrize("images", [IMAGES, Noisy(5)], ids=["plain", "augmented"])
def test_the_iterations_on_a_batch_share_its_query(images: Any) -> None:
    online = Online(iterations=3)
    model, plain = Counted(BACKBONE, boundary_free=True), Forgetful(BACKBONE, boundary_free=True)
    assert trained(model, images, online=online)[1] == trained(plain, images, online=online)[1]
    assert (model.asked, plain.asked) == (2 * 2, 3 * 2 * 2)


# ------------------------------------------------------------ for how long


def test_an_interruption_drops_what_was_kept() -> None:
    engine = Engine(Counted(BACKBONE), IMAGES, IMAGES.groups(), CLASSES, training=TRAINING, stop=lambda: 15)
    with contextlib.suppress(Interrupted):
        engine.run()
    gc.collect()
    assert not [found for found in gc.get_objects() if isinstance(found, Keeping)]


def test_rows_beyond_the_limit_are_not_kept() -> None:
    rows = KeptRows(4, limit_bytes=4 * 3 * 4)
    rows.add([0, 2], {"features": torch.ones(2, 3), "more": torch.ones(2, 1)})
    assert rows.read([2, 0]).keys() == {"features"}
    assert rows.read([0, 1]) == {}


# ------------------------------------------------------------ clean queries


def test_a_clean_query_is_that_of_the_image_as_evaluation_shows_it() -> None:
    model = Counted(BACKBONE)
    training = Training(**{**vars(TRAINING), "clean_query": True})
    trained(model, Noisy(5), clean=IMAGES, training=training)
    assert model.asked == 0
    clean = BACKBONE.features(IMAGES.images[np.concatenate(IMAGES.groups()[:2])])
    distances = torch.cdist(torch.cat(model.queries), clean, compute_mode="donot_use_mm_for_euclid_dist")
    assert float(distances.amin(1).max()) < 1e-4 < float(distances.median())


REFUSED = {
    "no query": (
        {"training": {"clean_query": True}, "strategy": "vpt_deep"},
        "VPTDeepModel chooses no prompts",
    ),
    "text": ({"training": {"clean_query": True}, "strategy": "linear_probe"}, "chooses no prompts"),
    "online": (
        {"training": {"clean_query": True}, "strategy": {"name": "l2p"}, "online": {}},
        "training.clean_query must be false for an online stream",
    ),
    "mixed": (
        {"training": {"clean_query": True, "mixup": 0.5}, "strategy": "l2p"},
        "training.clean_query must be false where training.mixup is on",
    ),
    "bf16": (
        {"query_precision": "bf16", "strategy": "ncm"},
        "query_precision must be null: NCMModel chooses",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_query_setting_without_a_meaning_is_one_line(name: str, tmp_path: Any) -> None:
    changes, says = REFUSED[name]
    values = {
        "data": {"name": "digits"},
        "scenario": {"name": "split", "experiences": 5},
        "backbone": "vit_letters",
        "runs_dir": str(tmp_path / "runs"),
        **changes,
    }
    with pytest.raises(ConfigError) as caught:
        experiment.run(values)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "runs").exists()


# ------------------------------------------------------------------------------------------------ 16 bits


@pytest.mark.parametrize("model_class", [DualPromptModel, MVPModel])
def test_a_bf16_query_leaves_everything_else_in_float32(model_class: Any) -> None:
    model = tiny_model(model_class, BACKBONE, **({"g_layers": (0,), "e_layers": (1,)}))
    exact: dict[str, Tensor] = {}
    model.keep_query(IMAGES.images[:4], exact)
    model.ask_in("bf16")
    kept: dict[str, Tensor] = {}
    model.keep_query(IMAGES.images[:4], kept)
    (before,), (query,) = exact.values(), kept.values()
    assert query.dtype == torch.float32
    assert 0 < float((query - before).abs().max()) < 0.1
    assert same_bits(model.features(IMAGES.images[:4]), BACKBONE.features(IMAGES.images[:4]))


@torch.no_grad()
def test_an_evaluation_chooses_prompts_by_the_bf16_query() -> None:
    model, image = Counted(BACKBONE), IMAGES.images[:1]
    with torch.enable_grad():
        trained(model)
    exact = model.eval().query_of(image)
    model.ask_in("bf16")
    for key, query in zip(model.keys, (model.query_of(image), exact), strict=True):
        key.copy_(query[0])
    kept: dict[str, Tensor] = {}
    logits = model(image, kept)[:, model.seen]
    nearest, other = (
        model.classify(model.encode_under(image, torch.tensor([slot])))[:, model.seen] for slot in (0, 1)
    )
    assert torch.equal(logits, nearest)
    assert not torch.equal(logits, other)
    assert kept.keys() == {"bf16 query"}
    assert torch.equal(model(image, kept)[:, model.seen], logits)


def test_a_bf16_query_is_kept_over_epochs() -> None:
    runs = []
    for images in (IMAGES, Unsure(5)):
        model = Counted(BACKBONE)
        model.ask_in("bf16")
        runs.append((trained(model, images)[1], model.method_state()))
    assert same_bits(*runs)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("flags\t: sse avx512_bf16 ht\n", True), ("flags\t: sse avx2\n", False), ("nothing\n", None)],
)
def test_a_processor_is_asked_for_bf16(text: str, expected: bool | None, tmp_path: Any) -> None:
    (tmp_path / "cpuinfo").write_text("processor : 0\n" + text)
    assert has_bf16(str(tmp_path / "cpuinfo")) is expected
