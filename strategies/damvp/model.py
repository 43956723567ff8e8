"""DAM-VP: one pixel prompt per cluster of images, chosen by the nearest prototype."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from clprompt import schema
from clprompt.backbones.attention import BlockPrompt
from clprompt.backbones.vit import FrozenViT
from clprompt.errors import ConfigError, DataError, ProtocolError
from clprompt.prompting.heads import grow_rows
from clprompt.prompting.model import Blocks, Boundaries, Cache, Encoded, PromptModel
from clprompt.prompting.plugin import LearnedPrompts, Samples
from clprompt.prompting.prompt_file import PromptFile
from clprompt.registry import strategies
from clprompt.schema import above, at_least
from clprompt.seeding import derive, generator
from clprompt.strategies.damvp import plots as views
from clprompt.strategies.damvp.active import activity_rank, noise_features
from clprompt.strategies.damvp.clustering import (
    ClusterMap,
    cluster,
    clusters_of,
    mean_distance,
    nearest_prototype,
    plane_of,
    sample_features,
)
from clprompt.strategies.damvp.frames import (
    OffsetCache,
    as_images,
    check_frame,
    check_images,
    default_pad,
    frame_places,
    frame_size,
    framed_tokens,
    is_frame,
    load_frame,
)
from clprompt.targets import as_index, classes_in
from clprompt.training.finite import check_features


@strategies.register(
    "damvp",
    paper="Huang et al., CVPR 2023, arXiv 2303.08138",
    year=2023,
    boundaries="required",
    renamed={"meta_file": "init_file"},
    meta_init="clprompt.strategies.damvp.meta_init",
)
class DAMVPModel(PromptModel):
    """DAM-VP (Huang et al., "Diversity-Aware Meta Visual Prompting"), made class-incremental.

    At the start of an experience its images are clustered by their frozen features (average linkage; a more
    diverse set gives more clusters); every cluster keeps its mean as a prototype and gets a prompt, a frame
    added around the normalised image. An image takes the prompt of its nearest prototype, in training as at
    test. Nothing of an image is kept. Published for a single task: experiences, growth and freezing are ours.

    Where the released code differs, and the switch that brings it back:

    * An absolute distance threshold per backbone (``threshold``); here relative to the mean pairwise distance
      of the first experience (``threshold_ratio``), with a cap and a smallest cluster size, as the count of
      clusters is a knife-edge function of the threshold (``max_clusters=null``, ``min_cluster_size=1``).
    * Frames start from N(0, 1) (``init="random"``) or a meta-prompt; here from zero, the bare model.
    * Momentum misspelt and ignored, the head's rate overwritten by the frames': two rates here.
    * A square root of a possibly negative number in the assignment; here no root.

    Args:
        backbone: the frozen vision transformer.
        seed: where all initial values come from.
        prompt: "pixel" (frames) or "token" (prompt tokens by the same clusters; not in the released code).
        pad: thickness of the frame in pixels; None for 30 of 224, in proportion.
        length: tokens per block of token prompts.
        deep: token prompts are new in each of ``layers``; False carries them on from block 0.
        layers: the blocks with token prompts; None for all.
        cluster_samples: images of an experience that are clustered, a seeded random subset.
        threshold: the distance below which clusters merge; None for a relative one.
        threshold_ratio: the same, relative to the first experience's mean distance; None for 0.9.
        max_clusters: per experience; None for no cap.
        min_cluster_size: images that a cluster must have, or it joins the nearest that has.
        cluster: False for one prompt per experience.
        init: how frames start; "nearest" copies the frame of the nearest older prototype. None for "meta"
            with ``init_file``, a meta-learnt frame that all frames start from, "zero" without.
        init_std: of frames that start at random.
        share: let a cluster close to an older one use that one's frame.
        share_ratio: how close, in the older cluster's radii.
        max_prompts: beyond so many frames, clusters share the nearest one.
        train_shared: an older frame is trained again while a cluster of the current experience shares it.
        freeze_old: older frames are frozen.
        train_assign: training matches "all" prototypes, as at test, or those of the "current" experience.
        head: "linear", or "active": feature coordinates in order of their activity on noise, nothing learned.
        active_order: coordinates by "arrival" of classes (stable under growth) or "sorted" (as released).
        prompt_lr: in place of the training section's rate; None for 0.05 of frames, 0.005 of tokens.
        head_lr: the head's rate in place of the training section's.
    """

    unknown_as_nan: ClassVar[Collection[str]] = ("tau",)
    chooses_by_query: ClassVar[bool] = True

    @schema.checked
    def __init__(
        self,
        backbone: FrozenViT,
        *,
        seed: int = 0,
        prompt: Literal["pixel", "token"] = "pixel",
        pad: Annotated[int, at_least(1)] | None = None,
        length: Annotated[int, at_least(1)] = 10,
        deep: bool = True,
        layers: Blocks | None = None,
        cluster_samples: Annotated[int, at_least(1)] = 1000,
        threshold: Annotated[float, above(0)] | None = None,
        threshold_ratio: Annotated[float, above(0)] | None = None,
        max_clusters: Annotated[int, at_least(1)] | None = 16,
        min_cluster_size: Annotated[int, at_least(1)] = 5,
        cluster: bool = True,
        init: Literal["meta", "zero", "random", "nearest"] | None = None,
        init_std: Annotated[float, at_least(0)] = 1.0,
        share: bool = False,
        share_ratio: Annotated[float, at_least(0)] = 0.25,
        max_prompts: Annotated[int, at_least(1)] | None = None,
        train_shared: bool = False,
        freeze_old: bool = True,
        train_assign: Literal["all", "current"] = "all",
        head: Literal["linear", "active"] = "linear",
        active_order: Literal["arrival", "sorted"] = "arrival",
        prompt_lr: Annotated[float, at_least(0)] | None = None,
        head_lr: Annotated[float, at_least(0)] = 1e-3,
    ) -> None:
        super().__init__(backbone, seed=seed)
        if threshold is not None and threshold_ratio is not None:
            raise ConfigError("give threshold or threshold_ratio, not both")
        if cluster and cluster_samples < 2:
            raise ConfigError(f"cluster_samples must be at least 2 with cluster=true, got {cluster_samples}")
        self.prompt = prompt
        self.deep = deep
        self.cluster_samples = cluster_samples
        self.threshold = threshold
        self.ratio = threshold_ratio or 0.9
        self.max_clusters = max_clusters
        self.min_cluster_size = min_cluster_size
        self.cluster = cluster
        self.init = init
        self.init_std = init_std
        self.share = share
        self.share_ratio = share_ratio
        self.max_prompts = max_prompts
        self.train_shared = train_shared
        self.freeze_old = freeze_old
        self.train_assign = train_assign
        self.active_order = active_order
        self.head_lr = head_lr
        self.prompt_lr = prompt_lr if prompt_lr is not None else 0.05 if prompt == "pixel" else 0.005
        if prompt == "pixel":
            self._register_frame(pad)
        else:
            self._set_tokens(length, layers)
        self._has_clusters = False  # of the current experience
        self._arrived: set[int] = set()  # classes with a coordinate
        self._map: ClusterMap | None = None  # until it is drawn, before training
        self._offsets = OffsetCache()
        self._register_clusters()
        self.active = head == "active"
        if self.active:
            self.head = None
            self.rank: Tensor
            self.arrival: Tensor
            self.register_buffer("rank", activity_rank(noise_features(backbone, seed)))
            self.register_buffer("arrival", torch.full((0,), -1))

    def _register_frame(self, pad: int | None) -> None:
        """The form of a frame: where its numbers stand in the image, and what they start from."""
        channels, side = self.backbone.in_chans, check_frame(self.backbone, pad)
        self.pad = default_pad(side) if pad is None else pad
        self.shape: tuple[int, ...] = (frame_size(channels, side, self.pad),)
        self.places: Tensor
        self.register_buffer("places", frame_places(channels, side, self.pad), persistent=False)

    def _set_tokens(self, length: int, layers: Blocks | None) -> None:
        """The form of token prompts: ``length`` of them in each of their blocks."""
        blocks = range(self.backbone.depth) if layers is None else layers
        self.layers = self.backbone.check_layers("layers", blocks if self.deep else (0,))
        self.first_block = min(self.layers, default=0)
        self.shape = (len(self.layers), length, self.backbone.width)

    def _register_clusters(self) -> None:
        """No prompt and no cluster yet."""
        self.prototypes: Tensor
        self.radius: Tensor
        self.counts: Tensor
        self.experience_of: Tensor
        self.frame_of: Tensor
        self.tau: Tensor
        self.frames = nn.ParameterList()  # one vector [F], or [blocks, length, D], per prompt
        self.register_buffer("prototypes", torch.zeros(0, self.backbone.width))
        self.register_buffer("radius", torch.zeros(0))  # root mean squared distance of the members
        for name in ("counts", "experience_of", "frame_of"):
            self.register_buffer(name, torch.zeros(0, dtype=torch.int64))
        self.register_buffer("tau", torch.tensor(float("nan")))

    @property
    def boundaries(self) -> Boundaries:
        return "required"

    # ------------------------------------------------------------------ what prompts start from

    @property
    def prompt_tokens(self) -> int:
        return self.shape[1] if self.prompt == "token" and self.layers else 0

    def learned_prompts(self) -> dict[str, LearnedPrompts]:
        parameters = list(self.frames)
        if self.prompt == "pixel":
            return {"frames": LearnedPrompts((), self.shape, parameters, added="anew", apart=False)}
        axes = ("blocks", "length")
        return {
            "prompts": LearnedPrompts(
                axes,
                self.shape,
                parameters,
                blocks=self.layers,
                added="anew",
                apart=False,
                block_prompt=lambda values, block: self._block_prompt(values[None], block),
            )
        }

    def read_prompts(self, path: str) -> PromptFile | None:
        """A frame of :mod:`clprompt.strategies.damvp.meta_init`; None for any other file."""
        if not is_frame(path):
            return None
        if self.prompt == "token":
            raise ConfigError(f"init_file {path} is a pixel frame; it cannot start token prompts")
        frame, facts = load_frame(path, self.backbone, self.pad)
        return PromptFile(Path(path), facts, {"frames": frame[None]})

    def _check_start(self) -> None:
        started = any(plugin.starts_prompts for plugin in self.plugins)
        if self.init is not None and started != (self.init == "meta"):
            raise ConfigError("init=meta and init_file belong together")

    # ------------------------------------------------------------------ forward

    @property
    def slot_per_experience(self) -> bool:
        return self.freeze_old and not self.train_shared

    def encode(self, images: Tensor, cached: Cache | None = None) -> Encoded:
        return self._encode(images, cached, None)

    def encode_under(self, images: Tensor, experiences: Tensor, cached: Cache | None = None) -> Encoded:
        """Each image under the nearest cluster of the experience."""
        return self._encode(images, cached, experiences.clamp(max=self.experience_of.max()))

    def _encode(self, images: Tensor, cached: Cache | None, experiences: Tensor | None) -> Encoded:
        """Under the nearest cluster, of the experiences [B] or of all that compete."""
        pixel = self.prompt == "pixel"
        if pixel:
            check_images(self.backbone, images)
        patches = self.backbone.patches(images) if pixel and self.backbone.linear_patches else None
        if patches is not None:
            stem = self.backbone.position(patches)
            query = self.query_of(images, cached, stem=stem)
        else:
            stem, query = self.query(images, self.first_block, cached)
        if not len(self.prototypes):  # before any experience: the bare model
            return Encoded(query)
        if experiences is None:
            nearest = self.assign(query)
        else:
            nearest = nearest_prototype(query, self.prototypes, self.experience_of != experiences[:, None])
        frame = self.frame_of[nearest]
        if patches is not None and not self.training and not torch.is_grad_enabled():
            offsets = self._offsets.of(self.backbone, list(self.frames), self.framed)
            return Encoded(self.backbone.prompted(self.backbone.position(patches + offsets[frame])))
        # idle frames have no gradient, and stand still: here the host has to know what the device chose
        traced = not self.training and torch.compiler.is_compiling()  # there is no host to know: all are used
        used = list(range(len(self.frames))) if traced else sorted(set(frame.cpu().tolist()))
        inverse = torch.searchsorted(as_index(used, frame.device), frame)
        prompts = torch.stack([self.frames[k] for k in used])
        if not pixel:
            feature = self.backbone.prompted(stem, self._tokens(prompts[inverse]), start=self.first_block)
            return Encoded(feature)
        tokens = framed_tokens(self.backbone, images, patches, self.framed(prompts), inverse)
        return Encoded(self.backbone.prompted(tokens))

    def framed(self, prompts: Tensor) -> Tensor:
        """Frame vectors [K, F] -> images [K, channels, H, W], zero inside."""
        return as_images(prompts, self.places, self.backbone.in_chans, self.backbone.image_size[0])

    def _tokens(self, prompts: Tensor) -> Callable[[int, Tensor], BlockPrompt | None]:
        """[B, blocks, length, D] -> what each block gets."""

        def block_prompt(block: int, x: Tensor) -> BlockPrompt | None:
            if block not in self.layers:
                return None
            return self._block_prompt(prompts, block)

        return block_prompt

    def _block_prompt(self, prompts: Tensor, block: int) -> BlockPrompt:
        """Of [B, blocks, length, D] what one block gets."""
        return BlockPrompt("fresh" if self.deep else "carried", prompts[:, self.layers.index(block)])

    def assign(self, query: Tensor) -> Tensor:
        """The nearest prototype of each query, [B, D] -> int64 [B]; in training perhaps a current one."""
        current = self.training and self.train_assign == "current"
        return nearest_prototype(
            query, self.prototypes, self.experience_of != self.experience if current else None
        )

    def logits(self, features: Tensor) -> Tensor:
        if not self.active:
            return super().logits(features)
        width = self.backbone.width
        if self.num_classes > width:
            raise ConfigError(f"head=active has {width} coordinates for {self.num_classes} classes")
        columns = self.rank[: self.num_classes]
        if self.active_order == "sorted":
            return features[:, columns.sort().values]
        return features[:, columns[self.arrival.clamp(min=0)]]

    # ------------------------------------------------------------------ experiences

    def check_targets(self, targets: Tensor) -> None:
        super().check_targets(targets)
        if not self._has_clusters:
            raise ProtocolError(
                "this experience has no prompts: "
                "pass samples to begin_experience or call fit_clusters(features)"
            )

    def check_stream(self, classes: Sequence[Sequence[int]]) -> None:
        self._check_start()
        columns, width = 1 + max((c for group in classes for c in group), default=0), self.backbone.width
        if self.active and columns > width:
            raise ConfigError(
                f"head=active has {width} coordinates, the width of the backbone, for {columns} classes"
            )

    def start_experience(self, index: int, samples: Samples | None) -> None:
        """Cluster the experience's images by their features; the features are dropped afterwards."""
        self._check_start()
        if samples is not None:
            seed = derive(self.seed, "cluster samples", index)
            images = (images for images, _ in samples())
            self.fit_clusters(sample_features(images, self._finite_features, self.cluster_samples, seed))

    def _finite_features(self, images: Tensor) -> Tensor:
        """The features of images to cluster, [B, D]; refuses what is not finite."""
        features = self.backbone.features(images)
        check_features(self, features, images, lambda row: "an image of the experience")
        return features

    @torch.no_grad()
    def fit_clusters(self, features: Tensor) -> int:
        """Append a prototype and a prompt per cluster of the features [n, D]; returns the number of clusters.

        Raises:
            DataError: no features, or nan among them.
        """
        if self.threshold is not None:
            self.tau.fill_(self.threshold)
        elif bool(self.tau.isnan()) and self.cluster:
            self.tau.fill_(max(self.ratio * mean_distance(features), 1e-12))
        if not len(features):
            raise DataError("there are no images to cluster")
        labels = torch.zeros(len(features), dtype=torch.int64)
        if self.cluster:
            most, least = self.max_clusters, self.min_cluster_size
            labels = torch.from_numpy(cluster(features, float(self.tau), max_clusters=most, min_size=least))
        # sums of many features are more than 16 bits hold
        dtype = torch.promote_types(self.prototypes.dtype, torch.float32)
        features = features.to(self.device, dtype)
        made = clusters_of(features, labels.to(features.device))
        self._map = None if len(features) < 2 else plane_of(features, labels, made.prototypes)
        old = len(self.prototypes)
        for prototype in made.prototypes:
            frame = self._frame_for(prototype, old)
            grow_rows(self.prototypes, prototype[None])
            grow_rows(self.experience_of, self.experience[None])
            grow_rows(self.frame_of, torch.tensor([frame]))
        grow_rows(self.radius, made.radius)
        grow_rows(self.counts, made.counts)
        self.to(self.device)
        self._restage()
        return len(made.prototypes)

    def _frame_for(self, prototype: Tensor, old: int) -> int:
        """The frame of a new cluster: a new one, or one that it shares."""
        distance = (self.prototypes[:old] - prototype).square().sum(1).sqrt()
        if self.share and old:
            near = distance <= self.share_ratio * self.radius[:old]
            if bool(near.any()):
                return int(self.frame_of[distance.masked_fill(~near, float("inf")).argmin()])
        if self.max_prompts is not None and len(self.frames) >= self.max_prompts:
            every = (self.prototypes - prototype).square().sum(1)
            return int(self.frame_of[every.argmin()])
        nearest = self.frames[int(self.frame_of[distance.argmin()])] if old else None
        self.frames.append(nn.Parameter(self._initial(len(self.frames), nearest).to(self.prototypes)))
        return len(self.frames) - 1

    def _initial(self, index: int, nearest: Tensor | None) -> Tensor:
        if self.init == "nearest" and nearest is not None:
            return nearest.detach().clone()
        if self.prompt == "pixel" and self.init != "random":
            return torch.zeros(self.shape)  # a file's values are put in their place
        std = 0.02 if self.prompt == "token" else self.init_std  # zero tokens are one direction to the norm
        return std * torch.randn(*self.shape, generator=generator(self.seed, "prompt", index))

    def set_stage(self) -> None:
        """Frames of the current experience are trained, others as ``freeze_old`` and ``train_shared`` say."""
        now = self.experience_index
        self._has_clusters = bool((self.experience_of == now).any())
        self._arrived = set((self.arrival >= 0).nonzero().flatten().tolist()) if self.active else set()
        in_use = set(self.frame_of[self.experience_of == now].tolist()) if self.train_shared else set()
        for index, (frame, home) in enumerate(zip(self.frames, self.homes(), strict=True)):
            frame.requires_grad_(not self.freeze_old or home == now or index in in_use)

    def param_groups(self) -> list[dict[str, Any]]:
        """Frames and head, each with its own learning rate."""
        rest = self.trainable()
        frames = {name: rest.pop(name) for name in list(rest) if name.startswith("frames.")}
        return [
            {"name": "prompts", "params": frames, "lr": self.prompt_lr},
            {"name": "head", "params": rest, "lr": self.head_lr},
        ]

    # ------------------------------------------------------------------ classes and state

    def observe(self, targets: Tensor) -> bool:
        self._map = None  # training begins: whoever wanted to see it has seen it
        grew = super().observe(targets)
        if self.active:  # classes read coordinates in the order of their arrival
            for label in classes_in(targets):
                if label not in self._arrived:
                    self.arrival[label] = len(self._arrived)
                    self._arrived.add(label)
        return grew

    def grow_classes(self, num_classes: int) -> None:
        if self.active:
            grow_rows(self.arrival, torch.full((num_classes - len(self.arrival),), -1))

    def finish_experience(self) -> None:
        self._map = None

    def opening_diagnostics(self) -> dict[str, Any]:
        """The map of the clusters just made; the projection is handed out once and kept no longer."""
        cluster_map, self._map = self._map, None
        if cluster_map is None:
            return {}
        first = len(self.prototypes) - len(cluster_map.prototypes)
        return {"clusters/map": partial(views.draw_map, cluster_map, first, int(self.experience) + 1)}

    def diagnostics(self) -> dict[str, Any]:
        """The number of clusters, and pixel frames as images."""
        return views.diagnostics(self)

    def probe(self, images: Callable[[], Iterable[Tensor]]) -> dict[str, Any]:
        """A contact sheet of the images nearest to each prototype; none of them is kept."""
        return views.probe(self, images)

    @torch.no_grad()
    def explain(self, images: Tensor) -> dict[str, Any]:
        """One figure: per image its cluster, the cluster's frame, and what the backbone then sees."""
        return views.explain(self, images)

    def describe(self) -> dict[str, int]:
        """With the number of clusters and prompts, and what one prompt takes."""
        one = math.prod(self.shape)
        return {
            **super().describe(),
            "clusters": len(self.prototypes),
            "prompts": len(self.frames),
            "numbers_per_prompt": one,
            "bytes_per_prompt": one * self.prototypes.element_size(),
        }

    def homes(self) -> list[int]:
        """The experience that each frame was made in; while a state is loaded, 0 for those not known yet."""
        made: dict[int, int] = {}
        for frame, experience in zip(self.frame_of.tolist(), self.experience_of.tolist(), strict=True):
            made.setdefault(frame, experience)
        return [made.get(frame, 0) for frame in range(len(self.frames))]

    def max_state_size(self, experiences: int) -> int | None:
        """Clusters follow from the data, up to ``max_clusters`` in an experience; None without that cap."""
        if self.max_clusters is None:
            return None
        cluster, frame = self.backbone.width + 4, math.prod(self.shape)
        fixed = self.state_size() - len(self.prototypes) * cluster - len(self.frames) * frame
        return fixed + experiences * (self.max_clusters if self.cluster else 1) * (cluster + frame)

    def resize_to(self, state: Mapping[str, Tensor]) -> None:
        super().resize_to(state)
        missing = state["prototypes"].shape[0] - len(self.prototypes)
        for name in ("prototypes", "radius", "counts", "experience_of", "frame_of"):
            buffer = getattr(self, name)
            if missing > 0:
                grow_rows(buffer, torch.zeros(missing, *buffer.shape[1:]))
            else:
                buffer.data = buffer.data[: len(buffer) + missing]
        count = sum(name.startswith("frames.") for name in state)
        self.frames = nn.ParameterList(self.prototypes.new_zeros(self.shape) for _ in range(count))
        self.to(self.device)
