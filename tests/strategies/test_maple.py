"""MaPLe, class-incrementally: what its couplings and image prompts promise, and what they refuse."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from image_text import NAMES, HashedWords, learn_text, tiny_image_text
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from clprompt import testing
from clprompt.backbones.vit import FrozenViT
from clprompt.errors import ClpromptError
from clprompt.prompting.coordination import Coordination
from clprompt.prompting.statistics.plugin import Statistics
from clprompt.strategies.maple.couplings import Hierarchical, Mapper, Proxy
from clprompt.strategies.maple.model import MaPLeModel
from clprompt.testing.bench import Workbench

FORMS: dict[str, dict[str, Any]] = {
    "coupled": {"decouple": True},
    "independent": {"coupling": "none", "length": 3, "init": None},
    "hierarchical": {
        "coupling": "hierarchical",
        "length": 3,
        "init": None,
        "residual_features": "a drawing of a {}.",
    },
    "text alone": {"vision": "none", "depth": 2},
}
PICTURES = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
learn = partial(learn_text, PICTURES)


@pytest.fixture(scope="module")
def backbone() -> FrozenViT:
    """Of widths 36 (images, in front of whose blocks a norm stands), 24 (texts) and 12."""
    vit = VisionTransformer(
        img_size=16, patch_size=4, embed_dim=36, depth=4, num_heads=2, num_classes=0, pre_norm=True
    )
    return tiny_image_text(FrozenViT(vit)).double()


def made(backbone: FrozenViT, **arguments: Any) -> MaPLeModel:
    model = MaPLeModel(backbone, **arguments)
    model.name_classes(NAMES)
    return model.double()


@torch.no_grad()
def logits(model: MaPLeModel) -> Tensor:
    return model.eval()(PICTURES)


@torch.no_grad()
def image_features(model: MaPLeModel) -> Tensor:
    return model.eval().image_features(PICTURES)


# ------------------------------------------------------------------------------------------------ the towers


@pytest.mark.parametrize("length", [2, 4])
def test_the_words_of_a_template_give_its_zero_shot_logits(backbone: FrozenViT, length: int) -> None:
    model = made(backbone, vision="none", depth=1, length=length)
    model.begin_experience(range(6))
    model.observe(torch.arange(6))
    assert backbone.text is not None
    images = F.normalize(backbone.project(backbone.features(PICTURES)), dim=-1)
    texts = F.normalize(backbone.text.features([f"a photo of a {name}." for name in NAMES.values()]), dim=-1)
    torch.testing.assert_close(logits(model), backbone.scale * images @ texts.T, rtol=0, atol=1e-11)


@pytest.mark.parametrize("depth", [1, 3])
def test_image_prompts_are_those_of_a_plain_loop_over_the_blocks(backbone: FrozenViT, depth: int) -> None:
    """Of one block: shallow prompts, which stay to the end."""
    model = made(backbone, depth=depth, length=3, init=None)
    vit: Any = backbone.vit
    with torch.no_grad():
        patches = vit._pos_embed(vit.patch_embed(PICTURES))
        prompts = [linear(rows) for linear, rows in zip(model.prompts.maps, model.prompts.text, strict=True)]
        first = prompts[0].expand(len(PICTURES), -1, -1)
        tokens = vit.norm_pre(torch.cat([patches, first], dim=1))
        for block in range(len(vit.blocks)):
            if 0 < block < depth:
                tokens = torch.cat([tokens[:, :-3], prompts[block].expand(len(PICTURES), -1, -1)], dim=1)
            tokens = vit.blocks[block](tokens)
        expected = backbone.project(vit.norm(tokens)[:, 0])
        stream = model.image_tokens(PICTURES)
    torch.testing.assert_close(image_features(model), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(stream, tokens, rtol=0, atol=1e-12)


@pytest.mark.parametrize("causal", [True, False])
def test_text_prompts_are_those_of_the_whole_sequence(causal: bool) -> None:
    tokenizer = HashedWords(start_tokens=int(causal))
    model = made(tiny_image_text(causal=causal, tokenizer=tokenizer).double(), depth=2)
    text = model.text
    tokens = text.tokens([f"a photo of a {name}." for name in NAMES.values()])
    rows = text.embed(tokens.ids).clone()
    with torch.no_grad():
        model.prompts.text[0].normal_(generator=torch.Generator().manual_seed(1))
        rows[:, text.start_rows : text.start_rows + 2] = model.prompts.text[0]
        expected = text.run(rows, tokens.ends, {1: model.prompts.text[1]})
        torch.testing.assert_close(model.text_features(list(NAMES.values())), expected, rtol=0, atol=1e-12)


# ------------------------------------------------------------------------------------------------ invariants


@pytest.mark.parametrize("form", FORMS)
def test_logits_of_earlier_classes_stay_to_the_bit_and_are_loaded(backbone: FrozenViT, form: str) -> None:
    frozen = {name: value.clone() for name, value in backbone.state_dict().items()}
    model = made(backbone, **FORMS[form])
    learn(model, [0, 3])
    before, rows = logits(model), model.rows.clone()
    learn(model, [1, 2])
    assert torch.equal(model.rows[[0, 3]], rows[[0, 3]])
    assert torch.equal(logits(model)[:, [0, 3]], before[:, [0, 3]])
    assert all(torch.equal(value, frozen[name]) for name, value in backbone.state_dict().items())
    assert all(parameter.grad is None for parameter in backbone.parameters())
    other = MaPLeModel(backbone, **FORMS[form]).double()
    other.load_state_dict(model.method_state())
    assert torch.equal(logits(other), logits(model))
    assert set(other.trainable()) == set(model.trainable())
    assert other.names.shown(3) == "old stone house"


@pytest.mark.parametrize("form", FORMS)
def test_evaluation_changes_no_state_and_images_do_not_meet(backbone: FrozenViT, form: str) -> None:
    model = made(backbone, **FORMS[form], boundary_free=True)
    learn(model, [0, 3])
    state = {name: value.clone() for name, value in model.method_state().items()}
    together = logits(model)
    assert torch.equal(logits(model), together)
    alone = torch.cat([model(image[None]) for image in PICTURES])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-11)
    model.name_logits(PICTURES, ["wolf"])
    assert all(torch.equal(value, state[name]) for name, value in model.method_state().items())


@pytest.mark.parametrize("form", FORMS)
def test_a_column_depends_on_no_other_name(backbone: FrozenViT, form: str) -> None:
    model = made(backbone, **FORMS[form], rows="live", mask="seen")
    learn(model, [0, 3], ends=False)
    few = model.name_logits(PICTURES, ["cat", "red bird"])
    more = model.name_logits(PICTURES, ["old stone house", "red bird", "wolf", "cat"])
    torch.testing.assert_close(few, more[:, [3, 1]], rtol=0, atol=1e-11)
    torch.testing.assert_close(few[:, 0], logits(model)[:, 0], rtol=0, atol=1e-11)


@pytest.mark.parametrize("form", FORMS)
def test_a_step_moves_all_that_is_learned(backbone: FrozenViT, form: str) -> None:
    """In the released code of HiCroPL no map gets a gradient."""
    model = made(backbone, **FORMS[form])
    before = {name: value.detach().clone() for name, value in model.trainable().items()}
    learn(model, [0, 3], ends=False)
    # what adds the same to all keys of an attention changes nothing
    same = {name for name in before if name.endswith("in_proj_bias")}
    still = {name for name, value in model.trainable().items() if torch.equal(value, before[name])}
    assert still <= same
    assert {name.split(".")[1] for name in before if name != "weights"} == {
        "coupled": {"text", "maps"},
        "independent": {"text", "images"},
        "hierarchical": {"text", "images", "text_proxies", "image_proxies", "to_images", "to_text"},
        "text alone": {"text"},
    }[form]


# ------------------------------------------------------------------------------------------------ vision


@pytest.mark.parametrize("form", ["coupled", "independent", "hierarchical"])
def test_image_prompts_of_the_first_experience_are_used_from_then_on(backbone: FrozenViT, form: str) -> None:
    model = made(backbone, **FORMS[form])
    start = image_features(model)
    learn(model, [0, 3], ends=False)
    trained = image_features(model)
    assert not torch.allclose(trained, start)
    model.end_experience()
    assert torch.equal(image_features(model), trained)
    learn(model, [1, 2])
    assert torch.equal(image_features(model), trained)
    assert all(name.startswith("prompts.text.") for name in model.trainable())


def test_text_prompts_go_on_learning_behind_the_first_experience(backbone: FrozenViT) -> None:
    model = made(backbone)
    learn(model, [0, 3])
    before = [rows.detach().clone() for rows in model.prompts.text]
    learn(model, [1, 2])
    assert not any(map(torch.equal, model.prompts.text, before))


def test_image_prompts_that_are_trained_throughout_go_on_moving(backbone: FrozenViT) -> None:
    model = made(backbone, vision="train")
    learn(model, [0, 3])
    rows, before = model.rows.clone(), image_features(model)
    learn(model, [1, 2])
    assert not torch.allclose(image_features(model), before)
    assert torch.equal(model.rows[[0, 3]], rows[[0, 3]])


def test_without_image_prompts_images_are_those_of_the_frozen_tower(backbone: FrozenViT) -> None:
    model = made(backbone, vision="none")
    learn(model, [0, 3])
    assert torch.equal(image_features(model), backbone.project(backbone.features(PICTURES)))


@pytest.mark.parametrize(("vision", "drifts"), [("train", True), ("first", False), ("none", False)])
def test_class_statistics_tell_of_drift_where_images_go_on_moving(
    backbone: FrozenViT, vision: str, drifts: bool
) -> None:
    model = made(backbone, vision=vision).plug(Statistics("lda"))
    assert any("goes on to change" in note for note in model.notes()) == drifts


def test_counted_features_are_those_of_later_predictions(backbone: FrozenViT) -> None:
    model = made(backbone).plug(Statistics("ncm"))
    learn(model, [0, 3], ends=False)
    targets = torch.tensor([0, 3] * 3)
    model.end_experience(lambda: iter([(PICTURES, targets)]))
    learn(model, [1, 2], ends=False)
    features = F.normalize(image_features(model), dim=-1)
    plugged: Any = model.statistics
    torch.testing.assert_close(plugged.classes.sums[0], features[::2].sum(0), rtol=0, atol=1e-11)


def test_coordination_needs_image_prompts(backbone: FrozenViT) -> None:
    model = made(backbone).plug(Coordination())
    learn(model, [0, 3], ends=False)
    keys = model.coordination.keys["prompts"]
    assert [list(key.shape) for key in keys] == [[3, 1, 2, 36]]
    assert keys[0].grad is not None
    model.end_experience()
    assert not keys[0].requires_grad
    with pytest.raises(ClpromptError, match="offers no prompt tokens"):
        made(backbone, vision="none").plug(Coordination())


# ------------------------------------------------------------------------------------------------ couplings


@torch.no_grad()
def test_features_of_the_frozen_towers_are_added_to_those_of_the_prompted_ones(
    backbone: FrozenViT, tmp_path: Path
) -> None:
    path = tmp_path / "sentences.json"
    path.write_text(json.dumps({name: [f"a {name}", f"the big {name}"] for name in NAMES.values()}))
    model, plain = made(backbone, residual_features=str(path)), made(backbone)
    for each in (model, plain):
        each.begin_experience(range(6))
        each.observe(torch.arange(6))
    text, frozen = model.text, F.normalize(backbone.project(backbone.features(PICTURES)), dim=-1)
    images = F.normalize(F.normalize(image_features(plain), dim=-1) + frozen, dim=-1)
    added = [
        F.normalize(F.normalize(text.features([f"a {name}", f"the big {name}"]), dim=-1).mean(0), dim=0)
        for name in NAMES.values()
    ]
    texts = F.normalize(plain.live_rows(list(NAMES.values())) + torch.stack(added), dim=-1)
    torch.testing.assert_close(logits(model), backbone.scale * images @ texts.T, rtol=0, atol=1e-11)
    assert model.live_rows(["wolf"]).shape == (1, 12)


def test_a_class_without_texts_to_add_is_refused(backbone: FrozenViT, tmp_path: Path) -> None:
    path = tmp_path / "sentences.json"
    path.write_text(json.dumps({"cat": ["a small cat"]}))
    model = made(backbone, residual_features=str(path))
    told = 'residual_features .*sentences.json says nothing of class "dog"'
    with pytest.raises(ClpromptError, match=told):
        model.begin_experience([0, 1])
    with pytest.raises(ClpromptError, match=told):
        model.check_stream([[0], [1]])


def test_deeper_maps_start_equal(backbone: FrozenViT) -> None:
    first, second, third = made(backbone).prompts.maps
    assert torch.equal(second.weight, third.weight)
    assert not torch.equal(first.weight, second.weight)


@torch.no_grad()
def test_weights_of_prompts_scale_what_image_tokens_take_from_them(backbone: FrozenViT) -> None:
    model = made(backbone, decouple=True, length=3, init=None, depth=2)
    plain = made(backbone, length=3, init=None, depth=2)
    torch.testing.assert_close(image_features(model), image_features(plain), rtol=0, atol=0)
    assert model.weights is not None
    model.weights.fill_(0.3)
    vit: Any = backbone.vit
    first, second = model.image_rows()
    x, block = vit.norm_pre(vit._pos_embed(vit.patch_embed(PICTURES))), vit.blocks[0]
    columns = torch.cat([x, vit.norm_pre(first).expand(len(x), -1, -1)], dim=1)
    q, k, v = (
        part.unflatten(2, (2, -1)).transpose(1, 2)
        for part in block.attn.qkv(block.norm1(columns)).chunk(3, dim=2)
    )  # (B, H, N, d)
    shares = (q[:, :, : x.shape[1]] @ k.mT * q.shape[-1] ** -0.5).softmax(-1)
    shares[..., x.shape[1] :] *= 0.3
    x = x + block.attn.proj((shares @ v).transpose(1, 2).flatten(2))
    x = torch.cat([x + block.mlp(block.norm2(x)), second.expand(len(x), -1, -1)], dim=1)
    for block in vit.blocks[1:]:
        x = block(x)
    expected = backbone.project(vit.norm(x)[:, 0])
    torch.testing.assert_close(image_features(model), expected, rtol=0, atol=1e-12)


def attention(part: nn.MultiheadAttention, query: Tensor, given: tuple[Tensor, Tensor]) -> Tensor:
    """Head by head, without anything of torch's own attention."""
    weights, biases = part.in_proj_weight.chunk(3), part.in_proj_bias.chunk(3)
    q, k, v = (x @ weight.T + bias for x, weight, bias in zip((query, *given), weights, biases, strict=True))
    size = q.shape[1] // part.num_heads
    heads = []
    for head in range(part.num_heads):
        span = slice(head * size, (head + 1) * size)
        scores = (q[:, span] @ k[:, span].T / math.sqrt(size)).exp()
        heads.append(scores @ v[:, span] / scores.sum(1, keepdim=True))
    return torch.cat(heads, dim=1) @ part.out_proj.weight.T + part.out_proj.bias


def normed(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    centred = x - x.mean(1, keepdim=True)
    return centred / (centred.square().mean(1, keepdim=True) + norm.eps).sqrt() * norm.weight + norm.bias


def gathered(proxy: Proxy, rows: Tensor) -> Tensor:
    given = normed(proxy.norm, rows)
    token = proxy.token + attention(proxy.attention, normed(proxy.norm, proxy.token), (given, given))
    return normed(proxy.final_norm, token)


def mapped(mapper: Mapper, rows: Tensor, proxies: Tensor) -> Tensor:
    def linear(part: nn.Linear, x: Tensor) -> Tensor:
        return x @ part.weight.T + part.bias

    first, _, last = mapper.mlp
    x, keys, values = linear(mapper.query, rows), linear(mapper.key, proxies), linear(mapper.value, proxies)
    given = normed(mapper.norm, keys), normed(mapper.norm, values)
    x = x + attention(mapper.attention, normed(mapper.norm, x), given)
    hidden = linear(first, normed(mapper.mlp_norm, x))
    return x + linear(last, hidden / (1 + (-1.702 * hidden).exp()))


@torch.no_grad()
def test_hierarchical_prompts_are_those_of_a_slow_and_plain_form() -> None:
    """There are no values of released code, whose forward pass overwrites the prompts."""
    source = torch.Generator().manual_seed(4)
    text = [torch.randn(3, 24, generator=source) for _ in range(5)]
    coupling = Hierarchical(text, width=36, cross_block=2, seed=0).double()
    for parameter in coupling.parameters():
        parameter.add_(0.3 * torch.randn(parameter.shape, generator=source, dtype=torch.float64))
    texts, images = list(coupling.text), list(coupling.images)
    of_text = torch.cat([gathered(coupling.text_proxies[block], texts[block]) for block in (0, 1)])
    of_images = torch.cat([gathered(coupling.image_proxies[block - 2], images[block]) for block in (2, 3, 4)])
    for block in range(5):
        found_text, found_image = coupling.text_rows()[block], coupling.image_rows()[block]
        expected_text, expected_image = texts[block], images[block]
        if block < 2:
            expected_image = mapped(coupling.to_images, expected_image, of_text)
        else:
            expected_text = mapped(coupling.to_text, expected_text, of_images)
        torch.testing.assert_close(found_text, expected_text, rtol=0, atol=1e-11)
        torch.testing.assert_close(found_image, expected_image, rtol=0, atol=1e-11)


@pytest.fixture(scope="module")
def bench() -> Workbench:
    return Workbench(
        MaPLeModel,
        coupling="hierarchical",
        length=2,
        depth=3,
        init=None,
        vision="train",
        rows="live",
        statistics="ncm",
        compensate_drift=True,
    )


@pytest.mark.parametrize(
    "check",
    [check for check in testing.CHECKS if check.__name__ in ("check_resume", "check_number_formats")],
    ids=lambda check: check.__name__.removeprefix("check_"),
)
def test_hierarchical_prompts_with_class_statistics_keep_the_contract(bench: Workbench, check: Any) -> None:
    check(bench)


# ------------------------------------------------------------------------------------------------ refusals

BAD: list[tuple[dict[str, Any], str]] = [
    ({"length": 5}, 'length must be at most 4, the tokens of init="a photo of a"; got 5'),
    ({"init": " "}, 'init must be words, got " "'),
    ({"depth": 4}, "depth must be at most 3, the blocks of the text tower; got 4"),
    ({"depth": 0}, "depth must be .*at least 1"),
    ({"decouple": True, "vision": "none"}, "decouple=true .* got vision=none"),
    ({"decouple": True, "depth": 1}, "decouple=true .* got depth=1"),
    ({"residual_features": "nowhere.json"}, "residual_features: there is no file nowhere.json"),
    ({"cross_block": 1}, "cross_block belongs to coupling=hierarchical, got coupling=text_to_vision"),
    (
        {"coupling": "hierarchical", "cross_block": 3},
        "cross_block must be below 3, .*; got 3",
    ),
    ({"coupling": "hierarchical", "depth": 1}, "depth of at least 2"),
    ({"coupling": "hierarchical", "vision": "none"}, "needs image prompts; got vision=none"),
    (
        {"vision": "first", "boundary_free": True},
        "vision=first .* first experience ends",
    ),
    ({"rows": "frozen"}, 'rows must be .*got "?frozen'),
]


@pytest.mark.parametrize(("arguments", "told"), BAD, ids=lambda value: str(value)[:40])
def test_an_argument_without_a_meaning_is_refused_in_one_line(
    backbone: FrozenViT, arguments: dict[str, Any], told: str
) -> None:
    with pytest.raises(ClpromptError, match=told) as caught:
        MaPLeModel(backbone, **arguments)
    assert "\n" not in str(caught.value)


def test_a_name_that_does_not_fit_behind_its_prompts_is_refused_with_its_length(backbone: FrozenViT) -> None:
    model = MaPLeModel(backbone, length=16, init=None)
    with pytest.raises(ClpromptError, match=r'"dog or horse" is 22 tokens long .* takes at most 20'):
        model.name_classes({1: "dog or horse"})
