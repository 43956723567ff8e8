"""L2P against the reference implementation's outputs, and what its definition promises."""

from __future__ import annotations

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from clprompt.backbones.vit import FrozenViT
from clprompt.errors import ConfigError, ProtocolError
from clprompt.strategies.l2p import L2PModel
from clprompt.training import optim

SMALL = {"pool_size": 6, "length": 3, "top_k": 2}


def golden_model(base, run: str = "eval", **arguments) -> L2PModel:
    model = L2PModel(
        base.backbone(), **SMALL, pull=float(base["l2p.pull"]), **base.arguments(run), **arguments
    )
    return base.put(model, {"prompts": base["l2p.prompt"], "keys": base["l2p.key"]})


@pytest.mark.parametrize("run", ["train", "eval", "online_seen", "online_batch"])
def test_logits_losses_and_gradients_are_the_references(baselines, gradients, run):
    model = golden_model(baselines, run)
    images, _ = baselines.batch(run)
    similarity, chosen = model.select(model.backbone.features(images))
    baselines.check(similarity, f"l2p.{run}.similarity")
    baselines.check(chosen, f"l2p.{run}.selected")
    own = gradients(model, prompt=lambda: model.prompts.grad, key=lambda: model.keys.grad)
    step = baselines.check_step(model, run, f"l2p.{run}.", own)
    if step is not None:
        baselines.check(step.terms["key_pull"] / -model.pull, f"l2p.{run}.pull_similarity")


@pytest.mark.parametrize(("head_type", "name"), [("token", "token"), ("token+prompt", "token_prompt")])
def test_other_head_types_are_the_references(baselines, head_type, name):
    model = golden_model(baselines, head_type=head_type).eval()
    feature = model.encode(baselines["eval_images"]).features
    baselines.check(model.logits(feature), f"l2p.eval.logits_{name}")


def test_there_is_no_majority_vote_over_the_batch(exact):
    model = golden_model(exact)
    feature = model.encode(exact["eval_images"]).features
    exact.differs(model.logits(feature), "bug.l2p_vote.logits", 0.1)


def test_prediction_does_not_depend_on_batch_companions(exact, per_sample):
    per_sample(golden_model(exact), torch.cat([exact["images"], exact["eval_images"][:5]]))


def test_a_slot_matters_only_to_the_images_that_chose_it(exact):
    model, images = golden_model(exact).eval(), exact["eval_images"]
    before = model(images)
    _, chosen = model.select(model.backbone.features(images))
    slot = int(chosen[0, 0])
    model.prompts.data[slot] += 1
    changed = (model(images) != before).nan_to_num().any(1)
    assert torch.equal(changed, (chosen == slot).any(1))
    assert not bool(changed.all())


def test_keys_learn_from_the_pull_alone_and_prompts_from_the_cross_entropy_alone(exact):
    grads = {}
    for pull in (0.0, 0.5, 2.0):
        model = golden_model(exact, "train").train()
        model.pull = pull
        model.training_loss(*exact.batch("train")).loss.backward()
        grads[pull] = model.keys.grad, model.prompts.grad
    assert not bool(grads[0.0][0].any())
    torch.testing.assert_close(grads[2.0][0], 4 * grads[0.5][0])
    assert torch.equal(grads[2.0][1], grads[0.0][1])


def test_unchosen_slots_get_no_gradient(exact):
    model = golden_model(exact, "train").train()
    images, labels = exact.batch("train")
    _, chosen = model.select(model.backbone.features(images))
    model.training_loss(images, labels).loss.backward()
    idle = torch.ones(6, dtype=torch.bool).index_fill(0, chosen.flatten(), False)
    assert bool(idle.any())
    assert not bool(model.keys.grad[idle].any())
    assert not bool(model.prompts.grad[idle].any())


def test_a_step_brings_chosen_keys_nearer(exact):
    model = golden_model(exact, "train").train()
    images, labels = exact.batch("train")
    similarity, chosen = model.select(model.backbone.features(images))
    model.training_loss(images, labels).loss.backward()
    model.keys.data -= 1e-3 * model.keys.grad
    nearer, _ = model.select(model.backbone.features(images))
    assert nearer.gather(1, chosen).sum() > similarity.gather(1, chosen).sum()


@pytest.mark.parametrize(("reset", "stays"), [(True, True), (False, False)])
def test_slots_without_gradient_stay_as_they_are_under_a_new_optimizer_only(exact, reset, stays):
    model = golden_model(exact, "train").train()
    optimizer = optim.build(model, lr=0.01)

    def train(pool: list[int]) -> None:
        model.select = lambda query: (query @ model.keys.T, torch.tensor([pool] * len(query)))
        optimizer.zero_grad()
        model.training_loss(*exact.batch("train")).loss.backward()
        optimizer.step()

    train([0, 1])
    before = model.prompts[0].detach().clone()
    if reset:
        optimizer = optim.build(model, lr=0.01)
    train([2, 3])
    assert torch.equal(model.prompts[0], before) is stays


def test_steps_are_counted_in_training_only_and_the_state_does_not_grow(exact):
    model = golden_model(exact, "train")
    size = model.state_size()
    for mode in (True, False):
        model.train(mode)(exact["images"])
    assert int(model.selections.sum()) == 0
    for _ in range(3):
        model.train().training_loss(*exact.batch("train"))
    assert int(model.selections.sum()) == 3 * 6 * 2
    assert model.state_size() == size
    shown = model.diagnostics()
    assert 1 <= float(shown["pool/slots_used"]) <= 6
    assert len(shown["pool/selections"]().axes[0].patches) == 6
    model.begin_experience([6, 7])
    assert int(model.selections.sum()) == 0


def test_the_class_tokens_position_is_added_on_request_only(exact):
    model, other = golden_model(exact).eval(), golden_model(exact, prompt_position="none").eval()
    images = exact["eval_images"]
    assert not torch.allclose(model(images), other(images), equal_nan=True)
    other.prompts.data += other.backbone.class_position()
    torch.testing.assert_close(other(images), model(images), rtol=0, atol=1e-12)


def test_without_boundaries_no_experience_is_needed(backbone):
    model = L2PModel(backbone, boundary_free=True)
    assert model.boundaries == "unused"
    labels = torch.tensor([3, 8])
    model.observe(labels)
    step = model.training_loss(torch.rand(2, 3, 32, 32), labels)
    assert step.loss.isfinite()
    assert step.logits.isfinite().all(0).nonzero().flatten().tolist() == [3, 8]


def test_training_under_the_mask_of_the_experience_needs_one(backbone):
    model = L2PModel(backbone)
    model.observe(torch.tensor([0, 1]))
    with pytest.raises(ProtocolError, match="begin_experience"):
        model.training_loss(torch.rand(2, 3, 32, 32), torch.tensor([0, 1]))


def test_a_zero_key_has_similarity_zero_and_a_finite_gradient(exact):
    model = golden_model(exact, "train")
    model.keys.data[0] = 0
    images, labels = exact.batch("train")
    assert torch.equal(model.select(model.backbone.features(images))[0][:, 0], torch.zeros(6).double())
    model.top_k = 6
    model.training_loss(images, labels).loss.backward()
    assert bool(model.keys.grad.isfinite().all())


def pooled(**arguments) -> FrozenViT:
    return FrozenViT(
        VisionTransformer(
            img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=0, **arguments
        )
    )


def test_average_pooled_backbones_have_their_own_pooling_as_a_head_type():
    backbone = pooled(class_token=False, global_pool="avg")
    images = torch.rand(3, 3, 32, 32)
    for head_type in ("gap", "prompt"):
        model = L2PModel(backbone, head_type=head_type, prompt_position="none").eval()
        feature = model.encode(images).features
        assert feature.shape == (3, 32)
        # the norm of an average-pooled model stands behind the pooling
        torch.testing.assert_close(feature.mean(1), torch.zeros(3), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"batchwise_prompt": True}, "batchwise_prompt is no argument: one prompt voted by the whole batch"),
        ({"top_k": 11}, "top_k must be at most pool_size"),
        ({"top_k": 0}, "top_k must be at least 1"),
        ({"pool_size": 0}, "pool_size"),
        ({"length": 0}, "length"),
        ({"head_type": "gap"}, "head_type"),
        ({"head_type": "mean"}, "head_type"),
        ({"prompt_position": "first"}, "prompt_position"),
        ({"mask": "future"}, "mask"),
        ({"mask": "experience", "boundary_free": True}, "mask=experience"),
    ],
)
def test_bad_arguments_are_refused_by_name(backbone, arguments, named):
    with pytest.raises(ConfigError, match=named):
        L2PModel(backbone, **arguments)


@pytest.mark.parametrize("head_type", ["token", "token+prompt"])
def test_the_class_token_cannot_be_read_where_there_is_none(head_type):
    with pytest.raises(ConfigError, match="class token"):
        L2PModel(pooled(class_token=False, global_pool="avg"), head_type=head_type)
