"""The pictures of DAM-VP: frames, the map of an experience's clusters, contact sheets, framed images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from clprompt.strategies.damvp.clustering import ClusterMap

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from clprompt.strategies.damvp.model import DAMVPModel

_SHOWN = 64  # prompts in one picture
_NEAREST = 8  # images of a prototype on a contact sheet


def draw_map(cluster_map: ClusterMap, first: int, experience: int) -> Figure:
    """A scatter of the images, a colour and mark a cluster; prototypes bear their numbers from ``first``."""
    from matplotlib.figure import Figure

    from clprompt.reporting.plots import COLOURS, MARKERS

    figure = Figure(figsize=(6.4, 5.2), layout="constrained")
    axes = figure.add_subplot()
    for label, (x, y) in enumerate(cluster_map.prototypes.tolist()):
        members = cluster_map.points[cluster_map.labels == label]
        colour, mark = COLOURS[label % len(COLOURS)], MARKERS[label % len(MARKERS)]  # 7 x 8 pairs
        name = f"{first + label + 1}: {len(members)}"
        dots: dict[str, Any] = {"s": 14, "color": colour, "marker": mark, "alpha": 0.6, "linewidths": 0}
        axes.scatter(members[:, 0], members[:, 1], label=name, **dots)
        axes.scatter([x], [y], s=190, color="white", marker="o", edgecolors=[colour], linewidths=2, zorder=3)
        axes.text(x, y, str(first + label + 1), ha="center", va="center", fontsize=8, zorder=4)
    axes.set(
        xlabel="first principal axis",
        ylabel="second principal axis",
        title=f"Experience {experience}: {len(cluster_map.points)} images, "
        f"{len(cluster_map.prototypes)} clusters",
    )
    axes.set_aspect("equal", adjustable="datalim")
    if len(cluster_map.prototypes) <= 20:
        axes.legend(title="cluster: images", fontsize=8, title_fontsize=8, loc="best", markerscale=2)
    return figure


def diagnostics(model: DAMVPModel) -> dict[str, Any]:
    """The number of clusters, and pixel frames as images."""
    new = int((model.experience_of == model.experience).sum())
    values: dict[str, Any] = {"clusters/new": new, "clusters/all": len(model.prototypes)}
    if not bool(model.tau.isnan()):
        values["clusters/threshold"] = model.tau
    if model.prompt == "pixel" and len(model.frames):
        titles = [f"{number + 1}\nexp. {home + 1}" for number, home in enumerate(model.homes())]
        values["prompts/frames"] = lambda: draw_frames(model.framed(torch.stack(list(model.frames))), titles)
    return values


def look(model: DAMVPModel, images: Tensor) -> tuple[Tensor, Tensor]:
    """The prototype of each image and its distance, [B] each."""
    query = model.backbone.features(images)
    cluster = model.assign(query)
    return cluster, (query.float() - model.prototypes[cluster].float()).square().sum(1).sqrt()


def probe(model: DAMVPModel, images: Callable[[], Iterable[Tensor]]) -> dict[str, Any]:
    """The contact sheet of these images, which are not looked at before it is drawn."""
    if not len(model.prototypes):
        return {}
    titles = [f"cluster {k + 1}, exp. {int(e) + 1}" for k, e in enumerate(model.experience_of)]
    return {"clusters/nearest_images": lambda: contact_sheet(images(), partial(look, model), titles)}


def explain(model: DAMVPModel, images: Tensor) -> dict[str, Any]:
    """Per image its cluster, the cluster's frame, and what the backbone then sees."""
    cluster, distance = look(model, images)
    titles = [
        f"cluster {k + 1}\nexperience {int(model.experience_of[k]) + 1}\n"
        f"{d / float(model.radius[k]):.2f} radii"
        for k, d in zip(cluster.tolist(), distance.tolist(), strict=True)
    ]
    framed = None
    if model.prompt == "pixel":
        framed = model.framed(torch.stack([model.frames[k] for k in model.frame_of[cluster].tolist()]))
    return {"prompts": draw_explained(images, framed, titles)}


def as_picture(image: Tensor, scale: float | None = None) -> Tensor:
    """A normalised image [C, H, W] as [H, W, 3] in [0, 1]: stretched, or 0 in the middle of +- ``scale``."""
    image = image.detach().float().cpu()
    if scale is None:
        image = (image - image.min()) / (image.max() - image.min()).clamp(min=1e-6)
    else:
        image = 0.5 + 0.5 * image / scale
    shown = image if image.shape[0] == 3 else image[:1].expand(3, -1, -1)
    return shown.permute(1, 2, 0).clamp(0, 1)


def mosaic(rows: Sequence[Sequence[Tensor]], columns: int) -> tuple[Tensor, int]:
    """Pictures [H, W, 3] on one white canvas, far cheaper to draw than an axis for each; and the pitch."""
    height, width = next(picture for row in rows for picture in row).shape[:2]
    gap = max(1, round(height / 8))
    canvas = torch.ones(len(rows) * (height + gap) - gap, columns * (width + gap) - gap, 3)
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            top, left = y * (height + gap), x * (width + gap)
            canvas[top : top + height, left : left + width] = picture
    return canvas, height + gap


def draw_frames(framed: Tensor, titles: Sequence[str]) -> Figure:
    """Frames as images [K, C, H, W], grey where they change nothing."""
    from matplotlib.figure import Figure

    framed = framed.detach()
    scale = float(framed.abs().max().clamp(min=1e-6))
    shown = [as_picture(frame, scale) for frame in framed[:_SHOWN]]
    columns = min(len(shown), 8)
    rows = [shown[start : start + columns] for start in range(0, len(shown), columns)]
    canvas, pitch = mosaic(rows, columns)
    figure = Figure(figsize=(max(1.1 * columns, 3.6) + 0.4, 1.1 * len(rows) + 0.6), layout="constrained")
    more = f", the first {_SHOWN}" if len(framed) > _SHOWN else ""
    axes = figure.add_subplot(title=f"{len(framed)} frames{more}; white +{scale:.2g}, black -{scale:.2g}")
    axes.title.set_fontsize(8)
    axes.imshow(canvas, vmin=0, vmax=1, interpolation="nearest")
    axes.set_axis_off()
    middle = framed.shape[-1] / 2 - 0.5
    for number, title in enumerate(titles[: len(shown)]):
        x, y = (number % columns) * pitch + middle, (number // columns) * pitch + middle
        axes.text(x, y, title, ha="center", va="center", fontsize=6)
    return figure


def contact_sheet(
    batches: Iterable[Tensor],
    look: Callable[[Tensor], tuple[Tensor, Tensor]],
    titles: Sequence[str],
) -> Figure | None:
    """The images nearest to each prototype, among those that are assigned to it.

    Args:
        batches: images [B, C, H, W]; only the nearest are held.
        look: images -> the prototype of each [B] and its distance [B].
        titles: one per prototype, in order.

    Returns:
        A row per prototype; None without prototypes or images.
    """
    from matplotlib.figure import Figure

    best: list[list[tuple[float, Tensor]]] = [[] for _ in titles]
    counts = [0] * len(titles)
    total = 0
    for images in batches:
        total += len(images)
        for image, k, distance in zip(images, *(value.tolist() for value in look(images)), strict=True):
            counts[k] += 1
            if len(best[k]) < _NEAREST or distance < best[k][-1][0]:
                best[k] = sorted([*best[k], (distance, image.cpu())], key=lambda pair: pair[0])[:_NEAREST]
    shown = range(min(len(titles), _SHOWN))
    if not shown or not total:
        return None
    rows = [[as_picture(image) for _, image in best[k]] for k in shown]
    canvas, pitch = mosaic(rows, _NEAREST)
    figure = Figure(figsize=(0.55 * _NEAREST + 1.8, 0.55 * len(shown) + 0.5), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(canvas, vmin=0, vmax=1, interpolation="nearest")
    axes.set_title(f"nearest of {total} evaluation images to each prototype", fontsize=9)
    middle = rows[next(k for k in shown if best[k])][0].shape[0] / 2 - 0.5
    labels = [f"{titles[k]}: {counts[k]}" for k in shown]
    axes.set_yticks([y * pitch + middle for y in shown], labels, fontsize=7)
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


def draw_explained(images: Tensor, framed: Tensor | None, titles: Sequence[str]) -> Figure:
    """Each image, the frame that it is given, and both together.

    Args:
        images: [B, C, H, W].
        framed: the frame of each as an image; None for token prompts.
        titles: what to say of each.
    """
    from matplotlib.figure import Figure

    columns = 1 if framed is None else 3
    figure = Figure(figsize=(1.7 * columns + 1.6, 1.75 * len(images)), layout="constrained")
    grid = figure.subplots(len(images), columns, squeeze=False)
    scale = 1.0 if framed is None else float(framed.abs().max().clamp(min=1e-6))
    for number, row in enumerate(grid):
        pictures: list[Any] = [as_picture(images[number])]
        if framed is not None:
            both = torch.stack([images[number], images[number] + framed[number]])
            pictures += [as_picture(framed[number], scale), as_picture(both[1])]
        for axes, picture in zip(row, pictures, strict=True):
            axes.imshow(picture, vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[])
        row[0].set_ylabel(titles[number], fontsize=7, rotation=0, ha="right", va="center", labelpad=6)
    for axes, title in zip(grid[0], ("image", "frame", "image + frame"), strict=False):
        axes.set_title(title, fontsize=8)
    return figure
