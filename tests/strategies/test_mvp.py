import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer

from clprompt.backbones.vit import FrozenViT
from clprompt.errors import ConfigError, ProtocolError
from clprompt.strategies.mvp import MVPModel
from clprompt.training import optim
from clprompt.training.steps import receive, train_step

TINY = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 3, "num_heads": 2, "num_classes": 0}


def backbone(**changes) -> FrozenViT:
    torch.manual_seed(0)
    return FrozenViT(VisionTransformer(**{**TINY, **changes}))


def build(**arguments) -> MVPModel:
    chosen = {"pool_size": 4, "g_layers": (0,), "e_layers": (1, 2), "e_length": 3, **arguments}
    return MVPModel(backbone(), **chosen)


def batch(size=6, classes=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(size, 3, 8, 8, generator=generator)
    return images, torch.randint(0, classes, (size,), generator=generator)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("masked", [True, False])
def test_focal_weights_equal_those_of_one_backward_pass_per_sample(seed, masked):
    model = build(logit_mask=masked).double()
    generator = torch.Generator().manual_seed(seed)
    model.observe(torch.arange(7))
    model.seen[5] = False
    with torch.no_grad():
        model.head.weight.normal_(generator=generator)
    feature = torch.randn(12, 16, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, 5, (12,), generator=generator)
    factors = 2 * torch.rand(12, 7, generator=generator, dtype=torch.float64)
    factors = factors if masked else factors.new_ones(())
    logits = (model.logits(feature) * factors).masked_fill(~model.seen, float("-inf"))
    losses = F.cross_entropy(logits, targets, reduction="none")
    (mean,) = torch.autograd.grad(losses.mean(), model.head.weight, retain_graph=True)
    expected = []
    for loss, target in zip(losses, targets, strict=True):
        (own,) = torch.autograd.grad(loss, model.head.weight, retain_graph=True)
        ignored = 1 - F.cosine_similarity(own[target], mean[target], dim=0)
        expected.append(0.5 + 0.5 * ignored**2)
    found = model.focal_weights(feature, logits.detach(), factors, targets)
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-10, atol=1e-10)


def test_counts_advance_once_per_training_step_and_never_in_forward():
    model = build()
    images, targets = batch()
    model.observe(targets)
    for mode in (True, False):
        model.train(mode)
        model(images)
        model.encode(images)
    assert model.counts.sum() == 0
    model.train()
    for step in range(1, 4):
        model.training_loss(images, targets)
        assert model.counts.sum() == step * len(images)


def test_three_iterations_on_a_batch_count_three_times():
    model = build()
    images, targets = batch()
    optimizer = optim.build(model)
    receive(model, optimizer, targets)
    sizes = set()
    for _ in range(3):
        train_step(model, optimizer, images, targets)
        sizes.add(model.state_size())
    assert len(sizes) == 1
    assert model.counts.sum() == 18
    assert "counts" in model.method_state()


def test_classes_that_arrive_later_leave_what_was_learnt_alone():
    model = build()
    images, targets = batch(classes=3)
    optimizer = optim.build(model, lr=0.01)
    receive(model, optimizer, targets)
    for _ in range(2):
        train_step(model, optimizer, images, targets)
    old, counts = model.masks.detach().clone(), model.counts.clone()
    moments = {key: value.clone() for key, value in optimizer.state[model.masks].items()}
    receive(model, optimizer, torch.tensor([8]))
    assert model.masks.shape == (4, 9)
    assert torch.equal(model.masks[:, : old.shape[1]], old)
    assert (model.masks[:, old.shape[1] :] == -1).all()
    assert torch.equal(model.counts, counts)
    grown = optimizer.state[model.masks]
    for key in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(grown[key][:, : old.shape[1]], moments[key])
        assert (grown[key][:, old.shape[1] :] == 0).all()
    assert grown["step"] == moments["step"]
    train_step(model, optimizer, images, targets)
    assert model.counts.sum() == 18


def test_a_saved_state_of_more_classes_loads_into_a_new_model():
    model, other = build(), build(seed=1)
    images, targets = batch()
    model.observe(targets)
    model.training_loss(images, targets)
    other.load_state_dict(model.method_state())
    assert torch.equal(other.counts, model.counts)
    torch.testing.assert_close(other.eval()(images), model.eval()(images), rtol=0, atol=0)


@pytest.mark.parametrize("variant", ["prompt", "prefix"])
def test_a_batch_of_one_trains(variant):
    model = build(variant=variant)
    images, targets = batch(1)
    model.observe(targets)
    step = model.training_loss(images, targets)
    step.loss.backward()
    assert step.loss.isfinite()
    assert step.logits.shape == (1, model.num_classes)


def test_unseen_classes_leave_loss_and_gradients_finite():
    model = build()
    images, targets = batch(classes=3)
    model.observe(torch.cat([targets, torch.tensor([9])]))
    model.seen[9] = False
    step = model.training_loss(images, targets)
    step.loss.backward()
    assert step.logits[:, 9].eq(float("-inf")).all()
    assert step.loss.isfinite()
    assert all(p.grad.isfinite().all() for p in model.trainable().values())


def test_what_trains_what():
    model = build()
    images, targets = batch()
    model.observe(targets)
    chosen = model.select(model._query(images, None)[1])[1].unique()
    model.training_loss(images, targets).loss.backward()
    idle = torch.ones(4, dtype=torch.bool).index_fill(0, chosen, False)
    assert (model.masks.grad[idle] == 0).all()
    assert (model.e_prompts.grad[idle] == 0).all()
    assert (model.keys.grad.norm(dim=1) > 0).all()  # the contrastive term moves all keys
    assert all(p.grad is None for p in model.backbone.parameters())
    without = build(contrastive_weight=0.0)
    without.observe(targets)
    without.training_loss(images, targets).loss.backward()
    assert (without.keys.grad == 0).all()  # classification does not reach them


def test_a_prediction_does_not_depend_on_its_batch_companions():
    model = build().eval()
    images, targets = batch(8)
    model.observe(targets)
    model.counts += torch.tensor([3, 0, 7, 1])
    alone = torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(model(images), alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("query", ["penultimate", "last", "features"])
def test_a_cached_query_gives_the_same_bits_and_a_shared_stem_the_same_values(query):
    model = build(query=query, g_layers=(), e_layers=(1,)).eval()
    images, targets = batch()
    model.observe(targets)
    cached = {}
    first = model(images, cached)
    key = "features" if query == "features" else f"{query} class token"
    assert {name: value.shape for name, value in cached.items()} == {key: (6, 16)}
    assert torch.equal(model(images, cached), first)
    model.backbone.share_prefix = model.backbone.trim_last_block = False
    torch.testing.assert_close(model(images), first)


def test_without_any_prompts_keys_and_masks_still_learn():
    model = build(g_layers=(), e_layers=())
    images, targets = batch()
    model.observe(targets)
    model.training_loss(images, targets).loss.backward()
    assert model.masks.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"top_k": 2}, "top_k is no argument: the method uses one slot per image"),
        ({"pool_size": 0}, "pool_size must be at least 1, got 0"),
        ({"e_length": 0}, "e_length"),
        ({"e_layers": (2, 3)}, "block 3 is not among 0..2"),
        ({"g_layers": (0, 0)}, "names a block twice"),
        ({"margin": 0.0}, "margin must be above 0"),
        ({"alpha": 2.0}, "alpha must be at least 0 and at most 1, got 2.0"),
        ({"mask": False}, '"none", got false; the former mask is now called logit_mask$'),
        ({"mask": "experience"}, '^mask must be one of "seen", "batch", "none", got "experience"'),
        ({"variant": "deep"}, 'variant must be one of "prompt", "prefix", got "deep"'),
    ],
)
def test_an_argument_that_does_not_fit_is_one_clear_line(arguments, words):
    with pytest.raises(ConfigError, match=words) as caught:
        build(**arguments)
    assert "\n" not in str(caught.value)


def test_a_backbone_without_class_token_needs_the_pooled_query():
    pooled = backbone(class_token=False, global_pool="avg")
    with pytest.raises(ConfigError, match='use query="features"'):
        MVPModel(pooled, e_layers=(2,))
    model = MVPModel(pooled, e_layers=(2,), query="features")
    images, targets = batch()
    model.observe(targets)
    assert model.training_loss(images, targets).loss.isfinite()


def test_labels_that_it_cannot_train_on_are_refused():
    model = build()
    images, targets = batch()
    with pytest.raises(ProtocolError, match="never observed"):
        model.training_loss(images, targets)
    model.observe(targets)
    with pytest.raises(ProtocolError, match="multi-hot"):
        model.training_loss(images, F.one_hot(targets, 5))
