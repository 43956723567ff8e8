"""L2P, DualPrompt, CODA-Prompt, VPT-deep, linear probe and NCM written directly on the shared mechanics."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from devices import DEVICE
from torch import Tensor

from clprompt.backbones.attention import BlockPrompt

DTYPES = [torch.float64, torch.float32]
FLOAT64 = torch.float64


@pytest.fixture(params=DTYPES, ids=["float64", "float32"])
def base(request, golden):
    return golden("baselines", request.param)


def cosine(query: Tensor, keys: Tensor) -> Tensor:
    return F.normalize(query, dim=-1) @ F.normalize(keys, dim=-1).T


def allowed_classes(base, run: str) -> Tensor | None:
    allowed = torch.zeros(10, dtype=torch.bool, device=DEVICE)
    if run in ("train", "experience"):
        allowed[base["current_classes"]] = True
    elif run in ("online_batch", "batch"):
        allowed[base["online_labels"]] = True
    else:
        allowed = base["seen"].bool()
    return allowed


def masked(base, run: str, logits: Tensor) -> Tensor:
    return logits.masked_fill(~allowed_classes(base, run), float("-inf"))


def batch_of(base, run: str) -> tuple[Tensor, Tensor | None]:
    if run == "eval":
        return base["eval_images"], None
    return base["images"], base["labels"] if run == "train" else base["online_labels"]


def check_gradients(base, prefix: str, loss: Tensor, leaves: dict[str, Tensor]) -> None:
    """Gradients are compared in float64 only; every stored gradient must be covered."""
    assert {key.removeprefix(prefix) for key in base.keys(prefix)} == set(leaves)
    if base.dtype != FLOAT64:
        return
    grads = torch.autograd.grad(loss, list(leaves.values()), retain_graph=True, allow_unused=True)
    for (name, leaf), grad in zip(leaves.items(), grads, strict=True):
        base.check(torch.zeros_like(leaf) if grad is None else grad, prefix + name)


def test_query_is_the_pooled_feature_of_the_bare_model(base):
    backbone = base.backbone()
    base.check(backbone.features(base["images"]), "query")
    base.check(backbone.features(base["eval_images"]), "eval_query")


# ---------------------------------------------------------------------- L2P: carried prompts


def l2p(base, backbone, images: Tensor, prompt: Tensor, key: Tensor) -> dict[str, Tensor]:
    tokens = backbone.embed(images)
    similarity = cosine(backbone.features(tokens), key)
    chosen = similarity.topk(int(base["l2p.top_k"]), dim=1).indices  # (B, k)
    carried = prompt[chosen].flatten(1, 2) + backbone.class_position()  # (B, k * len, D)

    def prompts(block: int, x: Tensor) -> BlockPrompt | None:
        return BlockPrompt("carried", carried) if block == 0 else None

    out = backbone.norm(backbone.run(tokens, prompts))  # (B, N + k * len, D)
    own = slice(backbone.num_tokens, None)
    trimmed = backbone.norm(backbone.run(tokens, prompts, rows=own))
    torch.testing.assert_close(trimmed, out[:, own])
    return {
        "similarity": similarity,
        "selected": chosen,
        "feature": trimmed.mean(1),
        "token": out[:, 0],
        "token_prompt": torch.cat([out[:, :1], out[:, own]], dim=1).mean(1),
    }


@pytest.mark.parametrize("run", ["train", "eval", "online_seen", "online_batch"])
def test_l2p_logits_losses_and_gradients(base, run):
    backbone = base.backbone()
    images, labels = batch_of(base, run)
    leaves = {"prompt": base.leaf("l2p.prompt"), "key": base.leaf("l2p.key")}
    leaves |= {name: base.leaf(name) for name in ("head.weight", "head.bias")}
    head = leaves["head.weight"], leaves["head.bias"]
    out = l2p(base, backbone, images, leaves["prompt"], leaves["key"])
    logits = F.linear(out["feature"], *head)
    prefix = f"l2p.{run}."
    for name in ("similarity", "selected", "feature"):
        base.check(out[name], prefix + name)
    base.check(logits, prefix + "logits")
    base.check(masked(base, run, logits), prefix + "logits_masked")
    if labels is None:
        base.check(F.linear(out["token"], *head), prefix + "logits_token")
        base.check(F.linear(out["token_prompt"], *head), prefix + "logits_token_prompt")
        return
    ce = F.cross_entropy(masked(base, run, logits), labels)
    pull = out["similarity"].gather(1, out["selected"]).sum(1).mean()
    base.check(ce, prefix + "loss_ce")
    base.check(pull, prefix + "pull_similarity")
    loss = ce - base["l2p.pull"] * pull
    base.check(loss, prefix + "loss")
    check_gradients(base, prefix + "grad.", loss, leaves)


def test_l2p_without_a_majority_vote_over_the_batch(base):
    out = l2p(base, base.backbone(), base["eval_images"], base["l2p.prompt"], base["l2p.key"])
    assert not torch.equal(out["selected"], base["bug.l2p_vote.selected"])
    base.differs(F.linear(out["feature"], base["head.weight"], base["head.bias"]), "bug.l2p_vote.logits", 0.1)


# ---------------------------------------------------------------------- DualPrompt: prefixes


def gather(e_prompt: Tensor, chosen: Tensor) -> Tensor:
    """[L, 2, S, P, H, d], [B] -> [L, 2, B, P, H, d]: no axis moves, so none can be mixed."""
    return e_prompt[:, :, chosen]


def slipped(e_prompt: Tensor, chosen: Tensor) -> Tensor:
    """The well-known slip: read as [L, B, 2, ...] without moving the batch axis; back to [L, 2, B, ...]."""
    right = gather(e_prompt, chosen)
    return right.reshape(len(right), len(chosen), 2, *right.shape[3:]).transpose(1, 2)


def dualprompt(base, backbone, images: Tensor, leaves: dict[str, Tensor], run: str, pick=gather):
    g_layers, e_layers = base["dual.g_layers"].tolist(), base["dual.e_layers"].tolist()
    stem = backbone.stem(images, min(g_layers))
    similarity = cosine(backbone.features(stem, start=min(g_layers)), leaves["key"])
    if run == "train":
        chosen = torch.full((len(images),), int(base["task"]), device=DEVICE)
    else:
        chosen = similarity.argmax(1)
    expert = pick(leaves["e_prompt"], chosen)  # (L, 2, B, P, H, d)
    general = leaves["g_prompt"]  # (L, 2, P, H, d)

    def prompts(block: int, x: Tensor) -> BlockPrompt | None:
        if block in g_layers:
            keys, values = general[g_layers.index(block)][:, None].flatten(-2)
        elif block in e_layers:
            keys, values = expert[e_layers.index(block)].flatten(-2)
        else:
            return None
        return BlockPrompt("prefix", keys, values)

    feature = backbone.prompted(stem, prompts, start=min(g_layers))
    return similarity, chosen, expert, feature


def dual_leaves(base) -> dict[str, Tensor]:
    leaves = {name: base.leaf(f"dual.{name}") for name in ("g_prompt", "e_prompt", "key")}
    return leaves | {name: base.leaf(name) for name in ("head.weight", "head.bias")}


@pytest.mark.parametrize("run", ["train", "eval", "online_seen", "online_batch"])
def test_dualprompt_logits_losses_and_gradients(base, run):
    images, labels = batch_of(base, run)
    leaves = dual_leaves(base)
    similarity, chosen, expert, feature = dualprompt(base, base.backbone(), images, leaves, run)
    logits = F.linear(feature, leaves["head.weight"], leaves["head.bias"])
    prefix = f"dual.{run}."
    base.check(similarity, prefix + "similarity")
    base.check(chosen[:, None], prefix + "selected")
    base.check(feature, prefix + "feature")
    base.check(logits, prefix + "logits")
    base.check(masked(base, run, logits), prefix + "logits_masked")
    if labels is None:
        base.check(expert.transpose(1, 2), prefix + "e_prefix")
        return
    ce = F.cross_entropy(masked(base, run, logits), labels)
    pull = similarity.gather(1, chosen[:, None]).mean()
    base.check(ce, prefix + "loss_ce")
    base.check(pull, prefix + "pull_similarity")
    loss = ce - base["dual.pull"] * pull
    base.check(loss, prefix + "loss")
    check_gradients(base, prefix + "grad.", loss, leaves)


@pytest.mark.parametrize(("run", "gap"), [("train", 0.5), ("eval", 1.0), ("online_seen", 0.7)])
def test_dualprompt_does_not_mix_the_batch_and_key_value_axes(golden, run, gap):
    base = golden("baselines")
    images, _ = batch_of(base, run)
    leaves, backbone = dual_leaves(base), base.backbone()

    def logits(pick) -> Tensor:
        feature = dualprompt(base, backbone, images, leaves, run, pick)[-1]
        return F.linear(feature, base["head.weight"], base["head.bias"])

    base.differs(logits(gather), f"bug.dual.{run}.logits", gap)
    base.check(logits(slipped), f"bug.dual.{run}.logits")  # so the comparison can tell the two apart
    if run == "eval":
        expert = dualprompt(base, backbone, images, leaves, run)[2].transpose(1, 2)
        base.differs(expert, "bug.dual.eval.e_prefix", 1.0)


def test_dualprompt_logits_do_not_depend_on_batch_companions(base):
    images, leaves, backbone = base["eval_images"], dual_leaves(base), base.backbone()

    def logits(part: Tensor) -> Tensor:
        feature = dualprompt(base, backbone, part, leaves, "eval")[-1]
        return F.linear(feature, base["head.weight"], base["head.bias"])

    five, single = logits(images[:5]), torch.cat([logits(image[None]) for image in images])
    base.check(five, "dual.eval_first5.logits")
    base.check(single, "dual.eval_single.logits")
    base.check(single, "dual.eval.logits")
    base.check(single, "bug.dual.eval_single.logits")  # one at a time even the slip is harmless
    base.differs(five, "bug.dual.eval_first5.logits", 0.5)


# ---------------------------------------------------------------------- CODA-Prompt: weighted prefixes


def coda_weights(query: Tensor, attention: Tensor, keys: Tensor) -> Tensor:
    """cos(q * A_m, K_m) for all components: [B, D], [M, D], [M, D] -> [B, M], without a [B, M, D] tensor."""
    norms = ((query * query) @ (attention * attention).T).sqrt().clamp_min(1e-12)
    return query @ (attention * F.normalize(keys, dim=-1)).T / norms


def coda(backbone, images: Tensor, components: dict[str, Tensor]):
    """Components K, A [L, M, D] and P [L, M, len, D], one layer per block from block 0."""
    tokens = backbone.embed(images)
    query = backbone.features(tokens)
    layers = len(components["K"])
    alpha = [coda_weights(query, components["A"][layer], components["K"][layer]) for layer in range(layers)]
    prefix = [
        torch.einsum("bm,mld->bld", alpha[layer], components["P"][layer]).chunk(2, dim=1)
        for layer in range(layers)
    ]

    def prompts(block: int, x: Tensor) -> BlockPrompt | None:
        return BlockPrompt("prefix", *prefix[block]) if block < layers else None

    feature = backbone.prompted(tokens, prompts)
    return torch.stack(alpha), torch.stack([torch.stack(pair, dim=1) for pair in prefix]), feature


def orthogonality(rows: Tensor) -> Tensor:
    """Mean over all entries of (X X^T - I)^2."""
    rows = rows.flatten(1)
    return (rows @ rows.T - torch.eye(len(rows), dtype=rows.dtype, device=DEVICE)).square().mean()


def test_coda_factored_weights_equal_the_cosine_of_every_pair(golden):
    base = golden("baselines")
    query, attention, keys = base["query"], base["coda.A"][0], base["coda.K"][0]
    oracle = F.cosine_similarity(query[:, None] * attention[None], keys[None], dim=-1)
    torch.testing.assert_close(
        coda_weights(query, attention[:6], keys[:6]), oracle[:, :6], rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("run", ["train", "online_seen"])
def test_coda_logits_losses_and_gradients(base, run):
    images, labels = batch_of(base, run)
    leaves = {name: base.leaf(f"coda.{name}") for name in "KAP"}
    if run == "train":  # rows 0..3 are of earlier experiences: they take part and are not trained
        active = {n: torch.cat([leaf[:, :4].detach(), leaf[:, 4:6]], dim=1) for n, leaf in leaves.items()}
    else:
        for name, leaf in leaves.items():
            leaf.data[:, 6:] = base[f"coda.online.rows_6_to_9.{name}"]
        active = leaves
    leaves |= {name: base.leaf(name) for name in ("head.weight", "head.bias")}
    alpha, prefix, feature = coda(base.backbone(), images, active)
    logits = F.linear(feature, leaves["head.weight"], leaves["head.bias"])
    key = f"coda.{run}."
    base.check(alpha, key + "alpha")
    base.check(prefix, key + "prefix")
    base.check(feature, key + "feature")
    base.check(logits, key + "logits")
    base.check(masked(base, run, logits), key + "logits_masked")
    loss = F.cross_entropy(masked(base, run, logits), labels)
    base.check(loss, key + "loss_ce")
    base.check(loss, key + "loss")
    check_gradients(base, key + "grad.", loss, leaves)

    terms = torch.stack([torch.stack([orthogonality(rows) for rows in active[n]]) for n in "KAP"], dim=1)
    base.check(terms, key + "ortho_terms", scaled=1e-5)
    penalty = base["coda.ortho_mu"] * terms.sum()
    base.check(penalty, key + "ortho_loss", scaled=1e-5)
    base.check(loss + penalty, key + "loss_ortho", scaled=1e-5)
    check_gradients(base, key + "grad_ortho.", loss + penalty, leaves)


@pytest.mark.parametrize(("run", "rows"), [("eval", 6), ("expand.eval", 8), ("expand_uniform.eval", 8)])
def test_coda_evaluates_with_all_components_so_far(base, run, rows):
    components = {name: base[f"coda.{name}"][:, :rows] for name in "KAP"}
    if run == "expand.eval":
        components = {name: base[f"coda.expand.after.{name}"][:, :rows] for name in "KAP"}
    elif run == "expand_uniform.eval":
        for name, value in components.items():
            value[:, 6:] = base[f"coda.expand_uniform.new_rows.{name}"]
    alpha, prefix, feature = coda(base.backbone(), base["eval_images"], components)
    logits = F.linear(feature, base["head.weight"], base["head.bias"])
    for name, value in (("alpha", alpha), ("prefix", prefix), ("feature", feature), ("logits", logits)):
        base.check(value, f"coda.{run}.{name}")


# ---------------------------------------------------------------------- VPT-deep: fresh tokens


def vpt(backbone, images: Tensor, prompt: Tensor) -> Tensor:
    return backbone.prompted(
        backbone.embed(images), lambda block, x: BlockPrompt("fresh", prompt[block][None])
    )


def test_vpt_deep_logits_losses_and_gradients(base):
    backbone = base.backbone()
    leaves = {"prompt": base.leaf("vpt.prompt")}
    leaves |= {name: base.leaf(name) for name in ("head.weight", "head.bias")}
    head = leaves["head.weight"], leaves["head.bias"]
    feature = vpt(backbone, base["images"], leaves["prompt"])
    logits = F.linear(feature, *head)
    base.check(feature, "vpt.train.feature")
    base.check(logits, "vpt.train.logits")
    loss = F.cross_entropy(masked(base, "train", logits), base["labels"])
    base.check(loss, "vpt.train.loss")
    check_gradients(base, "vpt.train.grad.", loss, leaves)
    base.check(F.linear(vpt(backbone, base["eval_images"], leaves["prompt"]), *head), "vpt.eval.logits")


# ---------------------------------------------------------------------- linear probe and nearest class mean


def test_linear_probe_losses_and_gradients_under_every_mask(base):
    backbone = base.backbone()
    leaves = {name: base.leaf(name) for name in ("head.weight", "head.bias")}
    logits = F.linear(backbone.features(base["images"]), *leaves.values())
    base.check(logits, "linear.logits")
    base.check(F.linear(backbone.features(base["eval_images"]), *leaves.values()), "linear.eval.logits")
    for mask in ("experience", "seen", "batch", "none"):
        labels = base["labels"] if mask == "experience" else base["online_labels"]
        loss = F.cross_entropy(logits if mask == "none" else masked(base, mask, logits), labels)
        base.check(loss, f"linear.{mask}.loss")
        check_gradients(base, f"linear.{mask}.grad.", loss, leaves)


def test_nearest_class_mean_from_float64_sums(base):
    backbone, labels = base.backbone(), base["online_labels"]
    counts = torch.bincount(labels, minlength=10)
    base.check(counts, "ncm.counts")
    sums = torch.zeros(10, 32, dtype=FLOAT64, device=DEVICE)
    sums.index_add_(0, labels, backbone.features(base["images"]).double())
    means = sums / counts[:, None].clamp_min(1)
    base.check(sums.to(base.dtype), "ncm.sums", scaled=1e-5)
    base.check(means.to(base.dtype), "ncm.means", scaled=1e-5)
    query = backbone.features(base["eval_images"]).double()
    empty = (counts == 0)[None]
    similarity = cosine(query, means).masked_fill(empty, float("-inf"))
    distance = (-torch.cdist(query, means).square()).masked_fill(empty, float("-inf"))
    base.check(similarity.to(base.dtype), "ncm.eval.logits_cosine")
    base.check(distance.to(base.dtype), "ncm.eval.logits_euclidean", scaled=1e-5)
