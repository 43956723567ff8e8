"""Prompt-CAM: what a class's score hangs on, how experiences are compared, what is drawn and refused."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from clprompt.errors import ConfigError, ProtocolError
from clprompt.prompting.losses import SoftLabels
from clprompt.prompting.plugin import Pass, Plugin
from clprompt.strategies.prompt_cam.gate import LDAEvidence, MeansEvidence, gated
from clprompt.strategies.prompt_cam.model import PromptCAMModel
from clprompt.testing.bench import SIDE, tiny_vit
from clprompt.training import optim
from clprompt.training.settings import Training
from clprompt.training.steps import receive, train_step

#: Classes of two experiences, not in order.
CLASSES = ((4, 1), (0, 7, 2))


def images(count: int = 6, number: int = 0) -> Tensor:
    return torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(number))


def learn(model: PromptCAMModel, index: int, steps: int = 2) -> None:
    """One experience of two epochs of one batch, with decay of whatever the optimizer holds."""
    classes = CLASSES[index]
    model.begin_experience(classes)
    optimizer = optim.build(model.train(), Training(lr=0.05, optimizer="adamw", weight_decay=0.1))
    targets = torch.tensor(classes * 2)
    for epoch in range(steps):
        model.start_epoch(epoch, steps)
        receive(model, optimizer, targets)
        train_step(model, optimizer, images(len(targets), index), targets)
    model.end_experience()
    model.eval()


@pytest.fixture(scope="module")
def trained() -> dict[str, PromptCAMModel]:
    """Models of both experiences by form, which nobody changes."""
    made = {}
    forms: dict[str, dict[str, Any]] = {
        "own": {},
        "all": {"visibility": "all", "gate": "none"},
        "shared": {"shared_length": 2, "gate_by": "lda"},
    }
    for name, arguments in forms.items():
        made[name] = PromptCAMModel(tiny_vit(depth=3), **arguments)
        learn(made[name], 0)
        learn(made[name], 1)
    return made


def scores(model: PromptCAMModel, classes: tuple[int, ...]) -> Tensor:
    """Of these classes, before any gate, [B, n]."""
    with torch.no_grad():
        every = model.encode(images()).details
    return every[:, [model.columns.tolist().index(c) for c in classes]]


# ------------------------------------------------------------------------------------------------ isolation


@pytest.mark.parametrize(("arguments", "same"), [({}, True), ({"visibility": "all"}, False)])
def test_classes_that_are_added_change_no_earlier_score_unless_prompts_see_each_other(
    arguments: dict[str, Any], same: bool
) -> None:
    model = PromptCAMModel(tiny_vit(depth=3), **arguments)
    learn(model, 0)
    before = scores(model, CLASSES[0])
    model.begin_experience(range(10, 50))
    assert torch.equal(scores(model.eval(), CLASSES[0]), before) == same


def test_a_later_experience_moves_no_bit_of_an_earlier_one() -> None:
    model = PromptCAMModel(tiny_vit(depth=3), shared_length=2)
    learn(model, 0)
    before = {name: value.clone() for name, value in model.own_parameters().items()}
    learn(model, 1)
    assert all(torch.equal(model.own_parameters()[name], value) for name, value in before.items())


def test_shared_prompts_are_trained_in_the_first_experience_alone() -> None:
    model = PromptCAMModel(tiny_vit(depth=3), shared_length=2)
    assert model.shared is not None
    model.begin_experience([0])
    assert model.shared.requires_grad
    model.begin_experience([1])
    assert not model.shared.requires_grad


def test_an_evaluation_keeps_the_scores_of_frozen_experiences_and_computes_the_newest(
    trained: dict[str, PromptCAMModel],
) -> None:
    model, cache = copy.deepcopy(trained["shared"]), {}
    with torch.no_grad():
        before = model(images(), cache)
        assert torch.equal(model(images(), cache), before)
        assert {name for name in cache if name.startswith("scores")} == {"scores 0"}
        model.prompts[1].mul_(2)  # the newest experience goes on learning
        model.prompts[0].mul_(2)  # nothing does this: read from what is kept
        moved = model.encode(images(), cache).details != trained["shared"].encode(images()).details
    assert moved[:, 2:].all()
    assert not moved[:, :2].any()


def test_scores_in_training_are_those_of_evaluation(trained: dict[str, PromptCAMModel]) -> None:
    model = copy.deepcopy(trained["own"])
    learned = model.encode(images()).details
    torch.testing.assert_close(model.train().encode(images()).details, learned)


class Halved(Plugin):
    """Halves every prompt that the backbone gets."""

    name = "halved"

    def around(self, prompts: Any, run: Pass) -> Any:
        def halved(block: int, x: Tensor) -> Any:
            prompt = prompts(block, x)
            return [replace(prompt, tokens=prompt.tokens / 2)]

        return halved


def test_a_plug_in_that_puts_another_prompt_in_its_place_is_heard(
    trained: dict[str, PromptCAMModel],
) -> None:
    model = copy.deepcopy(trained["own"]).eval()
    plugged = copy.deepcopy(model)
    plugged.plug(Halved())
    with torch.no_grad():
        for prompt in model.prompts:
            prompt /= 2
        torch.testing.assert_close(plugged(images()), model(images()), rtol=0, atol=1e-5)


def test_the_state_is_a_row_a_class_and_a_scorer_an_experience(trained: dict[str, PromptCAMModel]) -> None:
    model = trained["own"]
    width, classes, columns, experiences = 32, 5, 8, 2
    parts = ("prompts.", "score_weights.", "score_biases.", "evidence.")
    numbers = sum(v.numel() for name, v in model.method_state().items() if name.startswith(parts))
    assert numbers == classes * width + experiences * (width + 1) + columns * (width + 1)


# ------------------------------------------------------------------------------------------------ the gate


def test_a_soft_gate_adds_the_log_share_of_an_experience() -> None:
    rows, evidence = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0)).double()
    logits = gated(rows, evidence, [2, 3], "soft")
    share = evidence.softmax(1)
    within = torch.cat([rows[:, :2].log_softmax(1), rows[:, 2:].log_softmax(1)], dim=1)
    of_experience = torch.stack([share[:, :2].sum(1), share[:, 2:].sum(1)], dim=1).log()
    torch.testing.assert_close(logits, within + of_experience[:, [0, 0, 1, 1, 1]])
    assert torch.allclose(logits.exp().sum(1), torch.ones(3, dtype=torch.float64))


def test_a_hard_gate_ranks_every_other_experience_behind() -> None:
    rows = torch.tensor([[0.0, 1.0, 9.0, 8.0, 7.0]])
    logits = gated(rows, torch.tensor([[0.1, 0.9, 0.8, 0.8, 0.8]]), [2, 3], "hard")
    assert logits.argsort(descending=True)[0].tolist() == [1, 0, 2, 3, 4]
    assert logits.isfinite().all()


def test_a_class_without_a_sample_takes_no_share() -> None:
    rows, evidence = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    rows[:, 3], evidence[:, 3] = float("-inf"), float("-inf")
    kept = [0, 1, 2, 4]
    for gate in ("soft", "hard"):
        expected = gated(rows[:, kept], evidence[:, kept], [2, 2], gate)
        torch.testing.assert_close(gated(rows, evidence, [2, 3], gate)[:, kept], expected)


def test_means_are_compared_by_scaled_cosines() -> None:
    evidence = MeansEvidence(4, scale=20.0)
    evidence.grow(3)
    features = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)).double()
    evidence.add(features, torch.tensor([0, 2, 2, 0, 2]))
    means = torch.stack([features[[0, 3]].mean(0), features[[1, 2, 4]].mean(0)])
    cosines = torch.nn.functional.cosine_similarity(features[:, None], means[None], dim=2)
    torch.testing.assert_close(evidence.classify(features)[:, [0, 2]], 20 * cosines)
    assert evidence.classify(features)[:, 1].eq(float("-inf")).all()


def test_images_count_in_the_first_epoch_alone(trained: dict[str, PromptCAMModel]) -> None:
    means, lda = trained["own"].evidence, trained["shared"].evidence
    assert isinstance(means, MeansEvidence)
    assert isinstance(lda, LDAEvidence)
    for counts in (means.counts, lda.head.classes.counts):
        assert counts[[4, 1, 0, 7, 2]].tolist() == [2] * 5
        assert int(counts.sum()) == 10


def test_without_a_gate_logits_are_the_scores(trained: dict[str, PromptCAMModel]) -> None:
    model, classes = trained["all"], (4, 1, 0, 7, 2)
    with torch.no_grad():
        assert torch.equal(model(images())[:, list(classes)], scores(model, classes))


# ------------------------------------------------------------------------------------------------ maps


@pytest.mark.parametrize("form", ["own", "all", "shared"])
def test_maps_and_what_is_left_out_of_them_add_up_to_one(
    trained: dict[str, PromptCAMModel], form: str
) -> None:
    model = trained[form]
    attention = model.attention(images())
    maps = model.maps(attention)
    assert maps.shape == (6, 2, 5, 4, 4)
    assert (maps >= 0).all()
    left_out = attention.weights[..., 0] + attention.weights[..., 17:].sum(-1)
    torch.testing.assert_close(maps.sum((-1, -2)) + left_out, torch.ones(6, 2, 5))


def test_a_prompt_gives_other_classes_no_attention(trained: dict[str, PromptCAMModel]) -> None:
    weights = trained["own"].attention(images()).weights[..., 17:]
    assert (weights.masked_fill(torch.eye(5, dtype=torch.bool), 0.0) == 0).all()


def test_unblurred_scores_are_those_of_the_fused_attention(trained: dict[str, PromptCAMModel]) -> None:
    for form in ("own", "shared"):
        model = trained[form]
        attention = model.attention(images())
        none = torch.zeros(6, 2, 5, dtype=torch.bool)
        torch.testing.assert_close(
            model.blurred_scores(attention, none), scores(model, tuple(model.columns.tolist()))
        )


def test_with_all_heads_blurred_a_score_does_not_depend_on_the_query(
    trained: dict[str, PromptCAMModel],
) -> None:
    model = copy.deepcopy(trained["own"])
    every = torch.ones(6, 2, 5, dtype=torch.bool)
    blurred = model.blurred_scores(model.attention(images()), every)
    sharp = scores(model, (4, 1))
    with torch.no_grad():
        model.backbone.blocks[-1].attn.qkv.weight[:32] *= -2
    torch.testing.assert_close(model.blurred_scores(model.attention(images()), every), blurred)
    assert not torch.allclose(scores(model, (4, 1)), sharp)


def test_a_blurred_head_is_even_over_the_stream_and_the_prompt_itself(
    trained: dict[str, PromptCAMModel],
) -> None:
    assert (trained["own"].attention(images()).visible.sum(-1) == 17 + 1).all()


# ------------------------------------------------------------------------------------------------ drawings


def test_each_image_is_explained_by_heads_of_the_predicted_class_and_the_runner_up(
    trained: dict[str, PromptCAMModel],
) -> None:
    model = copy.deepcopy(trained["own"])
    model.class_names = [f"name {c}" for c in range(8)]
    drawn = model.explain(images(2))
    assert list(drawn) == ["heads_01", "heads_02"]
    with torch.no_grad():
        best = model(images(2)).topk(2).indices[1].tolist()
    panels = drawn["heads_02"].axes
    assert len(panels) == 2 * (1 + 2)  # two classes; the image and two heads
    assert [panels[row].get_ylabel().split("\n")[0] for row in (0, 3)] == [f"name {c}" for c in best]
    heads = [panels[number].get_title().split(":")[0] for number in (1, 2)]
    order = model.head_order(model.attention(images(2)))[1, model.columns.tolist().index(best[0])]
    assert heads == [f"head {head + 1}" for head in order.flip(0).tolist()]  # the last one blurred in front


def test_named_classes_stand_in_place_of_the_runner_up(trained: dict[str, PromptCAMModel]) -> None:
    model = trained["own"]
    with torch.no_grad():
        first = int(model(images(1)).argmax())
    others = [c for c in (4, 1, 0, 7) if c != first][:2]
    figure = model.explain(images(1), classes=[*others, first])["heads_01"]
    labels = [axes.get_ylabel().split("\n")[0] for axes in figure.axes if axes.get_ylabel()]
    assert labels == [str(first), *map(str, others)]


def test_a_run_is_shown_heads_and_the_mean_map_of_each_predicted_class(
    trained: dict[str, PromptCAMModel],
) -> None:
    class Glimpse:
        def __call__(self) -> list[Tensor]:
            return [images()]

        def groups(self, count: int) -> list[Tensor]:
            return [images(3, 1), images(3, 2)]

    model = trained["own"]
    drawn = model.probe(Glimpse())
    assert len(drawn["attention/heads"]().axes) == 2 * 3
    with torch.no_grad():
        predicted = {str(int(c)) for number in (1, 2) for c in model(images(3, number)).argmax(1)}
    assert {text.get_text() for text in drawn["attention/classes"]().axes[0].texts} == predicted


# ------------------------------------------------------------------------------------------------ mistakes


def test_the_released_form_refuses_a_second_experience() -> None:
    model = PromptCAMModel(tiny_vit(depth=3), form="deep")
    with pytest.raises(ConfigError, match="this stream has 2: use form=last"):
        model.check_stream(CLASSES)
    model.check_stream(CLASSES[:1])
    learn(model, 0)
    assert model.prompts[0].shape == (3, 2, 32)
    with pytest.raises(ProtocolError, match="form=deep takes one experience"):
        model.begin_experience(CLASSES[1])


def test_the_last_so_many_blocks_are_prompted() -> None:
    deep = PromptCAMModel(tiny_vit(depth=3), form="deep", layers=2)
    deep.begin_experience([0])
    assert (deep.first_block, deep.prompts[0].shape) == (1, (2, 1, 32))
    shared = PromptCAMModel(tiny_vit(depth=3), shared_length=4, layers=2).shared
    assert shared is not None
    assert shared.shape == (1, 4, 32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"form": "deep", "visibility": "own"}, "visibility=own is for form=last"),
        ({"form": "deep", "shared_length": 2}, "shared_length must be 0 with form=deep, got 2"),
        ({"layers": 4}, "layers must be at most 3, all blocks, got 4"),
    ],
)
def test_arguments_that_exclude_each_other_are_one_line(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as told:
        PromptCAMModel(tiny_vit(depth=3), **arguments)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("form", ["last", "deep"])
def test_more_prompts_than_fit_are_refused_with_the_bytes_before_a_run(form: str) -> None:
    model = PromptCAMModel(tiny_vit(depth=3), form=form, limit_bytes=10_000)
    needed = model.prompt_bytes(30)
    with pytest.raises(ConfigError, match=f"at least {needed}, the bytes that 30 class prompts"):
        model.check_stream([range(30)])
    with pytest.raises(ConfigError, match="limit_bytes must be at least"):
        model.begin_experience(range(30))
    PromptCAMModel(tiny_vit(depth=3), form=form, limit_bytes=needed).check_stream([range(30)])


def test_the_bytes_of_an_image_are_those_of_its_attention_and_tokens() -> None:
    model = PromptCAMModel(tiny_vit(depth=3))
    assert model.prompt_bytes(10) == 4 * (2 * 10 * 27 + 10 * (8 * 32 + 2 * 64))


def test_mixed_images_and_classes_without_a_prompt_are_refused() -> None:
    model = PromptCAMModel(tiny_vit(depth=3)).train()
    model.begin_experience([0, 1])
    model.observe(torch.tensor([0, 1, 2]))
    with pytest.raises(ProtocolError, match="class 2 has no prompt"):
        model.training_loss(images(2), torch.tensor([0, 2]))
    mixed = SoftLabels(torch.full((2, 3), 1 / 3), 0.0)
    with pytest.raises(ProtocolError, match=r"mixup.* PromptCAMModel counts features"):
        model.training_loss(images(2), torch.tensor([0, 1]), mixed)


def test_a_class_that_comes_again_is_refused() -> None:
    model = PromptCAMModel(tiny_vit(depth=3))
    with pytest.raises(ConfigError, match="class 1 is in the experiences 1 and 2; Prompt-CAM"):
        model.check_stream([[0, 1], [1, 2]])
    model.begin_experience([0, 1])
    with pytest.raises(ProtocolError, match="class 1 is in two experiences"):
        model.begin_experience([1, 2])


def test_there_is_nothing_to_explain_before_training() -> None:
    with pytest.raises(ConfigError, match="nothing was trained"):
        PromptCAMModel(tiny_vit(depth=3)).explain(images(1))
