"""DualPrompt against the reference's outputs (its reshape slip repaired), and against its definition."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from clprompt.errors import ConfigError, ProtocolError
from clprompt.strategies.dualprompt import DualPromptModel
from clprompt.training import optim

SMALL = {"g_length": 3, "e_length": 4}


def golden_model(base, run: str = "eval", slots: int | None = None, **arguments) -> DualPromptModel:
    """The golden prompts; in the run "train" only the three slots that exist in the third experience."""
    arguments = {**SMALL, **base.arguments(run), **arguments}
    if run.startswith("online"):
        arguments["pool_size"] = 5
    model = DualPromptModel(base.backbone(), **arguments)
    tensors = {"g_prompt": base["dual.g_prompt"].flatten(-2)}
    for slot in range(slots or (3 if run == "train" else 5)):
        tensors[f"e_prompts.{slot}"] = base["dual.e_prompt"][:, :, slot].flatten(-2)
        tensors[f"keys.{slot}"] = base["dual.key"][slot]
    return base.put(model, tensors)


def gradient(parameters, axis: int, slots: int = 5) -> Tensor:
    """The gradients of all slots side by side; zeros for slots without one."""
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    parts += [torch.zeros_like(parts[0])] * (slots - len(parts))
    return torch.stack(parts, dim=axis)


@pytest.mark.parametrize("run", ["train", "eval", "online_seen", "online_batch"])
def test_logits_losses_and_gradients_are_the_references(baselines, gradients, run):
    model = golden_model(baselines, run)
    own = gradients(
        model,
        g_prompt=lambda: model.g_prompt.grad.unflatten(-1, (2, 16)),
        e_prompt=lambda: gradient(model.e_prompts, 2).unflatten(-1, (2, 16)),
        key=lambda: gradient(model.keys, 0),
    )
    step = baselines.check_step(model, run, f"dual.{run}.", own)
    if step is not None:
        baselines.check(-step.terms["key_pull"], f"dual.{run}.pull_similarity")


def test_the_reshape_slip_that_mixes_batch_and_key_value_axes_is_not_reproduced(exact):
    for run, gap in (("train", 0.5), ("eval", 1.0), ("online_seen", 0.7)):
        model = golden_model(exact, run).train(run != "eval")
        feature = model.encode(exact.batch(run)[0]).features
        exact.differs(model.logits(feature), f"bug.dual.{run}.logits", gap)


def test_prediction_does_not_depend_on_batch_companions(baselines, per_sample):
    model, images = golden_model(baselines).eval(), baselines["eval_images"]

    def logits(part: Tensor) -> Tensor:
        return model.logits(model.encode(part)[0])

    baselines.check(logits(images[:5]), "dual.eval_first5.logits")
    baselines.check(torch.cat([logits(image[None]) for image in images]), "dual.eval_single.logits")
    per_sample(model, images)


def test_a_slot_matters_only_to_the_images_that_chose_it(exact):
    model, images = golden_model(exact).eval(), exact["eval_images"]
    chosen = exact["dual.eval.selected"][:, 0]
    before = model(images)
    model.e_prompts[int(chosen[0])].data += 1
    changed = (model(images) != before).nan_to_num().any(1)
    assert torch.equal(changed, chosen == chosen[0])
    assert not bool(changed.all())


def test_a_new_experience_starts_from_the_previous_prompt(exact):
    model = golden_model(exact, "train")
    model.begin_experience([6, 7])
    expected = exact["dual.switch_to_3.e_prompt"].flatten(-2)
    for slot in range(4):
        assert torch.equal(model.e_prompts[slot].double(), expected[:, :, slot]), slot
    assert not torch.equal(model.keys[3].double(), model.keys[2].double())
    # the one that was copied stays what it was while the copy is trained
    trained = model.trainable()
    assert {name for name in trained if "." in name and "head" not in name} == {"e_prompts.3", "keys.3"}


def test_the_key_learns_from_the_pull_alone(exact):
    images, labels = exact.batch("train")
    silent = golden_model(exact, "train", pull=0.0).train()
    silent.training_loss(images, labels).loss.backward()
    assert not bool(silent.keys[2].grad.any())


def test_the_key_comes_nearer_to_its_queries(exact):
    images, labels = exact.batch("train")
    model = golden_model(exact, "train").train()
    before = model.training_loss(images, labels)
    before.loss.backward()
    model.keys[2].data -= 1e-3 * model.keys[2].grad
    assert model.training_loss(images, labels).terms["key_pull"] < before.terms["key_pull"]


@pytest.mark.parametrize(("reset", "stays"), [(True, True), (False, False)])
def test_a_new_optimizer_leaves_what_an_experience_does_not_train(exact, reset, stays):
    model = golden_model(exact, "train").train()
    optimizer = optim.build(model, lr=0.01)
    for classes in ([4, 5], [6, 7]):
        model.begin_experience(classes)
        targets = torch.tensor(classes * 3)
        model.observe(targets)
        slot = model.e_prompts[2].detach().clone(), model.keys[2].detach().clone()
        row = model.head.weight[4].detach().clone()
        if reset:
            optimizer = optim.build(model, lr=0.01)
        else:
            optim.sync(optimizer, model)
        optimizer.zero_grad()
        model.training_loss(exact["images"], targets).loss.backward()
        optimizer.step()
    assert torch.equal(model.e_prompts[2], slot[0])
    assert torch.equal(model.keys[2], slot[1])
    assert torch.equal(model.head.weight[4], row) is stays  # in the optimizer, without gradient


def test_the_general_prompt_is_frozen_after_the_experiences_that_train_it(exact):
    model = DualPromptModel(exact.backbone(), **SMALL, freeze_general_after=1)
    free = DualPromptModel(exact.backbone(), **SMALL)
    for classes, trained in (([0, 1], True), ([2, 3], False)):
        model.begin_experience(classes)
        free.begin_experience(classes)
        assert ("g_prompt" in model.trainable()) is trained
        assert "g_prompt" in free.trainable()


def test_keys_of_experiences_still_to_come_do_not_compete(exact):
    three, five = golden_model(exact, slots=3).eval(), golden_model(exact, slots=5).eval()
    similarity = exact["dual.eval.similarity"]
    later = similarity.argmax(1) >= 3
    assert bool(later.any())
    assert not bool(later.all())
    images = exact["eval_images"]
    same = (
        torch.isclose(three(images), five(images), rtol=0, atol=1e-9).logical_or(three(images).isinf()).all(1)
    )
    assert torch.equal(same, ~later)


def test_a_block_in_both_lists_gets_both_prefixes(exact):
    model = DualPromptModel(exact.backbone(), g_layers=(1,), e_layers=(1,), **SMALL)
    model.begin_experience([0, 1])
    given = model._prompts(model.e_prompts[0][:, :, None], None)(1, exact["images"])
    assert [tuple(prompt.tokens.shape) for prompt in given] == [(1, 3, 32), (1, 4, 32)]


def test_rows_of_a_prefix_in_another_order_change_nothing(exact):
    model, images = golden_model(exact).eval(), exact["eval_images"]
    before = model(images)
    for prompt in (model.g_prompt, *model.e_prompts):
        prompt.data = prompt.data.flip(-2)
    torch.testing.assert_close(model(images), before, rtol=0, atol=1e-12)


def test_no_prompted_blocks_give_the_frozen_features(exact):
    model = DualPromptModel(exact.backbone(), g_layers=(), e_layers=()).eval()
    exact.check(model.encode(exact["images"])[0], "query")


@pytest.mark.parametrize("form", ["prefix", "projected", "fresh"])
def test_without_boundaries_every_form_trains_all_slots_by_key(backbone, form):
    model = DualPromptModel(backbone, **SMALL, boundary_free=True, pool_size=4, form=form).train()
    assert model.boundaries == "unused"
    assert len(model.keys) == 4
    images = torch.rand(5, 3, 32, 32)
    for labels in (torch.tensor([0, 1, 0, 1, 1]), torch.tensor([2, 9, 2, 0, 9])):
        model.observe(labels)
        step = model.training_loss(images, labels)
        step.loss.backward()
    assert step.loss.isfinite()
    assert len(model.keys) == 4
    assert all(key.requires_grad for key in model.keys)


def test_a_zero_key_is_at_similarity_zero_and_not_nan(exact):
    model = golden_model(exact, "online_seen").train()
    model.keys[1].data.zero_()
    model.training_loss(*exact.batch("online_seen")).loss.backward()
    assert all(bool(key.grad.isfinite().all()) for key in model.keys)
    assert bool(model.eval()(exact["images"]).isnan().logical_not().all())


def test_training_before_an_experience_is_refused(backbone):
    model = DualPromptModel(backbone, mask="seen")
    model.observe(torch.tensor([0]))
    with pytest.raises(ProtocolError, match="begin_experience"):
        model.training_loss(torch.rand(1, 3, 32, 32), torch.tensor([0]))


def test_a_fixed_pool_smaller_than_the_experiences_is_refused(backbone):
    model = DualPromptModel(backbone, pool_size=1)
    model.begin_experience([0])
    with pytest.raises(ProtocolError, match="pool_size is 1"):
        model.begin_experience([1])


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"batchwise_prompt": True}, "batchwise_prompt is no argument: one prompt voted by the whole batch"),
        ({"top_k": 2}, "top_k is no argument: DualPrompt uses one expert prompt per image"),
        ({"pool_size": 0}, "pool_size"),
        ({"g_layers": (0, 6)}, "g_layers: block 6"),
        ({"e_layers": (2, 2)}, "e_layers names a block twice"),
        ({"e_layers": (-1,)}, r"e_layers must be list of int \(at least 0\), got \[-1\]"),
        ({"g_length": 0}, "g_length"),
        ({"e_length": 0}, "e_length"),
        ({"form": "suffix"}, "form"),
        ({"freeze_general_after": -1}, "freeze_general_after"),
        ({"mask": "experience", "boundary_free": True}, "mask=experience"),
    ],
)
def test_bad_arguments_are_refused_by_name(backbone, arguments, named):
    with pytest.raises(ConfigError, match=named):
        DualPromptModel(backbone, **arguments)
