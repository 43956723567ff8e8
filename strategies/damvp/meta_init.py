"""`clprompt meta-init`: from a configuration of sources to a file with a frame, resumable at any step."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from clprompt.backbones.build import make_backbone
from clprompt.data.loading import image_stream, subset
from clprompt.data.sources import gather
from clprompt.errors import ConfigError, DataError, Interrupted
from clprompt.seeding import generator
from clprompt.strategies.damvp.active import activity_rank, noise_features
from clprompt.strategies.damvp.clustering import cluster, clusters_of, mean_distance
from clprompt.strategies.damvp.frames import check_frame, default_pad, frame_places, frame_size, save_frame
from clprompt.strategies.damvp.meta import Batch, InnerOptimizer, Source, adapt, inner_rate, meta_update
from clprompt.strategies.damvp.meta_sources import MetaInit
from clprompt.strategies.damvp.meta_sources import from_values as from_values
from clprompt.system.files import atomic_write
from clprompt.system.progress import Progress
from clprompt.system.runtime import find_device, reproducible, stop_signal
from clprompt.system.unfinished import Unfinished
from clprompt.training import meta_steps

_AVERAGED = 10  # meta-steps in the moving average of the loss


class Learner:
    """A meta-init under way: everything of it but the backbone and the data is in :meth:`state`."""

    def __init__(self, settings: MetaInit) -> None:
        self.settings = settings
        self.device = find_device(settings.device)
        section = {"pretrained": False, "checkpoint": None} | settings.backbone
        if not isinstance(section.get("name"), str):
            raise ConfigError("backbone must be a name or a mapping with a name")
        self.backbone = make_backbone(section).to(self.device)
        side, channels = check_frame(self.backbone, settings.pad), self.backbone.in_chans
        self.pad = default_pad(side) if settings.pad is None else settings.pad
        self.places = frame_places(channels, side, self.pad).to(self.device)
        if self.backbone.inputs.awaits_data:
            raise ConfigError(
                "backbone.normalise must be backbone or unit: the sources are several data sets"
            )
        self.material = gather(settings.sources, self.backbone)
        self.per_epoch = meta_steps.shortest(self.material, settings.train_mb_size)
        self.steps = settings.steps or settings.epochs * self.per_epoch
        if self.steps < 1:
            raise DataError("no meta-step can be made: a source holds no image")
        self.step = 0
        start = torch.randn(frame_size(channels, side, self.pad), generator=generator(settings.seed, "meta"))
        self.frame = (settings.init_std * start).to(self.device)
        self.best = self.frame
        self.losses: list[list[float]] = []  # per meta-step: first and last inner loss, loss after the update
        self.sources: list[Source] = []

    @torch.no_grad()
    def look(self) -> None:
        """Cluster the sources, each by the features of its images; the threshold is the first one's."""
        settings, tau = self.settings, self.settings.threshold
        columns = None
        if settings.head == "active":
            columns = activity_rank(noise_features(self.backbone, settings.seed))
        for number, material in enumerate(self.material):
            classes = len(material.class_names)
            order = torch.randperm(len(material.clean), generator=generator(settings.seed, "samples", number))
            part = subset(material.clean, order[: settings.cluster_samples].tolist())
            images = image_stream(part, settings.train_mb_size, settings.workers)
            parts = [self.backbone.features(batch.to(self.device)).float() for batch in images]
            features = torch.cat(parts).cpu()
            labels = torch.zeros(len(features), dtype=torch.int64)
            if settings.cluster:
                tau = tau or max(settings.threshold_ratio * mean_distance(features), 1e-12)
                limits = {"max_clusters": settings.max_clusters, "min_size": settings.min_cluster_size}
                labels = torch.from_numpy(cluster(features, tau, **limits))  # type: ignore[arg-type]
            prototypes = clusters_of(features, labels).prototypes.to(self.device)
            if columns is None:
                head = nn.Linear(self.backbone.width, classes)
                bound = self.backbone.width**-0.5
                for name, values in head.named_parameters():
                    draw = generator(settings.seed, "head", number, name)
                    nn.init.uniform_(values, -bound, bound, generator=draw)
                self.sources.append(Source(material.name, prototypes, head.to(self.device)))
            elif classes > self.backbone.width:
                raise ConfigError(
                    f"head=active has {self.backbone.width} coordinates "
                    f"for the {classes} classes of {material.name}"
                )
            else:
                self.sources.append(
                    Source(material.name, prototypes, columns=columns[:classes].to(self.device))
                )

    def batches(self) -> Iterator[list[Any]]:
        """One batch per source and meta-step, see :func:`clprompt.training.meta_steps.batches`."""
        settings = self.settings
        return meta_steps.batches(
            self,
            self.material,
            seed=settings.seed,
            batch_size=settings.train_mb_size,
            workers=settings.workers,
        )

    def meta_step(self, together: Sequence[Any]) -> None:
        """Adapt copies of the frame to a batch of each source, and move the frame towards their mean."""
        settings = self.settings
        rate = inner_rate(settings.inner_lr, self.step + 1, self.steps)
        batches, moved, inner_losses = [], [], []
        for source, (images, labels, *_) in zip(self.sources, together, strict=True):
            batch = Batch(self.backbone, self.places, source, images.to(self.device), labels.to(self.device))
            optimizer: InnerOptimizer = settings.inner_optimizer
            inner = list(
                adapt(
                    batch,
                    self.frame,
                    steps=settings.inner_steps,
                    lr=rate,
                    optimizer=optimizer,
                    weight_decay=settings.weight_decay,
                    head_lr=settings.head_lr,
                )
            )
            inner_losses.append((inner[0][0], inner[-1][0]))
            moved.append(inner[-1][1])
            batches.append(batch)
        self.frame = meta_update(
            self.frame,
            moved,
            [len(source.prototypes) for source in self.sources],
            step_size=settings.step_size,
            count_idle=settings.count_idle,
        )
        with torch.no_grad():
            after = float(torch.stack([batch.loss(self.frame[None]) for batch in batches]).mean())
        if not np.isfinite(after):
            raise DataError(f"the loss is {after} at meta-step {self.step}; lower inner_lr or head_lr")
        self.losses.append([*np.mean(inner_losses, axis=0).tolist(), after])
        self.step += 1
        averages = moving_average([loss[-1] for loss in self.losses])
        if averages[-1] == min(averages):
            self.best = self.frame

    def state(self) -> dict[str, Any]:
        """All that it takes to go on to the same bits."""
        heads = [s.head.state_dict() for s in self.sources if s.head is not None]
        return {
            "step": self.step,
            "frame": self.frame,
            "best": self.best,
            "losses": self.losses,
            "prototypes": [source.prototypes for source in self.sources],
            "columns": [source.columns for source in self.sources],
            "heads": [{key: value.clone() for key, value in head.items()} for head in heads],
        }

    def load_state(self, saved: Mapping[str, Any]) -> None:
        """Put back what :meth:`state` gave."""
        self.step, self.losses = saved["step"], saved["losses"]
        self.frame, self.best = saved["frame"].to(self.device), saved["best"].to(self.device)
        self.sources = []
        for number, material in enumerate(self.material):
            columns = saved["columns"][number]
            head = None
            if columns is None:
                head = nn.Linear(self.backbone.width, len(material.class_names))
                head.load_state_dict(saved["heads"][number])
                head.to(self.device)
            else:
                columns = columns.to(self.device)
            self.sources.append(
                Source(material.name, saved["prototypes"][number].to(self.device), head, columns)
            )


def moving_average(values: Sequence[float]) -> list[float]:
    """The mean of each value and up to nine before it."""
    return [float(np.mean(values[max(0, i + 1 - _AVERAGED) : i + 1])) for i in range(len(values))]


# --------------------------------------------------------------------------------------------------- run


def run(settings: MetaInit, out: Path, *, progress: Progress, command: Sequence[str]) -> list[Path]:
    """Learn a frame and write it; an interrupted meta-init of the same file and settings goes on.

    Args:
        settings: checked.
        out: the file to write; its loss curve is drawn beside it.
        progress: a display.
        command: the words that continue it.

    Returns:
        The file and the drawing.

    Raises:
        ConfigError: the file exists, or a setting does not fit the data.
        CheckpointError: what is there to go on from is of other settings.
        Interrupted: a signal stopped it; its checkpoint is written.
    """
    unfinished = Unfinished(out, dataclasses.asdict(settings))
    with reproducible(find_device(settings.device)), stop_signal() as stop:
        learner = Learner(settings)
        with unfinished.work():
            if not meta_steps.go_on(learner, unfinished, progress):
                learner.look()
            counts = ", ".join(f"{source.name} {len(source.prototypes)}" for source in learner.sources)
            progress.message(f"clusters: {counts}")
            progress.start("meta-init", 1)
            try:
                every = settings.checkpoint_every
                meta_steps.learn(learner, unfinished, progress, stop, checkpoint_every=every)
            except Interrupted as stopped:
                raise Interrupted(stopped.signal, again=command) from None
            return _write(learner, out)


def _write(learner: Learner, out: Path) -> list[Path]:
    from clprompt.reporting.plots import png

    settings = learner.settings
    facts = {
        "sources": [{"name": m.name, "classes": m.class_names} for m in learner.material],
        "clusters": [len(source.prototypes) for source in learner.sources],
        "seed": settings.seed,
        "steps": learner.step,
        "last_losses": learner.losses[-1],
        "settings": dataclasses.asdict(settings),
    }
    frame = learner.best if settings.keep == "lowest" else learner.frame
    drawing = out.with_suffix(".png")
    atomic_write(drawing, png(loss_curve(learner.losses)))
    save_frame(out, frame, learner.backbone, learner.pad, facts)
    return [out, drawing]


def loss_curve(losses: Sequence[Sequence[float]]) -> Any:
    """The losses of all meta-steps: before and after the inner steps, and of the frame after its update."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = figure.add_subplot()
    steps = np.arange(1, len(losses) + 1)
    columns = np.asarray(losses).T
    names = ("before the inner steps", "at the last inner step", "of the frame after its update")
    for values, name, colour in zip(columns, names, ("#d55e00", "#009e73", "#0072b2"), strict=True):
        axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
        axes.plot(steps, moving_average(values.tolist()), color=colour, linewidth=1.7, label=name)
    axes.set(xlabel="meta-step", ylabel="cross-entropy, mean over sources", ylim=(0, None))
    axes.set_title(f"Meta-init: the loss, and its mean over {_AVERAGED} steps", fontsize=10)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.legend(frameon=False)
    return figure
