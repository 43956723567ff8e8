"""CODA-Prompt against the reference implementation's outputs, and what its definition promises."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clprompt.errors import ConfigError, ProtocolError
from clprompt.strategies.coda_prompt import CODAPromptModel, component_weights, orthogonal_rows, penalty
from clprompt.training import optim

NAMES = {"K": "keys", "A": "attention", "P": "components"}
SMALL = {"length": 4, "components_per_experience": 2}


def rows(base, name: str, run: str) -> Tensor:
    """The golden rows that take part in a run, [5, M, ...]."""
    value = base[f"coda.{name}"]
    if run.startswith("online"):
        return torch.cat([value[:, :6], base[f"coda.online.rows_6_to_9.{name}"]], dim=1)
    if run == "expand.eval":
        return base[f"coda.expand.after.{name}"][:, :8]
    if run == "expand_uniform.eval":
        return torch.cat([value[:, :6], base[f"coda.expand_uniform.new_rows.{name}"]], dim=1)
    return value[:, :6]


def golden_model(base, run: str = "train", **arguments) -> CODAPromptModel:
    online = run.startswith("online")
    arguments = {**SMALL, **base.arguments(run), **({"pool_size": 10} if online else {}), **arguments}
    model = CODAPromptModel(base.backbone(), **arguments)
    tensors = {
        f"{own}.{index}": part
        for name, own in NAMES.items()
        for index, part in enumerate(rows(base, name, run).split(10 if online else 2, dim=1))
    }
    return base.put(model, tensors)


def gradient(parameters) -> Tensor:
    """The gradients of all components, [5, 10, ...]; zeros for frozen ones and those still to come."""
    joined = torch.cat([torch.zeros_like(p) if p.grad is None else p.grad for p in parameters], dim=1)
    missing = joined.new_zeros(joined.shape[0], 10 - joined.shape[1], *joined.shape[2:])
    return torch.cat([joined, missing], dim=1)


def components_of(model: CODAPromptModel) -> dict[str, Tensor]:
    return {own: torch.cat(list(getattr(model, own)), dim=1) for own in NAMES.values()}


@pytest.mark.parametrize("run", ["train", "online_seen"])
def test_logits_losses_and_gradients_are_the_references(baselines, gradients, run):
    model = golden_model(baselines, run)
    images, labels = baselines.batch(run)
    own = {n: (lambda own=own: gradient(getattr(model, own))) for n, own in NAMES.items()}
    step = baselines.check_step(model, run, f"coda.{run}.", gradients(model, **own))
    assert list(step.terms) == ["cross_entropy"]
    parts = components_of(model)
    query = model.backbone.features(images)
    baselines.check(component_weights(query, parts["attention"], parts["keys"]), f"coda.{run}.alpha")

    terms = [[penalty(parts[NAMES[n]][layer].flatten(1)).item() for n in "KAP"] for layer in range(5)]
    baselines.check(torch.tensor(terms).to(baselines.dtype), f"coda.{run}.ortho_terms", scaled=1e-5)
    model.orthogonality = float(baselines["coda.ortho_mu"])
    model.zero_grad()
    step = model.training_loss(images, labels)
    baselines.check(step.terms["orthogonality"], f"coda.{run}.ortho_loss", scaled=1e-5)
    baselines.check(step.loss, f"coda.{run}.loss_ortho", scaled=1e-5)
    step.loss.backward()
    baselines.check_gradients(f"coda.{run}.grad_ortho.", gradients(model, **own))


@pytest.mark.parametrize("run", ["eval", "expand.eval", "expand_uniform.eval"])
def test_all_components_so_far_take_part_in_a_prediction(baselines, run):
    model = golden_model(baselines, run).eval()
    feature, terms, _ = model.encode(baselines["eval_images"])
    assert not terms
    baselines.check(feature, f"coda.{run}.feature")
    baselines.check(model.logits(feature), f"coda.{run}.logits")
    if run == "eval":
        baselines.check(model(baselines["eval_images"]), "coda.eval.logits_masked")


def test_gram_schmidt_gives_the_references_rows(baselines):
    for name in "KAP":
        noise = baselines[f"coda.init.noise.{name}"].flatten(1)
        after = baselines[f"coda.init.after.{name}"].flatten(1)
        found = orthogonal_rows(noise[:0], noise)
        torch.testing.assert_close(found, after[:2], rtol=1e-4, atol=1e-6)
        for layer in range(5):
            old = baselines[f"coda.{name}"][layer, :6].flatten(1)
            found = orthogonal_rows(old, baselines[f"coda.expand.noise.{name}"][layer].flatten(1))
            expected = baselines[f"coda.expand.after.{name}"][layer].flatten(1)
            assert torch.equal(expected[:6], old)
            torch.testing.assert_close(found, expected[6:8], rtol=1e-4, atol=1e-6)


def test_new_rows_are_unit_rows_orthogonal_to_old_ones_that_are_orthogonal(exact):
    model = CODAPromptModel(exact.backbone(), **SMALL)
    for classes in ([0, 1], [2, 3], [4, 5]):
        model.begin_experience(classes)
    for own, value in components_of(model).items():
        for layer in value.flatten(2):
            torch.testing.assert_close(layer @ layer.T, torch.eye(6), rtol=0, atol=1e-6, msg=own)
    trained = [
        components_of(golden_model(exact, orthogonalise=kind)) for kind in ("gram_schmidt", "projection")
    ]
    for kind, old in zip(("gram_schmidt", "projection"), trained, strict=True):
        model = golden_model(exact, orthogonalise=kind)
        model.begin_experience([6, 7])
        product = torch.stack([model.keys[3][i].double() @ old["keys"][i].T for i in range(5)])
        assert bool(product.abs().amax() < 1e-6) is (kind == "projection")
        assert model.keys[3].dtype == torch.float64  # the model's
        torch.testing.assert_close(model.keys[3].norm(dim=2).float(), torch.ones(5, 2))


def test_without_orthogonalisation_new_rows_are_uniform(backbone):
    model = CODAPromptModel(backbone, orthogonalise="none", components_per_experience=40)
    model.begin_experience([0])
    values = model.components[0].detach()
    assert 0 <= float(values.min()) < 0.01
    assert 0.99 < float(values.max()) < 1


def test_a_zero_old_row_is_passed_over(exact):
    noise = torch.randn(3, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    old = torch.zeros(1, 32, dtype=torch.float64)
    torch.testing.assert_close(orthogonal_rows(old, noise), orthogonal_rows(old[:0], noise))


def test_factored_weights_equal_the_cosine_of_every_pair(exact):
    query, attention, keys = exact["query"], exact["coda.A"], exact["coda.K"]
    attention, keys = attention[:, :6], keys[:, :6]
    pairs = query[None, :, None] * attention[:, None]  # (L, B, M, D)
    oracle = F.cosine_similarity(pairs, keys[:, None], dim=-1)
    torch.testing.assert_close(component_weights(query, attention, keys), oracle, rtol=0, atol=1e-12)


@pytest.mark.parametrize("zero", ["query", "attention", "keys"])
def test_a_zero_vector_has_weight_zero(exact, zero):
    parts = {"query": exact["query"], "attention": exact["coda.A"][:, :6], "keys": exact["coda.K"][:, :6]}
    parts[zero] = parts[zero].clone()
    parts[zero][..., 0, :] = 0
    leaves = {name: value.float().requires_grad_() for name, value in parts.items()}
    weights = component_weights(**leaves)
    weights.square().sum().backward()
    assert not bool((weights[:, 0] if zero == "query" else weights[:, :, 0]).any())
    assert all(bool(leaf.grad.isfinite().all()) for leaf in leaves.values())


def test_weights_stay_in_float32_under_autocast(exact):
    parts = exact["query"].float(), exact["coda.A"].float(), exact["coda.K"].float()
    expected = component_weights(*parts)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(component_weights(*parts), expected)
        assert component_weights(parts[0].bfloat16(), *parts[1:]).dtype == torch.float32


def test_prediction_does_not_depend_on_batch_companions(exact, per_sample):
    per_sample(golden_model(exact), torch.cat([exact["images"], exact["eval_images"][:5]]))


def test_components_in_another_order_change_nothing(exact):
    model, images = golden_model(exact).eval(), exact["eval_images"]
    before = model(images)
    for own in NAMES.values():
        for part in getattr(model, own):
            part.data = part.data.flip(1)
    torch.testing.assert_close(model(images), before, rtol=0, atol=1e-12)


def test_old_components_are_bit_equal_after_training(exact):
    model = golden_model(exact).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.begin_experience([6, 7])
    targets = torch.tensor([6, 7] * 3)
    model.observe(targets)
    optimizer = optim.build(model, lr=0.01)
    assert {name for name in model.trainable() if "head" not in name} == {
        f"{own}.3" for own in NAMES.values()
    }
    for _ in range(3):
        optimizer.zero_grad()
        model.training_loss(exact["images"], targets).loss.backward()
        optimizer.step()
    after = model.state_dict()
    for own in NAMES.values():
        for index in range(3):
            assert torch.equal(after[f"{own}.{index}"], before[f"{own}.{index}"]), own
        assert bool(getattr(model, own)[3].grad.any())
    assert torch.equal(after["head.weight"][:6], before["head.weight"][:6])


@pytest.mark.parametrize(("reset", "stays"), [(True, True), (False, False)])
def test_old_rows_of_the_head_stay_as_they_were_under_a_new_optimizer_only(exact, reset, stays):
    model = golden_model(exact).train()
    optimizer = optim.build(model, lr=0.01)
    for classes in ([4, 5], [6, 7]):
        model.begin_experience(classes)
        targets = torch.tensor(classes * 3)
        model.observe(targets)
        rows = model.head.weight[4:6].detach().clone()
        if reset:
            optimizer = optim.build(model, lr=0.01)
        else:
            optim.sync(optimizer, model)
        optimizer.zero_grad()
        model.training_loss(exact["images"], targets).loss.backward()
        optimizer.step()
    assert torch.equal(model.head.weight[4:6], rows) is stays


def test_a_state_of_more_experiences_loads_into_a_new_model(exact):
    model = golden_model(exact)
    other = CODAPromptModel(exact.backbone(), **SMALL)
    other.load_state_dict(model.method_state())
    assert other.trainable().keys() == model.trainable().keys()
    other.to(torch.float64)
    assert torch.equal(other.eval()(exact["images"]), model.eval()(exact["images"]))


def test_without_boundaries_all_components_are_there_and_trained_from_the_start(backbone):
    model = CODAPromptModel(backbone, boundary_free=True).train()
    assert model.boundaries == "unused"
    assert [tuple(part.shape) for part in model.keys] == [(5, 32, 32)]  # the width allows no hundred
    labels = torch.tensor([0, 3])
    model.observe(labels)
    model.training_loss(torch.rand(2, 3, 32, 32), labels).loss.backward()
    assert all(bool(parameter.grad.any()) for parameter in model.trainable().values())


def test_growth_needs_experiences_whatever_the_mask(backbone):
    model = CODAPromptModel(backbone, mask="seen")
    model.observe(torch.tensor([0]))
    with pytest.raises(ProtocolError, match="begin_experience"):
        model.training_loss(torch.rand(1, 3, 32, 32), torch.tensor([0]))


def test_more_components_than_can_be_orthogonal_are_refused_in_words_that_help(backbone):
    model = CODAPromptModel(backbone, components_per_experience=20)
    model.begin_experience([0])
    with pytest.raises(ProtocolError, match="40 orthogonal components in width 32; lower components_per_exp"):
        model.begin_experience([1])


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"length": 5}, "length must be even"),
        ({"length": 0}, "length"),
        ({"components_per_experience": 0}, "components_per_experience"),
        ({"components_per_experience": 33}, "components_per_experience must be at most the backbone's width"),
        ({"pool_size": 33, "boundary_free": True}, "pool_size must be at most the backbone's width"),
        ({"pool_size": 0, "boundary_free": True}, "pool_size"),
        ({"pool_size": 10}, "pool_size is for boundary_free=true"),
        ({"layers": (5, 6)}, "layers: block 6"),
        ({"layers": (1, 1)}, "layers names a block twice"),
        ({"orthogonalise": "qr"}, "orthogonalise"),
        ({"mask": "experience", "boundary_free": True}, "mask=experience"),
    ],
)
def test_bad_arguments_are_refused_by_name(backbone, arguments, named):
    with pytest.raises(ConfigError, match=named):
        CODAPromptModel(backbone, **arguments)
