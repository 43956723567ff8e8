"""A training step of released code beside ours: same prompts, same images, same optimizer, in one process.

Nothing of that code is shipped: give the folder of a checkout of yours, at the commit that was tried if in
doubt; what is not given is left out. Its own modules and its own loss are run, as its training loop runs them
for the first ten classes (forward, loss, backward, optimizer), without its data, logs and gradient clipping.
Each adapter below makes them of the size of the timm model that is asked for, with random weights and a
choice of prompts per image, not by vote over the batch. What a checkout needs beside that is put right in
memory only and said at its place.

=============  ========================  ===========================================  ======================
option         repository                methods                                      tried at
=============  ========================  ===========================================  ======================
--pilot        LAMDA-CL/LAMDA-PILOT      l2p, dualprompt, coda_prompt                 5240714
--mammoth      aimagelab/mammoth         l2p, dualprompt, coda_prompt                 e75a491
--si-blurry    moonjunyyy/Si-Blurry      mvp                                          c4024ce
=============  ========================  ===========================================  ======================

python -m benchmarks.peers [--pilot DIR] [--mammoth DIR] [--si-blurry DIR] [--methods l2p,mvp]
                           [--model vit_tiny_patch16_224] [--batch 8] [--pairs 9] [--threads 1] [--out FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import statistics
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.speed import CLASSES, interleaved, make_model, ratio, shown
from clprompt import FrozenViT, PromptModel
from clprompt.prompting.model import Cache
from clprompt.training import optim
from clprompt.training.settings import Training
from clprompt.training.steps import train_step

LR = 1e-4
POOL = 10
G_BLOCKS, E_BLOCKS = (0, 1), (2, 3, 4)
#: Top-level names of the checkouts, which are those of other packages, too.
NAMES = ("backbone", "datasets", "methods", "models", "utils")


class Peer(NamedTuple):
    """What is run of a checkout.

    Attributes:
        trained: what its optimizer holds.
        loss: images [B, 3, H, W] and targets [B] -> its training loss.
        logits: images -> logits [B, C], as it evaluates.
    """

    trained: list[nn.Parameter]
    loss: Callable[[Tensor, Tensor], Tensor]
    logits: Callable[[Tensor], Tensor]


@contextlib.contextmanager
def checkout(folder: Path, stand_ins: dict[str, dict[str, Any]]) -> Iterator[None]:
    """Imports come from a folder; afterwards its modules have no name any more.

    Args:
        folder: of the checkout.
        stand_ins: by name of a module the names of what it holds in place of what stands in the folder. One
            that is a folder there is a package of the files in it whose ``__init__`` is not run.
    """

    def theirs(name: str) -> bool:
        return name.split(".")[0] in NAMES

    hidden = {name: sys.modules.pop(name) for name in [*sys.modules] if theirs(name)}
    sys.path.insert(0, str(folder))
    try:
        for name, held in stand_ins.items():
            module = types.ModuleType(name)
            module.__path__ = [str(folder.joinpath(*name.split(".")))]
            vars(module).update(held)
            sys.modules[name] = module
        yield
    finally:
        sys.path.remove(str(folder))
        for name in [*sys.modules]:
            if theirs(name):
                del sys.modules[name]
        sys.modules.update(hidden)


def shape_of(backbone: FrozenViT) -> dict[str, Any]:
    """A vision transformer's size, in timm's words, which all checkouts have."""
    return {
        "img_size": backbone.image_size[0],
        "patch_size": backbone.patch_size[0],
        "embed_dim": backbone.width,
        "depth": backbone.depth,
        "num_heads": backbone.num_heads,
        "num_classes": CLASSES,
    }


# ------------------------------------------------------------------------------------- L2P and DualPrompt

POOLED = {
    "embedding_key": "cls",
    "prompt_init": "uniform",
    "prompt_pool": True,
    "prompt_key": True,
    "prompt_key_init": "uniform",
    "pool_size": POOL,
    "batchwise_prompt": False,
}
L2P = {**POOLED, "prompt_length": 5, "top_k": 5, "head_type": "prompt"}
DUALPROMPT = {
    **POOLED,
    "prompt_length": 20,
    "top_k": 1,
    "use_prompt_mask": True,
    "use_g_prompt": True,
    "g_prompt_length": 5,
    "g_prompt_layer_idx": list(G_BLOCKS),
    "use_prefix_tune_for_g_prompt": True,
    "use_e_prompt": True,
    "e_prompt_layer_idx": list(E_BLOCKS),
    "use_prefix_tune_for_e_prompt": True,
}


def with_query(make: Callable[..., nn.Module], shape: dict[str, Any], prompts: dict[str, Any]) -> Peer:
    """Two vision transformers, as both checkouts have them: one for the query, one with prompts.

    Args:
        make: the checkout's class.
        shape: of both.
        prompts: of the second.
    """
    original, model = make(**shape).eval().requires_grad_(False), make(**shape, **prompts)
    frozen = ("blocks", "patch_embed", "cls_token", "norm", "pos_embed")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(frozen))

    def run(images: Tensor, train: bool) -> dict[str, Tensor]:
        model.train(train)
        with torch.no_grad():
            query = original(images)["pre_logits"]
        return model(images, task_id=0 if train else -1, cls_features=query, train=train)

    def loss(images: Tensor, targets: Tensor) -> Tensor:
        answer = run(images, True)
        return F.cross_entropy(answer["logits"], targets) - 0.1 * answer["reduce_sim"]

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return Peer(trained, loss, lambda images: run(images, False)["logits"])


def pilot_l2p(folder: Path, shape: dict[str, Any]) -> Peer:
    """LAMDA-PILOT's L2P."""
    with checkout(folder, {}):
        made = importlib.import_module("backbone.vit_l2p").VisionTransformer
        return with_query(made, shape, L2P)


def pilot_dualprompt(folder: Path, shape: dict[str, Any]) -> Peer:
    """LAMDA-PILOT's DualPrompt."""
    with checkout(folder, {}):
        made = importlib.import_module("backbone.vit_dualprompt").VisionTransformer
        return with_query(made, shape, DUALPROMPT)


def mammoth_l2p(folder: Path, shape: dict[str, Any]) -> Peer:
    """Mammoth's L2P; of its package of all models only this one is imported."""
    with checkout(folder, {"models": {}}):
        made = importlib.import_module("models.l2p_utils.vit_prompt").VisionTransformer
        return with_query(made, shape, L2P)


def mammoth_dualprompt(folder: Path, shape: dict[str, Any]) -> Peer:
    """Mammoth's DualPrompt, with its correction of the order of axes."""
    with checkout(folder, {"models": {}}):
        made = importlib.import_module("models.dualprompt_utils.vision_transformer").VisionTransformer
        arguments = argparse.Namespace(use_permute_fix=True)
        return with_query(lambda **sizes: made(args=arguments, **sizes), shape, DUALPROMPT)


# -------------------------------------------------------------------------------------------- CODA-Prompt


def coda(vit: Any, prompts: nn.Module, width: int) -> Peer:
    """Features of a transformer that asks for its prompts, and a head, as both checkouts have them.

    Neither freezes the transformer: their optimizers leave it out, its gradients are computed and pile up.
    """
    head = nn.Linear(width, CLASSES)
    trained = [*prompts.parameters(), *head.parameters()]

    def run(images: Tensor, train: bool) -> tuple[Tensor, Tensor]:
        for module in (vit, prompts):
            module.train(train)
        with torch.no_grad():
            query = vit(images)[0][:, 0]
        features, penalty = vit(images, prompt=prompts, q=query, train=train)
        return head(features[:, 0]), penalty

    def loss(images: Tensor, targets: Tensor) -> Tensor:
        logits, penalty = run(images, True)
        return F.cross_entropy(logits, targets) + penalty.sum()

    return Peer(trained, loss, lambda images: run(images, False)[0])


def no_leaves(module: types.ModuleType) -> None:
    """Let ``torch.zeros`` of a module make tensors without gradient.

    The penalty is added up in place on one with it, which only a copy to a GPU allows.
    """

    def zeros(*size: Any, requires_grad: bool = False, **more: Any) -> Tensor:
        return torch.zeros(*size, **more)

    module.torch = types.SimpleNamespace(**{**vars(torch), "zeros": zeros})


def pilot_coda_prompt(folder: Path, shape: dict[str, Any]) -> Peer:
    """LAMDA-PILOT's CODA-Prompt; its network sets a width of 768, its parts do not."""
    with checkout(folder, {}):
        transformers = importlib.import_module("backbone.vit_coda_promtpt")  # it is spelled so
        prompts = importlib.import_module("backbone.prompt").CodaPrompt
        no_leaves(transformers)
        width = shape["embed_dim"]
        return coda(
            transformers.VisionTransformer(**shape), prompts(width, POOL, [100, 8, 0.0], key_dim=width), width
        )


def mammoth_coda_prompt(folder: Path, shape: dict[str, Any]) -> Peer:
    """Mammoth's CODA-Prompt; its network sets a width of 768, its parts do not."""
    with checkout(folder, {"models": {}}):
        transformers = importlib.import_module("models.coda_prompt_utils.vit")
        prompts = importlib.import_module("models.coda_prompt_utils.model").CodaPrompt
        no_leaves(transformers)
        width = shape["embed_dim"]
        vit = transformers.VisionTransformer(drop_path_rate=0, **shape)
        return coda(vit, prompts(width, POOL, [100, 8, 0.0], key_dim=width), width)


# ---------------------------------------------------------------------------------------------------- MVP


def si_blurry_mvp(folder: Path, shape: dict[str, Any]) -> Peer:
    """Si-Blurry's MVP, with all its parts on; of its trainer only the loss is run.

    The model is made without weights from the network, and forgets the queries of each step, which the
    released one appends to one growing tensor.
    """
    import timm

    made = timm.create_model
    stand_ins: dict[str, dict[str, Any]] = {
        "models": {},
        "methods": {},
        "methods._trainer": {"_Trainer": object},
        "utils": {},
        "utils.train_utils": {"select_optimizer": None, "select_scheduler": None},
        "utils.memory": {"MemoryBatchSampler": None},
    }
    with checkout(folder, stand_ins):
        models = importlib.import_module("models.mvp")
        trainer = importlib.import_module("methods.mvp").MVP
    method = trainer.__new__(trainer)  # its constructor wants a data set and a GPU
    try:
        timm.models.create_model = lambda *_, **__: made("vit_base_patch16_224", **shape)
        model = models.MVP(
            pos_g_prompt=G_BLOCKS,
            len_g_prompt=5,
            pos_e_prompt=E_BLOCKS,
            len_e_prompt=20,
            task_num=POOL,
            num_classes=CLASSES,
            use_mask=True,
            use_contrastiv=True,
            use_last_layer=False,
        )
    finally:
        timm.models.create_model = made
    vars(method).update(
        model_without_ddp=model,
        mask=torch.zeros(CLASSES),
        exposed_classes=list(range(CLASSES)),
        use_mask=True,
        use_afs=True,
        use_gsf=True,
        use_amp=False,
        alpha=0.5,
        gamma=2.0,
        margin=0.5,
    )

    def loss(images: Tensor, targets: Tensor) -> Tensor:
        model.train()
        model.features = torch.empty(0)
        return method.model_forward(images, targets)[1]

    def logits(images: Tensor) -> Tensor:
        return model.eval()(images)

    return Peer([parameter for parameter in model.parameters() if parameter.requires_grad], loss, logits)


# --------------------------------------------------------------------------------------------- side by side

ADAPTERS: dict[str, dict[str, Callable[[Path, dict[str, Any]], Peer]]] = {
    "pilot": {"l2p": pilot_l2p, "dualprompt": pilot_dualprompt, "coda_prompt": pilot_coda_prompt},
    "mammoth": {"l2p": mammoth_l2p, "dualprompt": mammoth_dualprompt, "coda_prompt": mammoth_coda_prompt},
    "si_blurry": {"mvp": si_blurry_mvp},
}


def side_by_side(name: str, peer: Peer, model: PromptModel, options: argparse.Namespace) -> dict[str, Any]:
    """Steps and evaluations of both, taken in turn."""
    device = torch.device("cpu")
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(options.batch, 3, *model.backbone.image_size, generator=generator)
    targets = torch.arange(options.batch) % CLASSES
    if model.boundaries != "unused":
        model.begin_experience(range(CLASSES))
    model.observe(torch.arange(CLASSES))
    optimizer = optim.build(model, Training(train_mb_size=options.batch, lr=LR))
    theirs = torch.optim.Adam(peer.trained, lr=LR)
    cache: Cache = {}
    with torch.no_grad():
        model.eval()(images, cache)

    def step() -> None:
        model.train()
        train_step(model, optimizer, images, targets, precision="float32")

    def peer_step() -> None:
        loss = peer.loss(images, targets)
        theirs.zero_grad()
        loss.backward()
        theirs.step()

    @torch.no_grad()
    def evaluate(kept: Cache | None = None) -> None:
        model.eval()(images, kept)

    @torch.no_grad()
    def peer_evaluate() -> None:
        peer.logits(images)

    times = interleaved(
        options.pairs,
        device,
        step=step,
        peer_step=peer_step,
        evaluation=evaluate,
        peer_evaluation=peer_evaluate,
        cached=lambda: evaluate(dict(cache)),
    )
    return {
        "milliseconds": {name: 1000 * statistics.median(taken.busy) for name, taken in times.items()},
        "step": ratio(times["peer_step"], times["step"]),
        "evaluation": ratio(times["peer_evaluation"], times["evaluation"]),
        "cached_evaluation": ratio(times["peer_evaluation"], times["cached"]),
    }


def main() -> None:
    """Measure what there is and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for name in ADAPTERS:
        parser.add_argument(f"--{name.replace('_', '-')}", type=Path, metavar="DIR")
    parser.add_argument("--methods", help="comma-separated; all by default")
    parser.add_argument("--model", default="vit_tiny_patch16_224")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{options.model}, batch {options.batch}, float32, torch {torch.__version__}, ", end="")
    print(f"{options.threads} threads; processor time, theirs to ours, median (quartiles)\n")
    print("| method | peer | their step, ms | ours, ms | ratio | evaluation | evaluation with kept queries |")
    print("|---|---|---|---|---|---|---|")
    found, left_out = {}, []
    for peer_name, adapters in ADAPTERS.items():
        folder = getattr(options, peer_name)
        if folder is None or not folder.is_dir():
            why = "not given" if folder is None else f"{folder} is no folder"
            left_out.append(f"{peer_name} is left out: {why}")
            continue
        for name, adapter in adapters.items():
            if options.methods and name not in options.methods.split(","):
                continue
            torch.manual_seed(0)
            backbone = FrozenViT(options.model, pretrained=False)
            try:
                peer = adapter(folder.resolve(), shape_of(backbone))
            except (ImportError, AttributeError, TypeError) as error:
                left_out.append(f"{name} of {peer_name} is left out: {type(error).__name__}: {error}")
                continue
            row = side_by_side(name, peer, make_model(name, backbone, torch.device("cpu")), options)
            found[f"{peer_name} {name}"] = row
            taken = row["milliseconds"]
            cells = [shown(row[key]) for key in ("step", "evaluation", "cached_evaluation")]
            print(f"| {name} | {peer_name} | {taken['peer_step']:.0f} | {taken['step']:.0f} | ", end="")
            print(f"{' | '.join(cells)} |", flush=True)
    for reason in left_out:
        print(reason)
    if options.out:
        options.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
