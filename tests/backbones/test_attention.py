"""The prompted block against attention written out in loops, and what must hold for every kind of prompt."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from inspect import signature

import pytest
import torch
from timm.layers import LayerNorm
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block
from torch import Tensor

from clprompt.backbones.attention import (
    BlockPrompt,
    project,
    project_stream,
    prompted_block,
    spelled_out,
    split_heads,
)

B, N, P, D = 3, 5, 4, 12
KINDS = ["prefix", "projected", "fresh", "carried"]
STYLES = {
    "plain": {"num_heads": 2, "qkv_bias": True},
    "one_head": {"num_heads": 1, "qkv_bias": True},
    "no_bias": {"num_heads": 3, "qkv_bias": False},
    "qk_norm": {"num_heads": 2, "qkv_bias": True, "qk_norm": True},
    "layer_scale": {"num_heads": 2, "qkv_bias": True, "init_values": 0.3},
    "inner_norms": {"num_heads": 2, "qkv_bias": True, "scale_attn_norm": True, "scale_mlp_norm": True},
}
exact = partial(torch.testing.assert_close, rtol=0, atol=1e-10)


def make_block(style: str = "plain", seed: int = 0) -> Block:
    """A frozen block whose every parameter is random, norms and scales included."""
    generator = torch.Generator().manual_seed(seed)
    block = Block(D, mlp_ratio=2, norm_layer=LayerNorm, **STYLES[style]).double().eval().requires_grad_(False)
    for parameter in block.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.5)
    return block


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mask_of(*shape: int, seed: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < 0.5


def make_prompt(kind: str, batch: int = B, *, size: int = P, seed: int = 1, **options) -> BlockPrompt:
    values = randn(batch, size, D, seed=seed + 1) if kind in ("prefix", "projected") else None
    return BlockPrompt(kind, randn(batch, size, D, seed=seed), values, **options)


# ---------------------------------------------------------------------- the oracle


def linear_part(block: Block, x: Tensor, part: int) -> Tensor:
    """Rows [n, D] through the part-th third of the qkv projection."""
    third = slice(part * D, (part + 1) * D)
    out = x @ block.attn.qkv.weight[third].T
    return out if block.attn.qkv.bias is None else out + block.attn.qkv.bias[third]


def pick(tensor: Tensor, b: int) -> Tensor:
    """What sample b gets from a tensor of one row for all, or of one row a sample."""
    return tensor[b if len(tensor) > 1 else 0]


def oracle(block: Block, x: Tensor, prompts: list[BlockPrompt]) -> Tensor:
    """One sample, one row, one head, one column at a time."""
    attn, heads = block.attn, block.attn.num_heads
    width = D // heads
    outputs = []
    for b in range(len(x)):
        stream = torch.cat(
            [x[b], *(pick(p.tokens, b) for p in prompts if p.kind == "carried" and p.tokens is not None)]
        )
        length = len(stream)
        h = block.norm1(stream)
        q, k, v = (linear_part(block, h, part) for part in range(3))
        rows = []
        for r in range(length):
            head_outputs = []
            for head in range(heads):
                chunk = slice(head * width, (head + 1) * width)
                query = attn.q_norm(q[r, chunk])
                weights, values = [], []
                for c in range(length):
                    visible = True
                    for p in prompts:
                        if p.kind == "carried" and p.mask is not None:
                            column = c - (length - p.mask.shape[-1])
                            visible = visible and (column < 0 or bool(pick(p.mask, b)[0, r, column]))
                    if visible:
                        weights.append((query @ attn.k_norm(k[c, chunk]) / width**0.5).exp())
                        values.append(v[c, chunk])
                for p in prompts:
                    span = range(length)[p.rows or slice(None)]
                    if p.kind == "carried" or p.tokens is None or r not in span:
                        continue
                    tokens = pick(p.tokens, b)
                    if p.kind == "prefix":
                        keys, vals = tokens[:, chunk], pick(p.values, b)[:, chunk]
                    else:
                        source = (
                            (block.norm1(tokens),) * 2 if p.kind == "fresh" else (tokens, pick(p.values, b))
                        )
                        keys = attn.k_norm(linear_part(block, source[0], 1)[:, chunk])
                        vals = linear_part(block, source[1], 2)[:, chunk]
                    for c in range(len(tokens)):
                        if p.mask is None or bool(pick(p.mask, b)[0, span.index(r), c]):
                            weights.append((query @ keys[c] / width**0.5).exp())
                            values.append(vals[c] * 0 if p.zero_values else vals[c])
                total = sum(weights)
                head_outputs.append(sum(w / total * value for w, value in zip(weights, values, strict=True)))
            rows.append(torch.cat(head_outputs))
        out = stream + block.ls1(attn.proj(attn.norm(torch.stack(rows))))
        outputs.append(out + block.ls2(block.mlp(block.norm2(out))))
    return torch.stack(outputs)


def test_the_oracle_is_the_bare_block_without_prompts():
    for style in STYLES:
        block, x = make_block(style), randn(B, N, D, seed=3)
        exact(oracle(block, x, []), block(x))


@pytest.mark.parametrize("batch", [1, B])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("style", STYLES)
def test_each_kind_equals_the_explicit_softmax(style, kind, batch):
    block, x, prompt = make_block(style), randn(B, N, D, seed=3), make_prompt(kind, batch)
    out = prompted_block(block, x, [prompt])
    assert out.shape == (B, N + (P if kind == "carried" else 0), D)
    exact(out, oracle(block, x, [prompt]))
    assert (out[:, :N] - block(x)).abs().max() > 1e-3


def test_a_mask_gives_the_bits_of_a_boolean_one(monkeypatch):
    block, x, masks = make_block().float(), randn(B, N, D, seed=3).float(), []
    fused = torch.nn.functional.scaled_dot_product_attention

    def boolean(*tensors: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        masks.append(attn_mask)
        return fused(*tensors, attn_mask=None if attn_mask is None else attn_mask == 0)

    for kind in KINDS:
        rows = N + P if kind == "carried" else N
        prompt = make_prompt(kind, mask=mask_of(B, 1, rows, P, seed=5))
        values = None if prompt.values is None else prompt.values.float()
        given = [replace(prompt, tokens=prompt.tokens.float(), values=values)]
        plain = prompted_block(block, x, given)
        with monkeypatch.context() as patch:
            patch.setattr(torch.nn.functional, "scaled_dot_product_attention", boolean)
            assert torch.equal(prompted_block(block, x, given), plain)
    assert all(mask.dtype == torch.float32 and mask.shape[2] in (N, N + P) for mask in masks)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("style", STYLES)
def test_attention_that_is_spelled_out_gives_the_same_rows(style, kind):
    block, x = make_block(style), randn(B, N, D, seed=3)
    length = N + P if kind == "carried" else N
    prompt = make_prompt(kind, mask=mask_of(B, 1, length, P, seed=5))
    rows = slice(2, length)
    attention = spelled_out(block, x, [prompt], rows)
    exact(attention.finish(attention.weights), prompted_block(block, x, [prompt], rows))
    exact(attention.weights.sum(-1), torch.ones(attention.weights.shape[:-1], dtype=torch.float64))
    assert (attention.weights[~attention.visible.expand_as(attention.weights)] == 0).all()


@pytest.mark.parametrize("style", ["plain", "qk_norm"])
def test_several_prompts_of_different_kinds_share_one_softmax(style):
    block, x = make_block(style), randn(B, N, D, seed=3)
    prompts = [
        make_prompt("prefix", 1, size=2, seed=10),
        make_prompt("fresh", B, size=3, seed=20, mask=mask_of(B, 1, N + 3, 3, seed=0)),
        make_prompt("carried", B, size=2, seed=30),
        make_prompt("carried", 1, size=1, seed=50),
        make_prompt("projected", B, size=1, seed=40),
    ]
    exact(prompted_block(block, x, prompts), oracle(block, x, prompts))


# ---------------------------------------------------------------------- masks, groups of rows, values of zero


@pytest.mark.parametrize("batch", [1, B])
@pytest.mark.parametrize("kind", KINDS)
def test_masks_hold_per_sample_and_per_row(kind, batch):
    block, x = make_block(), randn(B, N, D, seed=3)
    rows = N + (P if kind == "carried" else 0)
    prompt = make_prompt(kind, mask=mask_of(batch, 1, rows, P, seed=batch))
    exact(prompted_block(block, x, [prompt]), oracle(block, x, [prompt]))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", ["prefix", "projected", "fresh"])
def test_groups_of_rows_see_their_own_columns(kind, masked):
    block, x = make_block("qk_norm"), randn(B, N, D, seed=3)
    prompts = [
        make_prompt(kind, 1, size=2, seed=10, rows=slice(0, 2)),
        make_prompt(kind, B, size=3, seed=20, rows=slice(1, None)),
        make_prompt(kind, B, size=1, seed=30, rows=slice(-1, None), zero_values=True),
    ]
    if masked:
        prompts = [
            replace(p, mask=mask_of(B, 1, len(range(N)[p.rows]), p.tokens.shape[1], seed=i))
            for i, p in enumerate(prompts)
        ]
    exact(prompted_block(block, x, prompts), oracle(block, x, prompts))


@pytest.mark.parametrize("kind", ["prefix", "projected", "fresh"])
def test_zero_valued_columns_take_mass_and_give_nothing(kind):
    block, x = make_block(), randn(B, N, D, seed=3)
    prompt = make_prompt(kind, zero_values=True, mask=mask_of(B, 1, N, P, seed=5))
    exact(prompted_block(block, x, [prompt]), oracle(block, x, [prompt]))


@pytest.mark.parametrize("kind", ["prefix", "projected", "fresh"])
def test_complement_with_zero_values_is_a_mask_after_the_softmax(kind):
    block, x, mask = make_block("qk_norm"), randn(B, N, D, seed=3), mask_of(B, 1, N, P, seed=5)
    prompt = make_prompt(kind, 1)
    attn, h = block.attn, block.norm1(x)
    query, keys, values = project_stream(attn, h)
    if kind == "prefix":
        more = split_heads(prompt.tokens, attn), split_heads(prompt.values, attn)
    elif kind == "projected":
        more = project(attn, prompt.tokens, "k"), project(attn, prompt.values, "v")
    else:
        more = project(attn, block.norm1(prompt.tokens), "kv")
    pairs = zip((keys, values), more, strict=True)
    keys, values = (torch.cat([own, m.expand(B, -1, -1, -1)], 2) for own, m in pairs)
    weights = (query @ keys.mT / query.shape[-1] ** 0.5).softmax(-1)
    weights = weights * torch.cat([torch.ones(B, 1, N, N, dtype=torch.bool), mask], dim=-1)
    heads = (weights @ values).transpose(1, 2).flatten(2)
    expected = x + attn.proj(heads)
    expected = expected + block.mlp(block.norm2(expected))
    given = [replace(prompt, mask=mask), replace(prompt, mask=~mask, zero_values=True)]
    exact(prompted_block(block, x, given), expected)


def test_role_groups_equal_one_masked_call():
    block, x = make_block(), randn(B, N, D, seed=3)
    own, rest = mask_of(B, 1, 1, 2, seed=1), mask_of(B, 1, N - 1, 3, seed=2)
    tokens = randn(1, 5, D, seed=7)
    whole = torch.zeros(B, 1, N, 5, dtype=torch.bool)
    whole[:, :, :1, :2], whole[:, :, 1:, 2:] = own, rest
    groups = [
        BlockPrompt("fresh", tokens[:, :2], mask=own, rows=slice(0, 1)),
        BlockPrompt("fresh", tokens[:, 2:], mask=rest, rows=slice(1, None)),
    ]
    masked = prompted_block(block, x, [BlockPrompt("fresh", tokens, mask=whole)])
    exact(prompted_block(block, x, groups), masked)


def test_carried_tokens_may_be_masked_again_in_a_later_block():
    first, second = make_block(seed=0), make_block(seed=1)
    x, mask = randn(B, N, D, seed=3), mask_of(B, 1, N + P, P, seed=4)
    joining = make_prompt("carried", 1, mask=mask)
    again = BlockPrompt("carried", None, mask=mask)
    stream = prompted_block(first, x, [joining])
    out = prompted_block(second, stream, [again])
    exact(out, oracle(second, oracle(first, x, [joining]), [again]))
    assert (out - prompted_block(second, stream)).abs().max() > 1e-3
    exact(prompted_block(second, stream), second(stream))


def hidden_column():
    """A block, its input, a prompt whose third column no row may see, and one that has other tokens there."""
    block, x = make_block(), randn(B, N, D, seed=3)
    mask = mask_of(B, 1, N, P, seed=5)
    mask[..., 2] = False
    prompt = make_prompt("fresh", 1, mask=mask)
    noisy = replace(prompt, tokens=prompt.tokens.clone())
    noisy.tokens[:, 2] = 1e3 * randn(D, seed=9)
    return block, x, prompt, noisy


def test_a_column_that_no_row_may_see_changes_nothing():
    block, x, prompt, noisy = hidden_column()
    assert torch.equal(prompted_block(block, x, [prompt]), prompted_block(block, x, [noisy]))


def test_a_column_that_no_row_may_see_drains_mass_with_a_mask_after():
    block, x, prompt, noisy = hidden_column()
    drained = [
        prompted_block(block, x, [p, replace(p, mask=~prompt.mask, zero_values=True)])
        for p in (prompt, noisy)
    ]
    assert (drained[0] - drained[1]).abs().max() > 1e-3


# ---------------------------------------------------------------------- what holds for every kind


@pytest.mark.parametrize("style", STYLES)
def test_no_prompts_give_the_bare_block_bit_for_bit(style):
    block, x = make_block(style), randn(B, N, D, seed=3)
    bare = block(x)
    assert torch.equal(prompted_block(block, x), bare)
    for kind in KINDS:
        assert torch.equal(prompted_block(block, x, [make_prompt(kind, size=0)]), bare)
        if kind in ("fresh", "carried"):
            assert torch.equal(prompted_block(block, x, [BlockPrompt(kind, None)]), bare)


@pytest.mark.skipif("gated" not in signature(Attention).parameters, reason="this timm has no gated attention")
def test_a_gated_attention_keeps_its_gate():
    block, x = make_block(), randn(B, N, D, seed=3)
    block.attn = Attention(D, num_heads=2, qkv_bias=True, gated=True).double().eval()
    bare = block(x)
    exact(prompted_block(block, x), bare)
    exact(prompted_block(block, x, rows=slice(1, 3)), bare[:, 1:3])
    block.attn.gate.bias.data.fill_(-1e3)  # shut: no prompt gets through
    exact(prompted_block(block, x, [make_prompt("fresh")]), block(x))


@pytest.mark.parametrize("kind", KINDS)
def test_one_row_of_prompts_serves_the_whole_batch(kind):
    block, x, prompt = make_block(), randn(B, N, D, seed=3), make_prompt(kind, 1)
    copies = replace(
        prompt,
        tokens=prompt.tokens.expand(B, -1, -1),
        values=None if prompt.values is None else prompt.values.expand(B, -1, -1),
    )
    exact(prompted_block(block, x, [prompt]), prompted_block(block, x, [copies]))


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_prompts_does_not_matter(kind):
    block, x, prompt = make_block(), randn(B, N, D, seed=3), make_prompt(kind)
    order = torch.tensor([2, 0, 3, 1])
    values = None if prompt.values is None else prompt.values[:, order]
    shuffled = replace(prompt, tokens=prompt.tokens[:, order], values=values)
    out, other = prompted_block(block, x, [prompt]), prompted_block(block, x, [shuffled])
    exact(other[:, :N], out[:, :N])
    if kind == "carried":
        exact(other[:, N:], out[:, N:][:, order])
    elif prompt.values is not None:  # keys and values belong together
        torn = replace(prompt, tokens=prompt.tokens[:, order])
        assert (prompted_block(block, x, [torn]) - out).abs().max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_does_not_see_its_batch_companions(kind):
    block, x = make_block(), randn(B, N, D, seed=3)
    rows = N + (P if kind == "carried" else 0)
    prompt = make_prompt(kind, mask=mask_of(B, 1, rows, P, seed=1))
    out = prompted_block(block, x, [prompt])
    for b in range(B):
        one = slice(b, b + 1)
        alone = replace(
            prompt,
            tokens=prompt.tokens[one],
            values=None if prompt.values is None else prompt.values[one],
            mask=prompt.mask[one],
        )
        exact(prompted_block(block, x[one], [alone]), out[one])
    reverse = replace(
        prompt,
        tokens=prompt.tokens.flip(0),
        values=None if prompt.values is None else prompt.values.flip(0),
        mask=prompt.mask.flip(0),
    )
    exact(prompted_block(block, x.flip(0), [reverse]).flip(0), out)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_the_prompts_and_no_weight(kind):
    block, x, prompt = make_block("qk_norm"), randn(B, N, D, seed=3), make_prompt(kind)
    rows = N + (P if kind == "carried" else 0)
    prompt = replace(prompt, mask=mask_of(B, 1, rows, P, seed=1))
    leaves = [t.requires_grad_() for t in (prompt.tokens, prompt.values) if t is not None]
    probe = randn(B, rows, D, seed=8)
    ours = torch.autograd.grad((prompted_block(block, x, [prompt]) * probe).sum(), leaves)
    theirs = torch.autograd.grad((oracle(block, x, [prompt]) * probe).sum(), leaves)
    for own, expected in zip(ours, theirs, strict=True):
        assert own.abs().max() > 1e-3
        exact(own, expected)
    assert all(parameter.grad is None for parameter in block.parameters())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [slice(0, 1), slice(1, 4), slice(-2, None), slice(0, None)])
def test_asking_for_some_rows_gives_those_rows(kind, rows):
    block, x = make_block("qk_norm"), randn(B, N, D, seed=3)
    length = N + (P if kind == "carried" else 0)
    prompts = [make_prompt(kind, mask=mask_of(B, 1, length, P, seed=1))]
    if kind != "carried":
        prompts.append(make_prompt(kind, 1, seed=50, rows=slice(2, None)))
        prompts.append(make_prompt(kind, 1, seed=60, rows=slice(0, 1), mask=mask_of(1, 1, 1, P, seed=2)))
    exact(prompted_block(block, x, prompts, rows), prompted_block(block, x, prompts)[:, rows])


@pytest.mark.parametrize("kind", ["prefix", "projected", "fresh"])
def test_key_norm_applies_to_all_keys_but_prefixes(kind):
    block, x = make_block("qk_norm"), randn(B, N, D, seed=3)
    block.attn.k_norm.eps = 0.0
    block.attn.qkv.bias[D : 2 * D] = 0
    block.norm1.eps = 0.0
    block.norm1.bias.zero_()
    prompt = make_prompt(kind)
    longer = replace(prompt, tokens=7 * prompt.tokens)
    change = (prompted_block(block, x, [longer]) - prompted_block(block, x, [prompt])).abs().max()
    assert change > 1e-2 if kind == "prefix" else change < 1e-10


@pytest.mark.parametrize("style", STYLES)
def test_projections_are_thirds_of_the_block_s_own(style):
    block = make_block(style)
    attn, h = block.attn, block.norm1(randn(B, N, D, seed=3))
    query, keys, values = project_stream(attn, h)
    exact(project(attn, h, "q"), query)
    exact(project(attn, h, "k"), keys)
    exact(project(attn, h, "v"), values)
    for part, expected in zip(project(attn, h, "kv"), (keys, values), strict=True):
        exact(part, expected)
    exact(values, split_heads(linear_part(block, h.flatten(0, 1), 2).unflatten(0, (B, N)), attn))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("style", ["plain", "qk_norm", "layer_scale"])
def test_bf16_autocast_stays_finite_and_close(style, kind):
    block, x = make_block(style).float(), randn(B, N, D, seed=3).float()
    rows = N + (P if kind == "carried" else 0)
    prompt = make_prompt(kind, 1)
    prompt = replace(
        prompt,
        tokens=prompt.tokens.float().requires_grad_(),
        values=None if prompt.values is None else prompt.values.float(),
        mask=mask_of(B, 1, rows, P, seed=1),
    )
    full = prompted_block(block, x, [prompt])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = prompted_block(block, x, [prompt])
    torch.testing.assert_close(out.float(), full, rtol=0.05, atol=0.05 * full.abs().max().item())
    out.float().square().sum().backward()
    assert prompt.tokens.grad.isfinite().all()
    assert prompt.tokens.grad.dtype == torch.float32
