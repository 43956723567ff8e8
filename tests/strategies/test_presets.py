"""The packaged experiments on published data sets: complete, and each of them runs."""

from __future__ import annotations

import pytest

from clprompt import registry
from clprompt.experiment import config
from clprompt.system import overlay

METHODS = ("l2p", "dualprompt", "coda-prompt", "multilane", "vpt-deep", "linear-probe", "ncm")


@pytest.mark.parametrize("data", ["cifar100", "imagenet-r"])
@pytest.mark.parametrize("method", METHODS)
def test_every_baseline_has_a_preset_of_ten_experiences(method, data):
    loaded = config.load(f"{method}-split-{data}")
    assert loaded.strategy["name"].replace("_", "-") == method
    assert (
        loaded.data["name"] in {"cifar100": ["cifar100"], "imagenet-r": ["imagefolder", "imagenet_r"]}[data]
    )
    assert (loaded.scenario["name"], loaded.scenario["experiences"]) == ("split", 10)


def test_every_preset_begins_with_a_comment_that_summarises_it():
    summaries = dict(overlay.names())
    for method in METHODS:
        for data, title in (("cifar100", "CIFAR-100"), ("imagenet-r", "ImageNet-R")):
            assert title in summaries[f"{method}-split-{data}"]


def test_the_methods_of_the_presets_are_registered_with_their_papers():
    for method in METHODS:
        entry = registry.strategies.get(method)
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
