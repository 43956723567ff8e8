"""A trained model at work: loaded from its run folder, predicting and explaining images of any kind."""

from __future__ import annotations

import fnmatch
import glob
import hashlib
import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, cast

import torch
from torch import Tensor

from clprompt import registry, schema
from clprompt.backbones.build import make_backbone
from clprompt.backbones.vit import FrozenViT
from clprompt.data.folders import Walk, photographs, walk
from clprompt.data.images import EXTENSIONS, MAX_PIXELS, UnreadableImage, read_image
from clprompt.data.transforms import make_transform
from clprompt.data.views import TestResize
from clprompt.errors import BackboneError, CheckpointError, ConfigError, DataError, RunFolderError, nearest
from clprompt.experiment import config as configuration
from clprompt.experiment import folder as runfolder
from clprompt.experiment import hub, sameness
from clprompt.experiment import paths as places
from clprompt.inputs import Corruption
from clprompt.prompting.build import make_method
from clprompt.prompting.model import PromptModel
from clprompt.prompting.plugin import Plugin, overrides
from clprompt.prompting.text.model import TextModel
from clprompt.prompting.text.names import as_text, check_read_apart
from clprompt.reporting.finished import not_a_run
from clprompt.reporting.markup import csv_table
from clprompt.schema import above, at_least, at_most, not_empty
from clprompt.system.documents import read_json
from clprompt.system.files import atomic_write, one_line_errors, read_bytes
from clprompt.system.runtime import find_device

if TYPE_CHECKING:
    from matplotlib.figure import Figure


# ------------------------------------------------------------------------------------------------ loading


def load(
    folder: str | Path,
    *,
    device: str = "cpu",
    plugins: Iterable[Plugin] = (),
    checkpoint: str | Path | None = None,
) -> PromptModel:
    """The trained model of a finished run folder, in eval mode.

    It carries `class_names`, by class id, and `transform`, which makes the tensor [C, H, W] that the model
    expects from a path, the bytes of a file or an image of Pillow's: the pixels of `clprompt predict`. The
    backbone is built again from where the run had it, unless the run has `export: full`; files that keys of
    its strategy name are read again, where model.json says that they are, or from the run folder.

    Args:
        folder: of the run; or "hf://user/name" or "hf://user/name@revision", a model that `clprompt push`
            uploaded, see :mod:`clprompt.experiment.hub`.
        device: where the model shall be; "auto" takes a GPU where there is one.
        plugins: those that the run was made with from Python; what its configuration names is known.
        checkpoint: the file of the backbone's weights, where it is not any more where the run had it.

    Raises:
        RunFolderError: not a run folder, or the run is not finished.
        CheckpointError: its model cannot be read.
        HubError: the repository cannot be reached, or holds no such model.
        ConfigError: a checkpoint for a run that holds its backbone.
        ClpromptError: the backbone cannot be built, or a file of the strategy cannot be read, or either is
            another than in the run.
    """
    folder = hub.local(folder)
    facts = read_facts(folder)
    tensors = _read_tensors(folder / "model.safetensors", facts.get("tensors_sha256"))
    prefix = "backbone."
    weights = {key.removeprefix(prefix): v for key, v in tensors.items() if key.startswith(prefix)}
    backbone = _backbone_of(folder, facts, weights, checkpoint)
    files = facts.get("files") or {}
    try:
        find = places.of_run(folder)
        strategy = facts["strategy"] | {key: find(file["path"]) for key, file in files.items()}
        section = configuration.named(strategy, "strategy", of_run=True)
        model = make_method(section, backbone, seed=facts["seed"], plugins=plugins, restored=True)
    except (ConfigError, DataError) as error:
        raise type(error)(f"{folder / 'model.json'}: {error}") from error
    if files:  # what has another name by now is in the state
        then = {key: file["sha256"] for key, file in files.items() if key in section}
        sameness.check_files(then, model, section, folder)
    with runfolder.fitting(folder / "model.safetensors"):
        model.load_state_dict({key: value for key, value in tensors.items() if not key.startswith(prefix)})
    if len(facts["class_names"]) < model.num_classes:
        raise CheckpointError(
            f"{folder / 'model.json'} has {len(facts['class_names'])} class_names, its model "
            f"{model.num_classes} classes"
        )
    model.class_names = list(facts["class_names"])
    model.transform = make_transform(backbone)
    return model.to(find_device(device)).eval()


def read_facts(folder: Path) -> dict[str, Any]:
    """What model.json says of a finished run.

    Raises:
        RunFolderError: not a run folder, or the run is not finished.
        CheckpointError: the file is damaged, or holds something else.
    """
    path = folder / "model.json"
    if not path.exists():
        if not (folder / "config.yaml").exists():
            raise not_a_run(folder)
        raise RunFolderError(f"{folder} holds no trained model; finish the run first")
    facts = read_json(path, runfolder.UNCOVERED)
    try:
        schema.held(_Facts, facts, "")
        for key, kind in (("strategy", _Named), ("backbone", _Backbone), ("transform", _Transform)):
            schema.held(kind, facts[key], key)
        for key, file in (facts.get("files") or {}).items():
            schema.held(_File, file, f"files.{key}")
    except ConfigError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    return facts


@dataclass(frozen=True)
class _Facts:
    """What model.json holds; older versions wrote no checksums."""

    strategy: dict[str, Any]
    seed: Annotated[int, at_least(0), at_most(2**32 - 1)]
    backbone: dict[str, Any]
    class_names: Annotated[list[str], not_empty]
    transform: dict[str, Any]
    multi_label: bool = False
    tensors_sha256: str | None = None
    files: dict[str, dict[str, str]] | None = None


@dataclass(frozen=True)
class _File:
    """Of a file that a key of the strategy names, and of what it gave."""

    path: str
    sha256: str


@dataclass(frozen=True)
class _Named:
    """Of a section."""

    name: str


@dataclass(frozen=True)
class _Backbone:
    """Of the backbone."""

    name: str
    sha256: str
    pretrained: bool | None = False
    checkpoint: str | None = None


@dataclass(frozen=True)
class _Transform:
    """Of the images."""

    interpolation: Literal["nearest", "nearest-exact", "bilinear", "bicubic", "box", "hamming", "lanczos"]
    antialias: bool
    mean: list[float]
    std: list[Annotated[float, above(0)]]
    test_resize: TestResize = None
    corrupt: Corruption | None = None


def _read_tensors(path: Path, sha256: str | None) -> dict[str, Tensor]:
    """The tensors of a file.

    Raises:
        CheckpointError: it cannot be read, or its checksum is not this one.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load as tensors_in

    try:
        data = read_bytes(path)
        if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
            raise CheckpointError(
                f"{path} was changed or damaged: its checksum is not the one in model.json, tensors_sha256"
            )
        return tensors_in(data)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    except (SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def _backbone_of(
    folder: Path, facts: Mapping[str, Any], weights: Mapping[str, Tensor], checkpoint: str | Path | None
) -> FrozenViT:
    """The backbone of a run, from its weights where the folder holds them, else from its source."""
    section = dict(facts["backbone"])
    fingerprint = section.pop("sha256")
    if weights:
        if checkpoint is not None:
            raise ConfigError(f"{folder} holds its backbone (export: full); it takes no checkpoint")
        section |= {"pretrained": False, "checkpoint": None}
    elif checkpoint is not None:
        section = places.with_weights(section, checkpoint)
    elif section.get("checkpoint") is not None:
        section["checkpoint"] = places.of_run(folder)(section["checkpoint"])
        if not os.path.exists(section["checkpoint"]):
            raise BackboneError(
                f"backbone.checkpoint: no file {section['checkpoint']}, and none of that name in {folder}; "
                "say where it is: --checkpoint FILE (from Python: checkpoint=)"
            )
    backbone = make_backbone(section)
    if weights:
        try:
            backbone.load_state_dict(weights)
        except RuntimeError as error:
            raise CheckpointError(
                f"{folder}: the exported backbone does not fit {backbone.source}"
            ) from error
    if backbone.fingerprint() != fingerprint:
        raise CheckpointError(f"{folder}: backbone {backbone.source} has other weights than in the run")
    try:  # as in the run, whatever timm says of it now
        backbone.inputs = backbone.inputs.updated(facts["transform"])
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / 'model.json'} cannot be read: transform: {error}") from error
    return backbone


# ------------------------------------------------------------------------------------------------ images


#: What takes the message of an image, or a folder, that cannot be read; the rest goes on.
OnBadImage = Callable[[str], None]


def find_images(words: Iterable[str], on_bad_image: OnBadImage | None = None) -> list[Path]:
    """The image files that words name: files as they stand, folders with all photographs below, patterns.

    What counts as a photograph is what it is for training, see :mod:`clprompt.data.folders`.

    Args:
        words: the words.
        on_bad_image: is told of a folder that cannot be read; None for an error.

    Raises:
        DataError: a word that names no file, or a folder that cannot be read.
    """
    files: list[Path] = []
    for word in words:
        if os.path.isdir(word):
            files += _below(word, on_bad_image)
        elif os.path.lexists(word):
            files.append(Path(word))
        else:
            matches = _matching(word, on_bad_image)
            if not matches:
                raise DataError(f"{word}: there is no such image")
            files += matches
    return list(dict.fromkeys(files))


def _below(folder: str, on_bad_image: OnBadImage | None) -> list[Path]:
    held = photographs([folder])
    _tell_closed(held.below, on_bad_image)
    if folder in held.below.runs:
        raise DataError(f"{folder}: this is the folder of a run, which holds no photographs")
    held.tell(folder)
    if not held.paths and not held.below.closed:
        raise DataError(f"{folder}: no image in this folder; images end in {', '.join(EXTENSIONS)}")
    return sorted(map(Path, held.paths))


def _tell_closed(below: Walk, on_bad_image: OnBadImage | None) -> None:
    for path, reason in below.closed:
        text = f"{path}: the folder cannot be read: {reason}"
        if on_bad_image is None:
            raise DataError(text)
        on_bad_image(text)


def _matching(pattern: str, on_bad_image: OnBadImage | None) -> list[Path]:
    """The files that a pattern means, sorted; `**` goes through each real folder once."""
    start, stars, _ = pattern.partition("**")
    if not stars:
        return [path for path in map(Path, sorted(glob.glob(pattern))) if path.is_file()]
    start = start[: start.rfind("/") + 1]  # what stands before the first part with **
    parts = pattern[len(start) :].split("/")
    found = []
    for folder in filter(os.path.isdir, glob.glob(start) if start else ["."]):
        below = walk([folder])
        _tell_closed(below, on_bad_image)
        for inner in below.folders:
            names = [name for name in inner.files if _fits([*inner.parts, name], parts)]
            found += [os.path.join(folder, *inner.parts, name) for name in names]
    return [Path(path) for path in sorted(found) if os.path.isfile(path)]


def _fits(names: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether the names of folders and of a file in them fit the parts of a pattern."""
    if not pattern or not names:
        return not pattern and not names
    if pattern[0] != "**":
        return fnmatch.fnmatchcase(names[0], pattern[0]) and _fits(names[1:], pattern[1:])
    rest = pattern[1:] or ["*"]
    return any(_fits(names[skip:], rest) for skip in range(len(names)))


def batches(
    model: PromptModel,
    paths: Sequence[Path],
    size: int,
    *,
    max_pixels: int = MAX_PIXELS,
    on_bad_image: OnBadImage | None = None,
) -> Iterator[tuple[Sequence[Path], Tensor]]:
    """Image files in batches [B, C, H, W] on the model's device, under its transform.

    Args:
        model: as `load` returns it.
        paths: image files.
        size: of a batch; the last one may be smaller.
        max_pixels: an image with more cannot be read.
        on_bad_image: is told of an image that cannot be read, which is left out; None for an error.

    Raises:
        UnreadableImage: an image that cannot be read.
    """
    files: list[Path] = []
    images: list[Tensor] = []
    for path in paths:
        try:
            images.append(model.transform(read_image(path, max_pixels=max_pixels)))
        except UnreadableImage as error:
            if on_bad_image is None:
                raise
            on_bad_image(str(error))
            continue
        files.append(path)
        if len(files) == size:
            yield files, torch.stack(images).to(model.device)
            files, images = [], []
    if files:
        yield files, torch.stack(images).to(model.device)


# ------------------------------------------------------------------------------------------------ prediction


class Prediction(NamedTuple):
    """One of the likeliest classes of one image; rank counts from 1."""

    path: Path
    rank: int
    class_name: str
    probability: float


@torch.no_grad()
def predict(
    model: PromptModel,
    paths: Sequence[Path],
    *,
    top_k: int = 5,
    batch_size: int = 32,
    multi_label: bool = False,
    names: Sequence[str] | None = None,
    max_pixels: int = MAX_PIXELS,
    on_bad_image: OnBadImage | None = None,
) -> Iterator[Prediction]:
    """The likeliest classes of image files, among those that the model has seen or names that are given.

    Args:
        model: as `load` returns it.
        paths: image files.
        top_k: classes per image; fewer where the model has seen fewer.
        batch_size: changes speed and memory alone.
        multi_label: the probability of each class by itself, in place of a distribution over all.
        names: what an image may show, in place of the model's classes; they need not have been trained.
        max_pixels: see `batches`.
        on_bad_image: see `batches`.

    Yields:
        `top_k` predictions per image, images in order, the likeliest class first.

    Raises:
        ConfigError: names for a model that has no text tower or does not read texts, an empty one, two equal
            ones, or one that is too long.
        UnreadableImage: an image that cannot be read.
        CheckpointError: an answer that is not a number.
    """
    answer: Callable[[Tensor], Tensor]
    if names is None:
        answer, seen, class_names = model, model.seen, model.class_names
    else:
        class_names = checked_names(model, names)
        answer = partial(cast(TextModel, model).name_logits, names=class_names)
        seen = torch.ones(len(names), dtype=torch.bool)
    count = min(top_k, int(seen.sum()))
    for files, images in batches(model, paths, batch_size, max_pixels=max_pixels, on_bad_image=on_bad_image):
        logits = answer(images).double()
        finite = logits[:, seen].isfinite().all(1)  # (B)
        if not finite.all():
            path = files[int(finite.logical_not().nonzero()[0])]
            raise CheckpointError(
                f"{path}: the model's answer is not a number (NaN or infinite): its weights, or those of its "
                "backbone, are damaged"
            )
        probabilities = logits.sigmoid() if multi_label else logits.softmax(dim=1)
        ranked = logits.sort(dim=1, descending=True, stable=True).indices[:, :count]  # (B, top_k)
        for path, row, classes in zip(files, probabilities, ranked.tolist(), strict=True):
            for rank, number in enumerate(classes, start=1):
                yield Prediction(path, rank, class_names[number], float(row[number]))


def probability_is(model: PromptModel, *, multi_label: bool = False, by_name: bool = False) -> str:
    """What the probabilities of :func:`predict` are, in words.

    Args:
        model: as `load` returns it.
        multi_label: as given to :func:`predict`.
        by_name: names are given to it.
    """
    answering = [plugin for plugin in model.plugins if overrides(plugin, "logits")]
    among = "the names given" if by_name else "the classes seen"
    what = "similarities to texts" if by_name else (*answering, model)[0].scores_are
    if multi_label:
        return f"the sigmoid, class by class, of {what}"
    return f"the softmax, over {among}, of {what}"


def checked_names(model: PromptModel, names: Sequence[str]) -> list[str]:
    """Names that a model shall tell apart, as text.

    Raises:
        ConfigError: the model reads no names, there is none, one is empty, two are read alike, or one is too
            long.
    """
    if not isinstance(model, TextModel):
        raise ConfigError(
            f"names: {type(model).__name__} reads no text; it knows the classes that it was trained on alone"
        )
    texts = [as_text(name) for name in names]
    if not texts or not all(texts):
        raise ConfigError(f"names must be one name or more, none of them empty; got {schema.show([*names])}")
    check_read_apart(texts, model.read, ["names:"] * len(texts), "give each once")
    return texts


def to_csv(predictions: Iterable[Prediction]) -> str:
    """A header and one line per prediction."""
    header = ["path", "rank", "class", "probability"]
    return csv_table(
        [header, *([path, rank, name, f"{chance:.6f}"] for path, rank, name, chance in predictions)]
    )


# ------------------------------------------------------------------------------------------------ explanation


def explain(
    folder: str | Path,
    paths: Sequence[Path],
    *,
    classes: Sequence[str] | None = None,
    device: str = "cpu",
    checkpoint: str | Path | None = None,
    max_pixels: int = MAX_PIXELS,
    on_bad_image: OnBadImage | None = None,
) -> Mapping[str, Figure]:
    """What the run's method has to show about how it sees these images, as plots by name.

    Args:
        folder: see `load`; its strategy has `explain(images) -> mapping of plots`.
        paths: image files; the method gets all of them as one batch.
        classes: names of classes to look at beside the predicted one, of a strategy whose `explain` takes
            their ids as `classes`; None for those that it chooses.
        device: see `load`.
        checkpoint: see `load`.
        max_pixels: see `batches`.
        on_bad_image: see `batches`.

    Returns:
        Plots by name; none where no image can be read.

    Raises:
        ConfigError: the strategy explains nothing, or not by class; a class that the model does not know.
        ClpromptError: see `load`.
    """
    folder = hub.local(folder)
    facts = read_facts(folder)
    name = facts["strategy"]["name"]
    draws = _explain_of(name)
    if draws is None:
        others = [method for method in registry.strategies.names() if _explain_of(method) is not None]
        raise ConfigError(
            f"strategy {name} explains nothing: it has no explain(images); "
            f"those that have are {', '.join(others)}"
        )
    chosen: dict[str, list[int]] = {}
    if classes is not None:
        if "classes" not in inspect.signature(draws).parameters:
            raise ConfigError(f"strategy {name} takes no classes: its explain does not compare them")
        chosen["classes"] = [_class_id(word, facts["class_names"]) for word in classes]
    model: Any = load(folder, device=device, checkpoint=checkpoint)
    for word, label in zip(classes or (), chosen.get("classes", ()), strict=True):
        if label >= model.num_classes or not bool(model.predictable()[label]):
            raise ConfigError(f'classes: the model was never trained on "{word}"')
    readable = batches(model, paths, len(paths), max_pixels=max_pixels, on_bad_image=on_bad_image)
    for _, images in readable:
        return model.explain(images, **chosen)
    return {}


def _explain_of(method: str) -> Callable[..., Any] | None:
    """What draws for a strategy; None where nothing does."""
    explain = getattr(registry.strategies.get(method).target, "explain", None)
    return explain if callable(explain) else None


def _class_id(name: str, class_names: Sequence[str]) -> int:
    """The id of a class by its name.

    Raises:
        ConfigError: none is called so.
    """
    if name not in class_names:
        raise ConfigError(
            f"classes: no class of the run is called {schema.show(name)}"
            f"{nearest(name, class_names) or '; there are ' + _some(class_names)}"
        )
    return class_names.index(name)


def _some(names: Sequence[str], most: int = 10) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def draw(plots: Mapping[str, Figure], folder: Path) -> list[Path]:
    """Write plots as PNG files named after them; their paths."""
    from clprompt.reporting.plots import png

    with one_line_errors(f"make the folder {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, figure in plots.items():
        plain = "".join(mark if mark.isalnum() or mark in "-_." else "_" for mark in name)
        paths.append(folder / f"{plain}.png")
        atomic_write(paths[-1], png(figure))
    return paths
