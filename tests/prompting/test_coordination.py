"""Coordination as a plug-in: what each token sees in methods that have prompt tokens, and who is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from drawing import same_picture
from small_methods import image_methods
from torch import Tensor

from clprompt import fit, load, registry
from clprompt.backbones.attention import BlockPrompt
from clprompt.backbones.vit import FrozenViT
from clprompt.cli.main import main
from clprompt.data.plan import Plan
from clprompt.errors import ConfigError
from clprompt.experiment import config
from clprompt.prompting.build import construct
from clprompt.prompting.coordination import Coordination
from clprompt.prompting.model import PromptModel
from clprompt.prompting.plugin import Pass
from clprompt.seeding import generator
from clprompt.strategies.coda_prompt import CODAPromptModel
from clprompt.strategies.dualprompt import DualPromptModel
from clprompt.strategies.l2p import L2PModel
from clprompt.strategies.mvp import MVPModel
from clprompt.strategies.tcpa import TCPAModel
from clprompt.strategies.vpt_deep import VPTDeepModel
from clprompt.testing.asserts import bits, changed
from clprompt.testing.bench import CLASSES, SIDE, ToyImages, Workbench, tiny_vit
from clprompt.training.settings import Training

METHODS = [VPTDeepModel, L2PModel, DualPromptModel, CODAPromptModel, MVPModel]
WITHOUT_TOKENS = [
    *("damvp", "flyprompt", "joint", "linear_probe", "multilane", "ncm", "prompt_cam", "ranpac", "ridge"),
    *("semantic_proxies", "slda", "tcpa"),
]


def images(count: int = 5) -> Tensor:
    return torch.randn(count, 3, SIDE, SIDE, generator=generator(0, "images"), dtype=torch.float64)


def build(
    kind: type[PromptModel], vit: FrozenViT | None = None, classes: tuple[int, ...] = (0, 1), **given: Any
) -> Any:
    model = construct(kind, vit or tiny_vit(), **given).double()
    if model.boundaries != "unused":
        model.begin_experience(classes)
    model.observe(torch.tensor(classes))
    return model.double().eval()


def watched(model: Any, found: list[tuple[int, BlockPrompt]]) -> None:
    """Keep what every block gets."""
    around = model.backbone.around

    def watching(prompts: Any, block: Any, rows: Any) -> Any:
        inner = around(prompts, block, rows)

        def call(index: int, x: Tensor) -> Any:
            given = inner(index, x)
            found.extend((index, prompt) for prompt in given)
            return given

        return call

    model.backbone.around = watching


@pytest.mark.parametrize("kind", METHODS)
def test_all_prompts_for_one_role_change_nothing(kind):
    plain = build(kind)
    model = build(kind, coordinate=True, coordinate_share=1.0)
    model.coordination.prefix = 0  # one role for all tokens
    assert torch.equal(model(images()), plain(images()))


@pytest.mark.parametrize("kind", METHODS)
def test_without_prefix_tokens_the_whole_share_is_the_method_itself(kind):
    given = {"query": "features"} if kind is MVPModel else {}
    given |= {"head_type": "gap"} if kind is L2PModel else {}
    name = "average pooling and q/k norm"
    plain = build(kind, tiny_vit(name), **given)
    model = build(kind, tiny_vit(name), coordinate=True, coordinate_share=1.0, **given)
    assert torch.equal(model(images()), plain(images()))


@pytest.mark.parametrize("kind", METHODS)
def test_coordination_changes_predictions_and_adds_a_term_to_the_loss(kind):
    plain, model = build(kind), build(kind, coordinate=True, coordinate_weight=0.5)
    assert not torch.allclose(model(images()), plain(images()))
    targets = torch.tensor([0, 1, 0, 1, 1])
    step = model.train().training_loss(images(), targets)
    assert "coordination" in step.terms
    torch.testing.assert_close(step.loss.detach(), torch.stack(list(step.terms.values())).sum())
    assert "coordination" not in plain.train().training_loss(images(), targets).terms
    model.eval()(images())
    assert model._collected is None  # nothing is collected outside a step


def test_vpt_deep_with_coordination_is_tcpa_on_the_same_prompts_and_keys():
    settings = {"pool_cls": 4, "pool_image": 4, "top_k_cls": 2, "top_k_image": 2, "random_epochs": 0}
    tcpa = build(TCPAModel, prompts="shared", **settings)
    model = build(VPTDeepModel, length=8, coordinate=True)
    with torch.no_grad():
        own = model.coordination.keys["prompts"][0]  # (blocks, 1, P, D)
        model.prompts.copy_(torch.cat([tcpa.entries[role][0][:, :, 0] for role in ("cls", "image")], dim=1))
        own[:, 0] = torch.cat([tcpa.keys[role][0] for role in ("cls", "image")], dim=1)
    targets = torch.tensor([0, 1, 0, 1, 1])
    torch.testing.assert_close(model(images()), tcpa(images()), rtol=0, atol=1e-12)
    ours, theirs = (m.train().training_loss(images(), targets) for m in (model, tcpa))
    torch.testing.assert_close(ours.loss, theirs.loss, rtol=0, atol=1e-12)
    torch.testing.assert_close(ours.terms["coordination"], theirs.terms["matching"], rtol=0, atol=1e-12)
    ours.loss.backward()
    theirs.loss.backward()
    for role, part in (("cls", slice(0, 4)), ("image", slice(4, 8))):
        entries, keys = tcpa.entries[role][0].grad[:, :, 0], tcpa.keys[role][0].grad
        torch.testing.assert_close(model.prompts.grad[:, part], entries, rtol=0, atol=1e-12)
        own = model.coordination.keys["prompts"][0].grad[:, 0, part]
        torch.testing.assert_close(own, keys, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", [VPTDeepModel, DualPromptModel, CODAPromptModel, MVPModel])
def test_each_token_sees_its_share_of_its_roles_prompts_and_no_others(kind):
    model, found = build(kind, coordinate=True, coordinate_share=0.3), []
    watched(model, found)
    model(images())
    assert found
    for block in {index for index, _ in found}:
        last = block == model.backbone.depth - 1
        for prompt in (prompt for index, prompt in found if index == block):
            columns = prompt.tokens.shape[1]
            assert prompt.mask.shape[2:] == (1 if last else model.backbone.num_tokens, columns)
            if last:  # only the head's rows, and their prompts
                assert prompt.rows == slice(0, 1)
                assert bool((prompt.mask.sum(-1) == -(-3 * columns // 10)).all())
                continue
            assert prompt.rows is None
            first = -(-columns // 2)
            for rows, theirs in ((slice(0, 1), slice(0, first)), (slice(1, None), slice(first, columns))):
                seen = prompt.mask[:, 0, rows]
                count = theirs.stop - theirs.start
                assert bool((seen[..., theirs].sum(-1) == -(-3 * count // 10)).all())
                assert torch.equal(seen.sum(-1), seen[..., theirs].sum(-1))


def test_prompts_in_the_sequence_see_their_role():
    model, found = build(L2PModel, length=3, top_k=3, coordinate=True), []
    watched(model, found)
    model(images())
    masks = [prompt.mask for _, prompt in found]
    assert len(masks) == model.backbone.depth
    assert all(torch.equal(mask, masks[0]) for mask in masks)
    mask, tokens = masks[0][:, 0], model.backbone.num_tokens
    assert mask.shape == (5, tokens + 9, 9)
    classes, patches = mask[:, :1], mask[:, 1:tokens]
    assert bool((classes.sum(-1) == 3).all())  # 3 of the first 5
    assert not classes[..., 5:].any()
    assert bool((patches.sum(-1) == 2).all())  # 2 of the other 4
    assert not patches[..., :5].any()
    own = torch.block_diag(torch.ones(5, 5), torch.ones(4, 4)).bool()
    assert torch.equal(mask[:, tokens:], own.expand(5, -1, -1))


def test_keys_of_slots_that_no_image_took_learn_nothing():
    model = build(L2PModel, pool_size=8, top_k=1, length=4, coordinate=True, coordinate_weight=1.0).train()
    model.training_loss(images(2), torch.tensor([0, 1])).loss.backward()
    moved = model.coordination.keys["prompts"][0].grad[0].abs().sum((1, 2)) > 0
    assert torch.equal(moved, model.selections > 0)
    assert not moved.all()


def test_keys_grow_and_freeze_with_the_prompts_that_they_belong_to():
    model = build(DualPromptModel, freeze_general_after=1, coordinate=True)
    keys = model.coordination.keys
    model.begin_experience((2, 3))
    model.double()
    model.observe(torch.tensor([2, 3]))
    assert [key.requires_grad for key in keys["expert"]] == [False, True]
    assert [key.requires_grad for key in keys["general"]] == [False]
    names = {name for name in model.trainable() if name.startswith("coordination")}
    assert names == {"coordination.keys.expert.1"}
    other = construct(DualPromptModel, tiny_vit(), freeze_general_after=1, coordinate=True).double()
    other.load_state_dict(model.method_state())
    assert set(other.trainable()) == set(model.trainable())
    assert torch.equal(other.eval()(images()), model.eval()(images()))


def test_choices_are_made_in_float32_under_autocast():
    model, found = VPTDeepModel(tiny_vit()).plug(Coordination()).eval(), []
    watched(model, found)
    with torch.no_grad():
        model(images().float())
        full = [prompt.mask for _, prompt in found]
        found.clear()
        with torch.autocast("cpu", torch.bfloat16):
            model(images().float())
    same = [(a == b).float().mean() for a, (_, b) in zip(full, ((i, p.mask) for i, p in found), strict=True)]
    assert min(same) >= 0.97


def test_a_vision_transformer_serves_several_methods_of_which_one_is_coordinated():
    vit = tiny_vit().double()
    plain = build(VPTDeepModel, vit)
    before = plain(images())
    model = build(VPTDeepModel, vit, coordinate=True)
    model(images())
    assert torch.equal(plain(images()), before)
    assert model.backbone.vit is vit.vit
    assert vit.around is None


def test_the_strategies_of_avalanche_take_the_argument_and_a_fit_trains_the_keys():
    from clprompt.strategies import L2P

    strategy = L2P(backbone=tiny_vit(), coordinate=True, coordinate_share=0.4, evaluator=None)
    assert strategy.model.coordination.share == 0.4
    model = L2PModel(tiny_vit(), length=2).plug(Coordination())
    before = model.coordination.keys["prompts"][0].clone()
    train = ToyImages(8)
    plan = Plan((train.groups()[0],), (CLASSES[0],), 11)
    fit(model, plan, train, training=Training(train_mb_size=8))
    assert not torch.equal(model.coordination.keys["prompts"][0], before)


# ------------------------------------------------------------------------------------------------ mistakes


@pytest.mark.parametrize("name", WITHOUT_TOKENS)
def test_methods_without_prompt_tokens_of_their_own_are_refused_in_one_line(name):
    with pytest.raises(ConfigError, match="no prompt tokens") as caught:
        config.named({"name": name, "coordinate": True}, "strategy")
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="no prompt tokens"):
        construct(registry.strategies.get(name).target, tiny_vit(), coordinate=True)


def test_every_other_method_has_the_key():
    names = [name for name in image_methods() if name not in WITHOUT_TOKENS]
    found = [config.named({"name": name, "coordinate": True}, "strategy") for name in names]
    assert all(section["coordinate"] is True and section["coordinate_share"] == 0.5 for section in found)
    assert {registry.strategies.get(name).target for name in names} == set(METHODS)
    with pytest.raises(ConfigError, match='did you mean "coordinate"'):
        config.named({"name": names[0], "cordinate": True}, "strategy")
    with pytest.raises(ConfigError, match="coordinate must be bool"):
        config.named({"name": names[0], "coordinate": "yes please"}, "strategy")


@pytest.mark.parametrize(
    ("kind", "arguments", "text"),
    [
        (VPTDeepModel, {"length": 1}, "at least 2 prompt tokens"),
        (VPTDeepModel, {"layers": ()}, "no prompt tokens"),
        (L2PModel, {"length": 1, "top_k": 1}, "at least 2 prompt tokens"),
        (DualPromptModel, {"g_length": 1}, "general has 1"),
        (CODAPromptModel, {"length": 2}, "at least 2 prompt tokens"),
        (MVPModel, {"e_length": 1}, "expert has 1"),
        (VPTDeepModel, {"coordinate_weight": -0.1}, "coordinate_weight must be at least 0, got -0.1"),
        (VPTDeepModel, {"coordinate_share": 0.0}, "coordinate_share must be above 0"),
        (VPTDeepModel, {"coordinate_share": 1.5}, "coordinate_share must be above 0"),
    ],
)
def test_what_cannot_be_coordinated_is_refused_in_one_line(kind, arguments, text):
    with pytest.raises(ConfigError, match=text) as caught:
        construct(kind, tiny_vit(), coordinate=True, **arguments)
    assert "\n" not in str(caught.value)


def test_a_single_prompt_token_is_no_mistake_without_coordination():
    assert not construct(VPTDeepModel, tiny_vit(), length=1, coordinate=False).plugins


def test_prompts_that_the_sets_do_not_name_are_an_error_of_the_method():
    own = VPTDeepModel(tiny_vit(), layers=(0,), length=4).plug(Coordination()).coordination
    x, prompt = torch.randn(2, 17, 32), BlockPrompt("fresh", torch.zeros(1, 4, 32))
    assert own.around(lambda block, x: prompt, Pass())(0, x)[0].mask.shape == (2, 1, 17, 4)
    for wrong, text in (
        (replace(prompt, name="others"), "prompt_sets says nothing"),
        (replace(prompt, tokens=torch.zeros(1, 3, 32)), "3 prompt tokens"),
        (replace(prompt, rows=slice(0, 1)), "who sees it"),
    ):
        with pytest.raises(ValueError, match=text):
            own.around(lambda block, x, wrong=wrong: wrong, Pass())(0, x)
    with pytest.raises(ValueError, match="prompt_sets says nothing"):
        own.around(lambda block, x: prompt, Pass())(1, x)


def test_the_workbench_sees_coordinated_models():
    assert isinstance(Workbench(VPTDeepModel, coordinate=True).make().coordination, Coordination)


def test_a_coordinated_run_is_resumed_and_loaded_from_its_folder(tmp_path):
    words = ["strategy=l2p", "compare=[]", "strategy.coordinate=true", "training.train_epochs=1"]
    words += ["scenario.experiences=2", "data.test_fraction=0.6", f"runs_dir={tmp_path}"]
    with same_picture():
        assert main(["run", "quickstart", *words]) == 0
    (folder,) = (tmp_path / "quickstart").iterdir()
    assert config.load(folder / "config.yaml").strategy["coordinate"] is True
    whole = load(folder)
    assert isinstance(whole.coordination, Coordination)
    (folder / "results.json").unlink()  # as if it had been killed before the end
    (folder / "model.json").unlink()
    with same_picture():
        assert main(["resume", str(folder)]) == 0
    again = load(folder)
    assert not changed(bits(whole), bits(again))
    inputs = torch.randn(3, 3, *whole.backbone.image_size)[:, : whole.backbone.in_chans]
    with torch.no_grad():
        assert torch.equal(whole(inputs), again(inputs))
