"""TCPA beyond the golden file: isolation of prompts, growth, the random warm-up, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from clprompt.backbones.attention import BlockPrompt
from clprompt.backbones.vit import FrozenViT
from clprompt.errors import ConfigError, ProtocolError
from clprompt.prompting.model import evaluating
from clprompt.seeding import generator, preserved_rng
from clprompt.strategies.tcpa import TCPAModel
from clprompt.strategies.tcpa import model as tcpa
from clprompt.training.engine import Engine
from clprompt.training.settings import Online


def backbone(**arguments: Any) -> FrozenViT:
    settings: dict[str, Any] = {
        "img_size": 16,
        "patch_size": 4,
        "in_chans": 1,
        "embed_dim": 16,
        "depth": 3,
        "num_heads": 2,
        "num_classes": 0,
        **arguments,
    }
    with preserved_rng(1):
        vit = VisionTransformer(**settings)
        for parameter in vit.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return FrozenViT(vit).double()


def images(count: int = 6, seed: int = 0) -> Tensor:
    return torch.randn(count, 1, 16, 16, generator=generator(seed, "images"), dtype=torch.float64)


def build(vit: FrozenViT | None = None, **arguments: Any) -> TCPAModel:
    small = {"pool_cls": 4, "pool_image": 4, "top_k_cls": 2, "top_k_image": 2, "random_epochs": 0}
    model = TCPAModel(vit or backbone(), **{**small, **arguments}).double()
    if model.boundaries == "required":
        model.begin_experience([0, 1])
    model.observe(torch.tensor([0, 1]))
    return model.double().eval()


def stir(prompts: Tensor, which: Tensor) -> None:
    """Replace prompts [blocks, entries, length, D] by large noise where ``which`` [blocks, entries] says."""
    noise = torch.randn(prompts.shape, generator=generator(5, "noise"), dtype=prompts.dtype)
    with torch.no_grad():
        prompts[which] = 1e3 * noise[which]


def test_a_prompt_that_no_token_chose_is_inert_before_the_softmax_and_not_after():
    for mask, inert in (("before", True), ("after", False)):
        model = build(mask_position=mask, pool_image=16, top_k_image=1)
        idle = ~model.choices(images(1))["image"].any(2).any(1)  # (blocks, entries)
        assert idle.any()
        before = model(images(1))
        stir(model.entries["image"][0], idle)
        assert torch.equal(model(images(1)), before) is inert


def test_image_prompts_of_the_last_block_reach_no_logit_and_class_prompts_do():
    for role, reaches in (("image", False), ("cls", True)):
        model = build(token_matching=False)
        before = model(images())
        last = torch.zeros(3, 4, dtype=torch.bool)
        last[-1] = True
        stir(model.entries[role][0], last)
        assert torch.equal(model(images()), before) is not reaches


def test_choosing_the_whole_pool_equals_roles_without_keys():
    whole, roles = build(top_k_cls=4, top_k_image=4), build(token_matching=False)
    torch.testing.assert_close(whole(images()), roles(images()), rtol=0, atol=1e-12)


def test_entries_in_another_order_with_their_keys_change_nothing():
    model = build()
    before = model(images())
    order = torch.tensor([2, 0, 3, 1])
    with torch.no_grad():
        for role in ("cls", "image"):
            model.keys[role][0].copy_(model.keys[role][0][:, order])
            model.entries[role][0].copy_(model.entries[role][0][:, order])
    torch.testing.assert_close(model(images()), before, rtol=0, atol=1e-12)


def test_keys_learn_from_the_matching_loss_alone():
    for weight in (0.0, 0.5):
        model = build(matching_weight=weight).train()
        model.training_loss(images(), torch.tensor([0, 1] * 3)).loss.backward()
        moved = [bool(part.grad.abs().sum() > 0) for role in ("cls", "image") for part in model.keys[role]]
        assert all(moved) is (weight > 0)
        assert any(moved) is (weight > 0)


def test_every_row_sees_exactly_the_tokens_of_its_entries():
    model = build(top_k_cls=3, length_image=3)
    chosen = model.choices(images())
    assert bool((chosen["cls"].sum(-1) == 3).all())
    assert bool((chosen["image"].sum(-1) == 2).all())


def trained_on_a_second_task(model):
    """Its old keys and entries by name, as they were before three steps on new classes under weight decay."""
    parts = [f"{kind}.{role}" for kind in ("keys", "entries") for role in ("cls", "image")]
    old = {f"{part}.0": dict(model.named_parameters())[f"{part}.0"].clone() for part in parts}
    model.begin_experience([2, 3])
    model.double()
    model.observe(torch.tensor([2, 3]))
    assert set(model.trainable()) == {f"{part}.1" for part in parts} | {"head.weight", "head.bias"}
    optimizer = torch.optim.AdamW(model.trainable().values(), lr=0.05, weight_decay=0.5)
    model.train()
    for _ in range(3):
        optimizer.zero_grad()
        model.training_loss(images(seed=1), torch.tensor([2, 3] * 3)).loss.backward()
        optimizer.step()
    return old


WIDE = {"pool_cls": 16, "pool_image": 16, "top_k_cls": 1, "top_k_image": 1}


def test_growth_leaves_old_entries_alone_under_weight_decay():
    model = build(**WIDE)
    old = trained_on_a_second_task(model)
    parameters = dict(model.named_parameters())
    assert all(torch.equal(parameters[name], value) for name, value in old.items())


def test_growth_leaves_features_alone_where_no_token_switched():
    model = build(**WIDE)
    before, chosen = model.encode(images())[0], model.choices(images())
    trained_on_a_second_task(model)
    with torch.no_grad():
        for role in ("cls", "image"):
            model.keys[role][1].zero_()  # similarity 0: among sixteen old keys every token has a nearer one
    model.eval()
    now = model.choices(images())
    assert all(torch.equal(now[role][..., :16], chosen[role]) for role in chosen)
    torch.testing.assert_close(model.encode(images())[0], before, rtol=0, atol=1e-12)


def test_the_warm_up_draws_new_entries_in_training_only():
    model = build(random_epochs=1)
    model.begin_experience([2, 3])
    model.double()
    model.observe(torch.tensor([2, 3]))
    model.begin_epoch(0)
    seen: list[Tensor] = []  # by block and role, boolean [B, 1, R, 8 columns]

    def recording(prompts: Any, block: int | None, rows: slice | None) -> Any:
        def asked(index: int, x: Tensor) -> list[BlockPrompt]:
            given = prompts(index, x)
            for prompt in given:  # one of both roles, or one for each
                seen.extend([prompt.mask] if prompt.rows else prompt.mask.split(8, dim=-1))
            return given

        return asked

    model.backbone = model.backbone.with_prompts_through(recording)
    losses, begun = [], {k: v.clone() for k, v in model.method_state().items()}
    for _ in range(2):
        model.train()
        model.load_state_dict(begun)
        losses.append(model.training_loss(images(), torch.tensor([2, 3] * 3)).loss)
    assert torch.equal(losses[0], losses[1])
    assert seen
    assert not any(bool(visible[..., :4].any()) for visible in seen)
    assert all(bool((visible.sum(-1) == 2).all()) for visible in seen)
    seen.clear()
    model.eval()(images())
    assert any(bool(visible[..., :4].any()) for visible in seen)  # evaluation ranks all entries
    seen.clear()
    model.train()
    model.begin_epoch(1)
    model.training_loss(images(), torch.tensor([2, 3] * 3))
    assert any(bool(visible[..., :4].any()) for visible in seen)


def test_selecting_within_the_task_trains_new_entries_only():
    model = build(select="task")
    model.begin_experience([2, 3])
    model.double()
    model.observe(torch.tensor([2, 3]))
    model.train()
    for role in ("cls", "image"):
        visible, _ = model._match(role, 0, model.backbone.embed(images())[:, model.roles[role].rows])
        assert not visible[..., :4].any()


def begun(model: TCPAModel, *classes: int) -> TCPAModel:
    """The model in an experience of these classes."""
    model.end_experience()
    model.begin_experience(classes)
    model.double().observe(torch.tensor(classes))
    return model


def test_training_within_the_task_costs_the_same_columns_in_every_experience():
    for length in (1, 2):
        model = begun(build(select="task", length_image=length), 2, 3).train()
        given = model._prompts(6, [])(0, model.backbone.embed(images()))
        assert sum(prompt.tokens.shape[1] for prompt in given) == 4 + 4 * length
        given = model.eval()._prompts(6, [])(0, model.backbone.embed(images()))
        assert sum(prompt.tokens.shape[1] for prompt in given) == 2 * (4 + 4 * length)


def test_both_roles_side_by_side_give_what_each_gives_apart(monkeypatch):
    for arguments in ({}, {"length_image": 3, "top_k_image": 1, "detach_query": True}):
        model = begun(build(**arguments), 2, 3).train()
        targets, found = torch.tensor([2, 3] * 3), []
        for limit in (10**6, 0):
            monkeypatch.setattr(tcpa, "SIDE_BY_SIDE", limit)
            model.zero_grad()
            step = model.training_loss(images(), targets)
            step.loss.backward()
            found.append([step.logits, *step.terms.values(), *(p.grad for p in model.trainable().values())])
        for together, apart in zip(*found, strict=True):
            torch.testing.assert_close(together, apart, rtol=0, atol=1e-12)


def test_growing_ends_where_a_pool_would_hold_more_and_the_head_learns_on():
    model = begun(build(max_entries=11, random_epochs=1, select="task"), 2, 3)
    assert len(model.entries["image"]) == 2
    begun(model, 4, 5).train()
    model.begin_epoch(0)
    assert set(model.trainable()) == {"head.weight", "head.bias"}
    # as in evaluation: tokens choose among all entries, neither at random nor among the newest
    given = model._prompts(6, [])(0, model.backbone.embed(images()))
    assert all(torch.equal(a.mask, b.mask) for a, b in zip(given, unmoved(model), strict=True))
    other = TCPAModel(backbone(), pool_cls=4, pool_image=4, top_k_cls=2, top_k_image=2, max_entries=11)
    other.double().load_state_dict(model.method_state())
    assert torch.equal(other.eval()(images()), model.eval()(images()))


def unmoved(model: TCPAModel) -> list[BlockPrompt]:
    """What block 0 gets in evaluation."""
    with evaluating(model):
        return model._prompts(6, [])(0, model.backbone.embed(images()))


def test_prompts_of_the_first_experience_are_frozen_after_it():
    model = build(prompts="first")
    assert any(name.startswith("entries") for name in model.trainable())
    model.begin_experience([2, 3])
    assert set(model.trainable()) == {"head.weight", "head.bias"}


def test_shared_prompts_need_no_boundaries_and_growing_ones_do():
    assert build(prompts="shared", mask="seen").boundaries == "optional"
    assert TCPAModel(backbone(), boundary_free=True, pool_image=4, top_k_image=2).boundaries == "unused"
    with pytest.raises(ProtocolError, match="boundaries"):
        Engine(TCPAModel(backbone()), [], [], [], online=Online())


def test_dropout_is_reproducible():
    model = build(prompt_dropout=0.5).train()
    first = model.encode(images())[0]
    assert torch.equal(first, model.encode(images())[0])


def test_dropout_is_per_sample():
    model = build(prompt_dropout=0.5).train()
    twice = model.encode(images(1).expand(2, -1, -1, -1))[0]
    assert not torch.allclose(twice[0], twice[1])


@pytest.mark.parametrize(
    "kind",
    [
        {"class_token": False, "global_pool": "avg"},
        {"reg_tokens": 3, "init_values": 0.1},
        {"qk_norm": True, "global_pool": "avg"},
        {"num_heads": 1},
    ],
    ids=["no class token", "registers", "average pooling", "one head"],
)
@pytest.mark.parametrize("mask", ["before", "after"])
def test_any_plain_vit_is_coordinated(kind, mask):
    vit = backbone(**kind)
    model = build(vit, mask_position=mask, pool_cls=4 if vit.num_prefix_tokens else 0)
    together = model(images())
    alone = torch.cat([model(image[None]) for image in images()])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-10)
    assert model.train().training_loss(images(), torch.tensor([0, 1] * 3)).loss.isfinite()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"top_k_cls": 0}, "top_k_cls must be 1..4"),
        ({"top_k_image": 5}, "top_k_image must be 1..4"),
        ({"pool_image": -1}, "pool_image must be at least 0, got -1"),
        ({"length_cls": 0}, "length_cls must be at least 1"),
        ({"pool_cls": 0, "pool_image": 0}, "both 0"),
        ({"layers": (0, 3)}, "block 3"),
        ({"layers": (1, 1)}, "twice"),
        ({"matching_weight": -1.0}, "matching_weight"),
        ({"prompt_dropout": 1.0}, "prompt_dropout"),
        ({"random_epochs": -1}, "random_epochs"),
        ({"max_entries": 3}, r"max_entries must be at least 4 \(pool_cls\), got 3"),
        ({"max_entries": 4, "prompts": "shared"}, 'max_entries=4 needs prompts="grow", got "shared"'),
        ({"mask_position": "between"}, 'mask_position must be one of "before", "after"'),
        (
            {"mask": "after"},
            'mask must be one of .*, got "after"; the former mask is now called mask_position',
        ),
        ({"loss_mask": "seen"}, "^loss_mask is now called mask$"),
        ({"prompts": "none"}, "prompts must be one of"),
        ({"select": "some"}, "select must be one of"),
        ({"fourier": "split"}, "fourier must be one of"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_mistakes_are_one_line(arguments, text):
    with pytest.raises(ConfigError, match=text) as caught:
        build(**arguments)
    assert "\n" not in str(caught.value)


def test_a_class_role_without_prefix_tokens_is_refused():
    with pytest.raises(ConfigError, match="no class token"):
        build(backbone(class_token=False, global_pool="avg"))


def test_the_picture_shows_every_image_and_block():
    figure = build().explain(images(2))["coordination"]
    # the image, patches and class token in 3 blocks; the legend
    assert len(figure.axes) == 2 * (1 + 3 + 3) + 1
    assert not build(token_matching=False).explain(images(2))  # nothing is chosen
    assert build(pool_cls=0).explain(images(2))
    assert build(pool_image=0).explain(images(2))


def grown(**arguments: Any) -> tuple[TCPAModel, dict[str, Tensor]]:
    """A model after a second task with trained entries, and the choices after the first."""
    model = build(**arguments)
    before = model.choices(images())
    model.begin_experience([2, 3])
    model.double()
    model.observe(torch.tensor([2, 3]))
    optimizer = torch.optim.Adam(model.trainable().values(), lr=0.1)
    model.train()
    for _ in range(2):
        optimizer.zero_grad()
        model.training_loss(images(seed=1), torch.tensor([2, 3] * 3)).loss.backward()
        optimizer.step()
    return model.eval(), before


@pytest.mark.parametrize(
    "arguments", [{}, {"mask_position": "after", "fourier": "joint"}], ids=["before", "after"]
)
def test_without_later_entries_a_grown_model_is_what_it_was(arguments):
    model, before = grown(**arguments)
    again = model.choices(images(), tasks=1)
    assert all(torch.equal(again[role], before[role]) for role in before)
    assert model.choices(images())["image"].shape[-1] == 8


class Shown:
    """Evaluation images by class group, as the loop shows them."""

    def __init__(self, parts: list[Tensor]) -> None:
        self.parts = parts

    def __call__(self) -> list[Tensor]:
        return self.parts

    def groups(self, count: int) -> list[Tensor]:
        return [part[:count] for part in self.parts]


def switched_share(model: TCPAModel, before: dict[str, Tensor]) -> float:
    """The share of the images' tokens whose choices are others than before."""
    now = model.choices(images())
    moved = [
        (now[role] != torch.nn.functional.pad(before[role], (0, 4))).any(-1).flatten() for role in before
    ]
    return float(torch.cat(moved).double().mean())


def test_interference_counts_the_tokens_that_switched():
    model, before = grown()
    share = switched_share(model, before)
    assert 0 < share < 1
    assert model.interference([images(), images(2, seed=2)]) == {0: [0.0, pytest.approx(share)]}


def test_a_probe_shows_the_tokens_that_switched():
    model, before = grown()
    shown = model.probe(Shown([images(), images(2, seed=2)]))
    assert shown["interference/switched"] == pytest.approx(switched_share(model, before))
    assert {"coordination", "interference", "interference/group_01"} <= shown.keys()
    assert shown["coordination"]().axes
    (curve,) = shown["interference"]().axes[0].lines
    assert curve.get_ydata()[-1] == pytest.approx(100 * shown["interference/group_01"])


def test_interference_is_counted_once_and_as_if_nothing_was_kept():
    model, _ = grown()
    shown = [images(2, seed=seed) for seed in range(4)]
    begun(model, 4, 5).end_experience()
    model.interference(shown)
    begun(model, 6, 7)
    with torch.no_grad():  # an experience in training
        model.keys["image"][3].normal_(generator=generator(9, "keys"))
    model.interference(shown)
    with torch.no_grad():
        model.keys["image"][3].normal_(generator=generator(10, "keys"))
    kept = model.interference(shown)
    last = model.interference(shown, last_only=True)
    assert last == {group: shares[-1:] for group, shares in kept.items()}
    model._known_moves.clear()
    assert last == model.interference(shown, last_only=True)
    assert kept == model.interference(shown)
    model.end_experience()
    model.interference(shown)
    calls: list[int] = []
    choices = model.choices
    model.choices = lambda images, tasks: calls.append(tasks) or choices(images, tasks)  # type: ignore
    assert model.interference(shown) == kept
    assert not calls
    assert model.interference([images(2, seed=9), *shown[1:]]) != kept  # other images
    assert calls == [1, 2, 3, 4]


def test_counting_interference_changes_no_state():
    model, _ = grown()
    state = {name: value.clone() for name, value in model.method_state().items()}
    model.interference([images(), images(2, seed=2)])
    model.probe(Shown([images(), images(2, seed=2)]))
    assert all(torch.equal(state[name], value) for name, value in model.method_state().items())


def test_shared_prompts_show_no_interference():
    assert "interference" not in build(prompts="shared").probe(Shown([images()]))


def test_a_probe_without_images_shows_nothing():
    model, _ = grown()
    assert model.probe(Shown([])) == {}


def test_the_pixel_prompt_of_the_docs_changes_nothing_at_zero_and_learns():
    path = Path(__file__).parents[2] / "docs" / "tcpa.md"
    if not path.exists():
        pytest.skip("the documentation is not at hand")
    snippet = next(part for part in path.read_text().split("```python\n") if "FramedTCPA" in part)
    found: dict[str, Any] = {}
    exec(snippet.split("```")[0], found)
    plain = build()
    model = found["FramedTCPA"](
        backbone(), pad=2, pool_cls=4, pool_image=4, top_k_cls=2, top_k_image=2
    ).double()
    model.begin_experience([0, 1])
    model.observe(torch.tensor([0, 1]))
    model = model.double().eval()
    assert torch.equal(model(images()).detach(), plain(images()).detach())
    model.train().training_loss(images(), torch.arange(6) % 2).loss.backward()
    assert model.frame.grad.abs().min() > 0
