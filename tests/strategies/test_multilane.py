"""The method against the golden file, and what its speed-ups must not change."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from golden_files import TOLERANCES, Golden
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from clprompt.backbones.attention import finish_attention, project_stream, residual_mlp, split_heads
from clprompt.backbones.vit import FrozenViT
from clprompt.prompting.losses import classification_loss
from clprompt.seeding import preserved_rng
from clprompt.strategies.multilane import MultiLaneModel
from clprompt.strategies.multilane.lanes import lane_groups, merge_tokens
from clprompt.testing.bench import tiny_vit
from clprompt.training import optim

TASK = 2
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "no_dandr": {"drop_and_replace": False},
    "tome": {"selectors": 0, "merge_to": 5},
    "qk_head": {"head": "task"},
    "no_norm": {"normalize": False},
    "temp2": {"temperature": 2.0},
    "all_layers": {"prompt_blocks": 4},
    "one_selector": {"selectors": 1},
}


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def golden(request):
    return Golden("multilane_forward", request.param)


@pytest.fixture
def exact():
    return Golden("multilane_forward", torch.float64)


def put(model: MultiLaneModel, golden, lane: int) -> None:
    """The golden tensors of one task into its lane."""
    values = {
        "prompts": torch.stack(
            [golden[f"method.prompts.{block}"][:, lane].flatten(-2) for block in range(model.sizes[2])]
        ),
        "head_weights": golden["method.head.weight"][model.classes_of(lane)],
        "head_biases": golden["method.head.bias"][model.classes_of(lane)],
    }
    if model.merge_to is None:
        values["selectors"] = golden["method.selectors"][lane, : model.sizes[0]]
    if model.by_key:
        values["keys"] = golden["method.keys"][lane]
    for name, value in values.items():
        getattr(model, name)[lane].data.copy_(value)


def make(golden, tasks: int = TASK + 1, *, fill: int | None = None, **arguments: Any) -> MultiLaneModel:
    """The model of the golden file after so many tasks have begun; ``fill`` lanes hold the golden tensors."""
    given = {"selectors": 3, "prompts": 2, "prompt_blocks": 2, **arguments}
    model = MultiLaneModel(golden.backbone(), **given)
    for lane in range(tasks):
        classes = golden["config.class_mask"][lane]
        model.begin_experience(classes.tolist())
        model.observe(classes)
        if fill is None or lane < fill:
            put(model, golden, lane)
    return model


def hot(golden, classes: Tensor) -> Tensor:
    """The multi-hot targets with the labels of all other classes hidden, [4, 10]."""
    return golden["input.multilabels"] * torch.zeros(10, dtype=torch.long).index_fill(0, classes, 1)


def seen_columns(model: MultiLaneModel) -> Tensor:
    return model.seen.nonzero().flatten()


def check_columns(golden, logits: Tensor, key: str, columns: Tensor) -> None:
    expected = golden[key].clone()
    rest = torch.ones(10, dtype=torch.bool).index_fill(0, columns, False)
    full = expected.clone()
    full[:, columns] = logits[:, columns].detach()
    rtol, atol, _ = TOLERANCES["multilane_forward"][golden.dtype]
    torch.testing.assert_close(full, expected, rtol=rtol, atol=atol, msg=lambda text: f"{key}: {text}")
    assert torch.isinf(logits[:, rest[: logits.shape[1]].nonzero().flatten()]).all()


def full_bce(golden, loss: Tensor, active: int) -> Tensor:
    """Our loss of hidden columns is zero, the file's the constant ln 2."""
    return loss + (1 - active / 10) * torch.log(torch.tensor(2.0, dtype=golden.dtype))


def check_gradients(golden, model: MultiLaneModel, prefix: str) -> None:
    expected: dict[str, Tensor] = {key.removeprefix(prefix): golden[key] for key in golden.keys(prefix)}
    classes = model.classes_of(TASK)
    found = {
        "head.weight": torch.zeros(10, 32, dtype=golden.dtype).index_copy(
            0, classes, model.head_weights[TASK].grad
        ),
        "head.bias": torch.zeros(10, dtype=golden.dtype).index_copy(0, classes, model.head_biases[TASK].grad),
    }
    for block in range(model.sizes[2]):
        slots = torch.zeros(2, 5, 2, 2, 16, dtype=golden.dtype)
        slots[:, TASK] = model.prompts[TASK].grad[block].unflatten(-1, (2, 16))
        found[f"prompts.{block}"] = slots
    if model.merge_to is None:
        found["selectors"] = torch.zeros(5, model.sizes[0], 32, dtype=golden.dtype)
        found["selectors"][TASK] = model.selectors[TASK].grad
    else:
        expected.pop("selectors")
    if model.by_key:
        found["keys"] = torch.zeros(5, 32, dtype=golden.dtype)
        found["keys"][TASK] = model.keys[TASK].grad
    assert found.keys() == expected.keys()
    for name in expected:
        golden.check(found[name], prefix + name)
    others = [n for n, p in model.named_parameters() if p.grad is not None and not n.endswith(f".{TASK}")]
    assert not others


@pytest.mark.parametrize("variant", VARIANTS)
def test_training_gives_the_golden_logits_losses_and_gradients(golden, variant):
    prefix = "expected." if variant == "default" else f"expected.variant.{variant}."
    images, labels = golden["input.images"], golden["input.labels"]
    for kind in ("ce", "bce"):
        model = make(golden, **VARIANTS[variant]).train()
        targets = labels if kind == "ce" else hot(golden, golden["config.class_mask"][TASK])
        step = model.training_loss(images, targets)
        check_columns(golden, step.logits, f"{prefix}train.logits", seen_columns(model))
        loss = step.loss if kind == "ce" else full_bce(golden, step.loss, 2)
        golden.check(loss, f"{prefix}train.loss_{kind}")
        if f"{prefix}grad_{kind}.head.bias" in golden:
            step.loss.backward()
            check_gradients(golden, model, f"{prefix}grad_{kind}.")
    if variant == "qk_head":
        golden.check(-step.terms["key_pull"], f"{prefix}train.sim")


@pytest.mark.parametrize("variant", VARIANTS)
def test_evaluation_gives_the_golden_logits_of_all_seen_lanes(golden, variant):
    prefix = "expected." if variant == "default" else f"expected.variant.{variant}."
    model = make(golden, **VARIANTS[variant]).eval()
    with torch.no_grad():
        logits = model(golden["input.images"])
    columns = seen_columns(model)
    expected = golden[f"{prefix}eval.logits"].clone()
    rtol, atol, _ = TOLERANCES["multilane_forward"][golden.dtype]
    torch.testing.assert_close(logits[:, columns], expected[:, columns], rtol=rtol, atol=atol)
    temperature = model.temperature
    golden.check(F.cross_entropy(logits / temperature, golden["input.labels"]), f"{prefix}eval.loss_ce")
    bce = classification_loss(logits / temperature, hot(golden, columns), model.seen)
    golden.check(full_bce(golden, bce, 6), f"{prefix}eval.loss_bce")


@pytest.mark.parametrize("chunk", [1, 2, 5])
def test_features_of_all_lanes_are_the_golden_ones_in_groups_of_any_size(golden, chunk):
    model = make(golden, lane_chunk=chunk).eval()
    groups = model._groups(range(3), len(golden["input.images"]))
    with torch.no_grad():
        features, _ = model._run(golden["input.images"], groups)
    lanes = {
        lane: f[:, place]
        for group, f in zip(groups, features, strict=True)
        for place, lane in enumerate(group)
    }
    golden.check(torch.stack([lanes[lane] for lane in range(3)], dim=1), "expected.eval.features")


def test_the_task_head_takes_the_lane_with_the_nearest_key(exact):
    model = make(exact, head="task").eval()
    _, frozen = model._run(exact["input.images"], [[0, 1, 2]])
    exact.check(frozen, "expected.eval.frozen_cls")
    similarity = F.normalize(frozen, dim=-1) @ F.normalize(torch.stack(list(model.keys)), dim=-1).T
    exact.check(similarity.argmax(1), "expected.variant.qk_head.eval.tasks")


def test_a_new_lane_starts_from_the_previous_one(exact):
    model = make(exact, fill=TASK)
    after = exact["expected.transfer.after.selectors"]
    torch.testing.assert_close(model.selectors[TASK].data, after[TASK], rtol=0, atol=0)
    for block in range(2):
        expected = exact[f"expected.transfer.after.prompts.{block}"][:, TASK].flatten(-2)
        torch.testing.assert_close(model.prompts[TASK].data[block], expected, rtol=0, atol=0)
    assert float(model.head_weights[TASK].detach().std()) == pytest.approx(0.02, rel=0.5)
    assert not model.head_biases[TASK].any()


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_three_steps_of_adam_follow_the_golden_ones(golden, decay):
    model = make(golden, fill=TASK).train()
    model.head_weights[TASK].data.copy_(golden["method.head.weight"][model.classes_of(TASK)])
    model.head_biases[TASK].data.copy_(golden["method.head.bias"][model.classes_of(TASK)])
    optimizer = optim.build(model, lr=0.02, weight_decay=decay)
    before = {name: value.clone() for name, value in model.method_state().items()}
    targets, losses = hot(golden, golden["config.class_mask"][TASK]), []
    for _ in range(3):
        optimizer.zero_grad()
        step = model.training_loss(golden["input.images"], targets)
        losses.append(full_bce(golden, step.loss, 2).detach())
        step.loss.backward()
        optimizer.step()
    moved = {n for n, value in model.method_state().items() if not torch.equal(value, before[n])}
    assert moved == {f"{name}.{TASK}" for name in ("selectors", "prompts", "head_weights", "head_biases")}
    if decay:
        return
    golden.check(torch.stack(losses), "expected.adam3.losses")
    if golden.dtype == torch.float64:  # Adam turns rounding noise of tiny gradients into steps
        classes = model.classes_of(TASK)
        pairs = {
            "selectors": (model.selectors[TASK], golden["expected.adam3.after.selectors"][TASK]),
            "weight": (model.head_weights[TASK], golden["expected.adam3.after.head.weight"][classes]),
            "bias": (model.head_biases[TASK], golden["expected.adam3.after.head.bias"][classes]),
        }
        for block in range(2):
            expected = golden[f"expected.adam3.after.prompts.{block}"][:, TASK].flatten(-2)
            pairs[f"prompts {block}"] = (model.prompts[TASK][block], expected)
        for name, (found, expected) in pairs.items():
            torch.testing.assert_close(
                found.detach(), expected, rtol=0, atol=1e-9, msg=lambda t, n=name: f"{n}: {t}"
            )


# -------------------------------------------------------------------------------------- the plain formulation


def plain_lane(model: MultiLaneModel, images: Tensor, lane: int) -> Tensor:
    """One lane as the method is described: selectors per image, summaries as tokens, all rows; [B, D]."""
    backbone, batch = model.backbone, len(images)
    cls = backbone.class_token.expand(batch, -1, -1)
    chosen = model.selectors[lane].expand(batch, -1, -1)  # (B, S, D)
    x = backbone.embed(images)
    for index, block in enumerate(backbone.blocks):
        normed, own = block.norm1(x), block.norm1(chosen)
        summary = (own @ normed.mT * backbone.width**-0.5).softmax(-1) @ normed
        tokens = torch.cat([block.norm1(cls), summary], dim=1)
        query, keys, values = project_stream(block.attn, tokens)
        if index < model.sizes[2]:
            raw = [split_heads(p.expand(batch, -1, -1), block.attn) for p in model.prompts[lane][index]]
            keys, values = torch.cat([raw[0], keys], dim=2), torch.cat([raw[1], values], dim=2)
        heads = (query @ keys.mT * query.shape[-1] ** -0.5).softmax(-1) @ values
        attended = finish_attention(block.attn, tokens, heads)
        together = residual_mlp(block, torch.cat([cls, chosen], 1), torch.cat([attended[:, :1], own], 1))
        cls, chosen = together[:, :1], together[:, 1:]
        x = block(x)
    features = backbone.final(cls[:, 0])
    return F.normalize(features, dim=-1)


def odd_vit(**arguments: Any) -> FrozenViT:
    """Another depth, width and patch than the golden file's."""
    with preserved_rng(3):
        vit = VisionTransformer(
            img_size=24, patch_size=6, embed_dim=24, depth=3, num_heads=3, num_classes=0, **arguments
        )
        for parameter in vit.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return FrozenViT(vit)


BACKBONES = {
    "another shape": {},
    "registers": {"reg_tokens": 3, "init_values": 0.5},
    "q/k norm": {"qk_norm": True},
    "average pooling": {"global_pool": "avg"},
    "registers without position": {"reg_tokens": 2, "no_embed_class": True},
}


@pytest.mark.parametrize("kind", BACKBONES)
def test_the_factored_form_equals_the_plain_one_with_its_gradients(kind):
    backbone = odd_vit(**BACKBONES[kind]).double()
    model = MultiLaneModel(backbone, selectors=4, prompts=3, prompt_blocks=2, init="uniform").train()
    model.begin_experience([0, 1])
    model.observe(torch.tensor([0, 1]))
    images = torch.randn(3, 3, 24, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ours, plain = model.encode(images)[0], plain_lane(model, images, 0)
    torch.testing.assert_close(ours, plain, rtol=0, atol=1e-12)
    parameters = [model.selectors[0], model.prompts[0]]
    weights = torch.randn(ours.shape, dtype=ours.dtype, generator=torch.Generator().manual_seed(1))
    for a, b in zip(
        torch.autograd.grad((ours * weights).sum(), parameters),
        torch.autograd.grad((plain * weights).sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)
        assert b.abs().max() > 1e-6
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(
            model._run(images, model._groups([0], len(images)))[0][0][:, 0], plain, rtol=0, atol=1e-12
        )


def test_token_merging_halves_until_few_enough_and_keeps_the_class_token():
    tokens = torch.randn(2, 197, 8, generator=torch.Generator().manual_seed(0))
    for most, left in ((197, 197), (196, 99), (99, 99), (98, 50), (30, 26)):
        merged = merge_tokens(tokens, most)
        assert merged.shape == (2, left, 8)
        assert torch.equal(merged[:, 0], tokens[:, 0])


# ---------------------------------------------------------------------------------- evaluation that remembers


@pytest.mark.parametrize(
    ("batch", "begins"),
    [(16, [0, 5, 10, 20, 30]), (17, [0, 5, 10, 15, 20, 25, 30])],
    ids=["80 rows", "more rows"],
)
def test_groups_of_lanes_are_twice_as_large_from_the_third_on_where_they_have_few_rows(batch, begins):
    groups = lane_groups(range(31), 31, 5, batch)
    assert [group[0] for group in groups] == begins
    assert {len(group) for group in groups[2:]} == {10 if batch == 16 else 5}
    assert lane_groups([3, 30], 31, 5, batch) == [groups[0], groups[-1]]


@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_kept_logits_of_old_lanes_have_the_bits_of_a_fresh_evaluation(exact, chunk):
    images = exact["input.images"].float()
    kept: dict[str, Tensor] = {}
    model = MultiLaneModel(
        Golden("multilane_forward", torch.float32).backbone(), prompt_blocks=2, lane_chunk=chunk
    )
    for lane in range(5):
        classes = exact["config.class_mask"][lane]
        model.begin_experience(classes.tolist())
        model.observe(classes)
        model.eval()
        with torch.no_grad():
            fresh = model(images)
            assert torch.equal(model(images, kept), fresh)
            assert torch.equal(model(images, dict(kept)), fresh)
        assert sorted(kept) == [f"lane{old}" for old in range(lane)]
    model.keep_logits = False
    nothing: dict[str, Tensor] = {}
    with torch.no_grad():
        model(images, nothing)
    assert not nothing


def test_kept_selectors_follow_the_parameters_and_are_not_used_in_training(exact):
    model = make(exact).eval()
    images = exact["input.images"]
    with torch.no_grad():
        before = model(images)
        streams = {group: stream[1] for group, stream in model._streams.items()}
        model(images)
        assert all(model._streams[group][1] is stream for group, stream in streams.items())
        model.selectors[TASK][:, 0] += 3.0  # a shift of all entries would be lost in the norm
        assert not torch.allclose(model(images), before)
    model.train()
    step = model.training_loss(images, exact["input.labels"])
    step.loss.backward()
    assert model.selectors[TASK].grad.abs().max() > 0


def test_only_the_newest_lane_is_trainable(exact):
    assert all(name.endswith(f".{TASK}") for name in make(exact).trainable())


def test_a_loaded_model_continues_with_the_newest_lane(exact):
    model = make(exact)
    other = MultiLaneModel(exact.backbone(), selectors=3, prompts=2, prompt_blocks=2)
    other.load_state_dict(model.method_state())
    assert other.trainable().keys() == model.trainable().keys()
    images = exact["input.images"]
    with torch.no_grad():
        assert torch.equal(other.eval()(images), model.eval()(images))


def test_initial_slabs_have_the_size_that_the_description_gives():
    model = MultiLaneModel(tiny_vit(), selectors=5, prompts=4, tasks=8)
    model.begin_experience([0])
    assert float(model.selectors[0].detach().norm()) == pytest.approx(1.0, abs=1e-5)
    sizes = model.prompts[0].detach().flatten(2).norm(dim=-1)  # (E, key/value)
    assert sizes.mean().item() == pytest.approx(8**-0.5, rel=0.1)


def test_each_image_is_explained_by_a_grid_of_what_the_selectors_look_at(exact):
    model = make(exact).eval()
    maps = model.selector_maps(exact["input.images"], range(3))
    assert maps.shape == (4, 3, 3, 4, 4)  # image, lane, selector, rows and columns of patches
    assert (maps >= 0).all()
    assert (maps.sum((-1, -2)) <= 1).all()
    figures = model.explain(exact["input.images"][:2])
    assert sorted(figures) == ["selectors_01", "selectors_02"]
    assert len(figures["selectors_01"].axes) == 3 * 4
