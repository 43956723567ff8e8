"""The packaged experiments on published data sets: complete, and each of them runs."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import archives
import pytest
from matplotlib.figure import Figure

from clprompt import registry
from clprompt.experiment import config, run
from clprompt.strategies.damvp import plots as damvp_plots
from clprompt.strategies.tcpa import plots as tcpa_plots
from clprompt.system import overlay

pytestmark = pytest.mark.usefixtures("same_picture")

METHODS = (
    "l2p",
    "dualprompt",
    "coda-prompt",
    "multilane",
    "vpt-deep",
    "linear-probe",
    "ncm",
    "slda",
    "ranpac",
    "zero-shot",
    "coop",
    "maple",
    "promptsrc",
)
#: Presets that are named after a method which is a plug-in of another.
STRATEGIES = {"promptsrc": "maple"}


@pytest.mark.parametrize("data", ["cifar100", "imagenet-r"])
@pytest.mark.parametrize("method", METHODS)
def test_every_baseline_has_a_preset_of_ten_experiences(method, data):
    loaded = config.load(f"{method}-split-{data}")
    assert loaded.strategy["name"].replace("_", "-") == STRATEGIES.get(method, method)
    assert loaded.data["name"] == {"cifar100": "cifar100", "imagenet-r": "imagenet_r"}[data]
    assert (loaded.scenario["name"], loaded.scenario["experiences"]) == ("split", 10)


def test_every_preset_begins_with_a_comment_that_summarises_it():
    summaries = dict(overlay.names())
    for method in METHODS:
        for data, title in (("cifar100", "CIFAR-100"), ("imagenet-r", "ImageNet-R")):
            assert title in summaries[f"{method}-split-{data}"]


def test_the_methods_of_the_presets_are_registered_with_their_papers():
    for method in METHODS:
        entry = registry.strategies.get(STRATEGIES.get(method, method))
        assert entry.info["paper"]
        assert entry.summary


@pytest.mark.parametrize("data", ["cifar100", "imagenet-r"])
def test_tcpa_grows_on_split_streams(data):
    loaded = config.load(f"tcpa-split-{data}")
    assert loaded.strategy["name"] == "tcpa"
    assert loaded.strategy["prompts"] == "grow"
    assert loaded.scenario["experiences"] == 10
    assert (loaded.training.lr, loaded.training.weight_decay) == (0.003, 0.0)


def test_tcpa_shares_its_pool_where_there_are_no_boundaries():
    loaded = config.load("tcpa-siblurry-cifar100")
    assert loaded.online is not None
    assert loaded.scenario["name"] == "si_blurry"
    assert (loaded.strategy["prompts"], loaded.strategy["boundary_free"]) == ("shared", True)


def test_the_reference_recipe_of_tcpa_is_the_released_one():
    loaded = config.load("tcpa-dtd-reference")
    strategy, training = loaded.strategy, loaded.training
    assert (loaded.data["name"], loaded.scenario["experiences"]) == ("dtd", 1)
    assert (strategy["mask_position"], strategy["fourier"], strategy["prompts"]) == (
        "after",
        "joint",
        "shared",
    )
    assert (strategy["pool_cls"], strategy["top_k_image"], strategy["matching_weight"]) == (18, 10, 0.01)
    assert (strategy["prompt_dropout"], strategy["random_epochs"]) == (0.1, 10)
    assert (training.optimizer, training.lr, training.weight_decay) == ("adamw", 0.01, 0.1)
    assert (training.schedule, training.warmup, training.train_epochs) == ("cosine", 0.2, 100)
    assert (training.mixup, training.mixup_probability, training.label_smoothing) == (0.8, 0.5, 0.1)


@pytest.mark.parametrize(
    "name", ["damvp-split-cifar100", "damvp-split-imagenet-r", "damvp-token-split-cifar100"]
)
def test_damvp_clusters_each_experience_of_split_streams(name):
    loaded = config.load(name)
    strategy, training = loaded.strategy, loaded.training
    assert (strategy["name"], loaded.scenario["experiences"]) == ("damvp", 10)
    assert strategy["prompt"] == ("token" if "token" in name else "pixel")
    assert (strategy["max_clusters"], strategy["threshold"], strategy["cluster"]) == (16, None, True)
    assert (training.optimizer, training.schedule) == ("adam", "cosine")
    assert training.train_epochs == (50 if "imagenet-r" in name else 5)


def test_the_reference_recipes_of_damvp_are_the_released_ones():
    loaded = config.load("damvp-reference-dtd")
    training = loaded.training
    assert (loaded.data["name"], loaded.scenario["experiences"]) == ("dtd", 1)
    assert (training.optimizer, training.momentum, training.weight_decay) == ("sgd", 0.9, 0.0)
    assert (training.schedule, training.warmup) == ("cosine", 0.2)
    assert (training.train_mb_size, training.train_epochs) == (128, 50)
    both = [loaded.strategy, *loaded.compare]
    assert [strategy["head"] for strategy in both] == ["linear", "active"]
    for strategy in both:
        assert (strategy["pad"], strategy["init"], strategy["init_std"]) == (30, "random", 1.0)
        assert (strategy["threshold"], strategy["max_clusters"], strategy["min_cluster_size"]) == (
            31.0,
            None,
            1,
        )
    assert (both[1]["active_order"], both[1]["prompt_lr"]) == ("sorted", 10_000.0)


# --------------------------------------------------------------------------------------------- runs of all

#: Over a random ViT that is narrow and otherwise the preset's: depth, patches and image size are.
NARROW = ["backbone.pretrained=false", "backbone.embed_dim=48", "backbone.num_heads=3"]
OFFLINE = ["training.train_epochs=2"]  # of a batch each, as an experience holds less than one
#: Ten experiences, or five sessions of six methods at full size, would take a minute: two do, smaller ones.
SPLIT, ONLINE = ["scenario.experiences=2"], ["scenario.sessions=2"]
SMALLER = ["backbone.img_size=112"]
#: scikit-learn's digits have one size only, and their test set takes longer than everything else.
EMBEDDED = ("vit_letters", "clip_letters")
#: Methods that read text get the embedded towers in place of a file that nobody ships.
TEXT = ["backbone={name: clip_letters}"]
DIGITS = ["data={name: synthetic, classes: 10, train_per_class: 2, test_per_class: 1, size: 8}"]
MOSAICS = ["data.train_images=40", "data.test_images=10", "scenario.classes_per_experience=5"]
BESIDE = "mvp-siblurry-cifar100"  # the others have the same strategies beside theirs, or none


def of_presets() -> list[str]:
    return [name for name, _ in overlay.names()]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder in which presets find data/, with archives of six classes or so."""
    root = tmp_path_factory.mktemp("presets")
    folder = root / "data"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        archives.cifar100(folder, patch, classes=6)
        archives.imagenet_r(folder, classes=6, train=1)
        names = {wnid: f"letter {chr(97 + c)}" for c, wnid in enumerate(archives.wnids(6))}
        (folder / "imagenet-r_names.json").write_text(json.dumps(names))
        archives.tiny_imagenet(folder, classes=6, train=1)
        archives.cub200(folder, classes=6, train=1, test=2)
        archives.dtd(folder, classes=2)
        archives.coco(folder, images=5)
        archives.voc2007(folder, images=6)
        for module, drawings in (
            (tcpa_plots, ("choices", "switched")),
            (damvp_plots, ("draw_map", "draw_frames", "draw_explained", "contact_sheet")),
        ):
            for drawing in drawings:
                patch.setattr(module, drawing, lambda *_, **__: Figure())
        yield root


def narrow(section: dict[str, Any]) -> dict[str, Any]:
    return section | {"random_features": 50} if "random_features" in section else section


def small(name: str) -> list[str]:
    """What makes a run of a preset one of seconds; its data, its strategy and its recipe stay."""
    preset = config.load(name)
    overrides = ["device=cpu", "training.workers=0", "training.log_every=1", f"seed={preset.seeds[0]}"]
    if preset.backbone["name"] not in EMBEDDED:
        overrides += TEXT if preset.backbone["name"] == "clip" else NARROW
    else:
        overrides.append("training.train_mb_size=40")
        overrides += MOSAICS if preset.data["name"] == "digit_mosaics" else DIGITS
    if preset.backbone["name"] == "clip" and "depth" in preset.strategy:
        overrides.append("strategy.depth=3")  # blocks of the embedded text tower
    if preset.strategy.get("anchor_texts"):
        overrides.append("strategy.anchor_texts=null")  # the embedded tower spells most words of templates
    if preset.strategy.get("random_features"):
        overrides.append("strategy.random_features=50")
    if preset.online is None and preset.training.train_epochs > 1:
        overrides += OFFLINE
    if preset.scenario["name"] == "split" and preset.scenario["experiences"] > 2:
        overrides += SPLIT
    if preset.scenario.get("base_classes", 0) > 4:
        overrides.append("scenario.base_classes=4")
    if any(section.get("head") == "active" for section in preset.compare):
        overrides += SMALLER  # that head takes hundreds of noise images before the first step
    if preset.scenario["name"] == "si_blurry":
        overrides += ONLINE if preset.backbone["name"] in EMBEDDED else ONLINE + SMALLER
    if preset.online is not None and preset.compare:
        beside = preset.compare if name == BESIDE else []
        overrides.append(f"compare={json.dumps([narrow(section) for section in beside])}")
    return overrides


def steps(result: run.Result) -> list[dict[str, Any]]:
    """What the run of a strategy recorded of its training steps."""
    lines = (result.folder / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == "train"]


@pytest.mark.filterwarnings("ignore::clprompt.errors.DataWarning")
@pytest.mark.parametrize("name", of_presets())
def test_every_preset_runs_two_steps_an_experience(name, data, monkeypatch):
    monkeypatch.chdir(data)
    loaded = config.load(name, small(name))
    results = run.run(loaded)
    assert len(results) == 1 + len(loaded.compare)
    for (strategy, training), result in zip(loaded.strategies(), results, strict=True):
        trained = steps(result)
        assert trained
        assert all(math.isfinite(step["terms"]["loss"]) for step in trained)
        if loaded.online is None:
            assert training.train_epochs == (
                2 if registry.strategies.get(strategy["name"]).target.trains else 1
            )  # what trains nothing counts each image once
            assert set(Counter(step["experience"] for step in trained).values()) == {training.train_epochs}


@pytest.mark.filterwarnings("ignore::clprompt.errors.DataWarning")
def test_a_preset_runs_over_vit_b16_itself(data, monkeypatch):
    monkeypatch.chdir(data)
    changed = ["backbone.pretrained=false", "data.classes=[0, 1]", "scenario.experiences=1", *OFFLINE]
    quiet = ["device=cpu", "training.workers=0", "training.log_every=1"]
    loaded = config.load("multilane-split-cifar100", [*quiet, *changed])
    (result,) = run.run(loaded)
    assert result.folder.joinpath("results.json").is_file()
    assert [step["samples"] for step in steps(result)] == [2, 4]


def test_the_strategies_beside_mvp_are_the_same_on_all_its_streams():
    beside = config.load(BESIDE).compare
    for name in of_presets():
        if name.startswith("mvp-siblurry-"):
            assert [section["name"] for section in config.load(name).compare] == [
                section["name"] for section in beside
            ]
