"""A trained model as one artefact that is served elsewhere: ONNX, an exported program, or safetensors.

ONNX and exported programs take normalised images [B, C, H, W] of any number and give logits [B, classes],
-inf for classes that were never trained; what made the tensors of images and what the columns are called
stands in the file's metadata.
"""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from clprompt.backbones.build import check_exportable
from clprompt.errors import ClpromptError, ConfigError, ExportError, place
from clprompt.experiment import folder as runfolder
from clprompt.experiment import inference, paths
from clprompt.prompting.model import PromptModel
from clprompt.system.documents import read_json
from clprompt.system.files import atomic_write, one_line_errors

Format = Literal["onnx", "torch-export", "safetensors"]
#: What is written where nothing else is said, in the run's folder.
NAMES: dict[Format, str] = {"onnx": "model.onnx", "torch-export": "model.pt2", "safetensors": "exported"}
#: The key of the metadata, a JSON object; in an exported program the name of an extra file.
KEY = "clprompt.json"

#: Bytes of weights that one ONNX file takes, a limit of its format.
_LARGEST = 2**31 - 2**20


class Exported(NamedTuple):
    """What was written.

    Attributes:
        path: the file, or for safetensors the folder.
        difference: the largest difference between the model's logits for images of noise and those that
            what was written gives; None for safetensors, which holds the same numbers.
    """

    path: Path
    difference: float | None


def export(run: str | Path, form: Format, out: str | Path | None = None) -> Exported:
    """Write the model of a finished run in another form.

    Args:
        run: the run's folder.
        form: "onnx"; "torch-export", which ``torch.export.load`` reads without clprompt; or "safetensors", a
            folder for :func:`clprompt.load` that holds the backbone as well.
        out: where; None for a name of ``NAMES`` in the run's folder.

    Raises:
        ConfigError: a form that there is not.
        ExportError: the model cannot be written in it, or a package is missing.
        ClpromptError: the run cannot be loaded, see :func:`clprompt.load`.
    """
    if form not in get_args(Format):
        raise ConfigError(f'format must be one of {", ".join(get_args(Format))}, got "{form}"')
    run = Path(run)
    path = run / NAMES[form] if out is None else Path(out)
    if form == "safetensors":
        return Exported(_write_folder(run, path), None)
    model = inference.load(run)
    about = metadata(model, inference.read_facts(run))
    write = _write_onnx if form == "onnx" else _write_program
    try:
        return Exported(path, write(model, path, json.dumps(about)))
    except ClpromptError:
        raise
    except Exception as error:  # whatever the exporters of torch raise
        name = about["strategy"]["name"]
        why = [_first_line(error)]
        where = place(error, type(model), *map(type, model.plugins))
        if where:
            why.append(f"({where})")
        if "data-dependent" in why[0] or "DataDependent" in why[0]:
            why.append(
                "- a tensor is asked for its value there; of the experience, self.experience_index has it"
            )
        raise ExportError(f"strategy {name} cannot be written as {form}: {' '.join(why)}") from error


def metadata(model: PromptModel, facts: dict[str, Any]) -> dict[str, Any]:
    """What whoever serves a model has to know.

    Args:
        model: as :func:`clprompt.load` returns it.
        facts: what model.json says of its run.

    Returns:
        ``class_names``, one a column; ``trained``, the columns with finite logits; ``multi_label``, whether
        logits become probabilities by a sigmoid each, else by one softmax; ``preprocessing``, in the words
        of :class:`clprompt.inputs.ImageSpec`; ``strategy``; ``backbone``.
    """
    return {
        "class_names": facts["class_names"][: model.num_classes],
        "trained": model.predictable().nonzero().flatten().tolist(),
        "multi_label": bool(facts.get("multi_label")),
        "preprocessing": facts["transform"],
        "strategy": facts["strategy"],
        "backbone": facts["backbone"]["name"],
    }


# ------------------------------------------------------------------------------------------------ programs


class Logits(nn.Module):
    """A model as a function of images alone."""

    def __init__(self, model: PromptModel) -> None:
        super().__init__()
        self.model = model.eval()

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)


@torch.no_grad()
def as_program(function: nn.Module, images: Tensor) -> torch.export.ExportedProgram:
    """A function of images [B, C, H, W], for any B, as a graph of torch's operators.

    Args:
        function: in eval mode.
        images: two or more, since one is taken for a number that never changes.
    """
    function(images)  # what is asked of the state is asked here, and kept
    batch = torch.export.Dim("batch")
    with _quiet():
        return torch.export.export(function, (images,), dynamic_shapes=({0: batch},), strict=False)


def as_onnx(program: torch.export.ExportedProgram) -> Any:
    """The same as an ``onnx.ModelProto``, whose input is called "images" and whose output "logits".

    Raises:
        ExportError: a package of the extra clprompt[export] is missing, or torch is too old.
    """
    try:
        from onnxscript import opset18 as op
    except ImportError as error:
        raise ExportError('ONNX needs packages: pip install "clprompt[export]"') from error
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 6):
        raise ExportError(f"ONNX needs torch 2.6 or newer, this is {torch.__version__}")

    def sort_stable(values: Any, stable: Any = None, dim: int = -1, descending: bool = False) -> Any:
        # of equal values TopK takes the one in front first, as a stable sort does
        size: Any = op.Gather(op.Shape(values), op.Constant(value_ints=[dim]))  # type: ignore[type-var]
        return op.TopK(values, size, axis=dim, largest=int(descending), sorted=1)

    with _quiet():
        exported: Any = torch.onnx.export(
            program,
            dynamo=True,
            verbose=False,
            input_names=["images"],
            output_names=["logits"],
            custom_translation_table={torch.ops.aten.sort.stable: sort_stable},
        )
    return exported.model_proto


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch's exporters tell of themselves, whole graphs at times: their errors say enough."""
    before = logging.root.manager.disable
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)


def _write_onnx(model: PromptModel, path: Path, about: str) -> float:
    if sum(value.numel() * value.element_size() for value in model.state_dict().values()) > _LARGEST:
        raise ExportError("the weights are over 2 GB, the most that an ONNX file holds; use torch-export")
    images = _noise(model)
    proto = as_onnx(as_program(Logits(model), images))
    entry = proto.metadata_props.add()
    entry.key, entry.value = KEY, about
    data = proto.SerializeToString()
    difference = largest_difference(model, images, onnx_session(data))
    atomic_write(path, data)
    return difference


def onnx_session(data: bytes) -> Callable[[Tensor], Tensor]:
    """An ONNX model as ONNX Runtime computes it on the CPU, images -> logits."""
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def _write_program(model: PromptModel, path: Path, about: str) -> float:
    images = _noise(model)
    program = as_program(Logits(model), images)
    difference = largest_difference(model, images, program.module())
    atomic_write(path, lambda file: torch.export.save(program, file, extra_files={KEY: about}))
    return difference


def _noise(model: PromptModel) -> Tensor:
    size = (3, model.backbone.in_chans, *model.backbone.image_size)
    return torch.randn(size, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def largest_difference(model: PromptModel, images: Tensor, other: Callable[[Tensor], Tensor]) -> float:
    """Between the finite logits of a model and of what it became, in parts of the largest, or of 1.

    Raises:
        ExportError: others are finite, or they are no longer the same function.
    """
    difference = 0.0
    for batch in (images, images[:1]):
        logits, its = model(batch), other(batch)
        finite = logits.isfinite()
        if its.shape != logits.shape or not torch.equal(finite, its.isfinite()):
            raise ExportError("what was written gives logits of other classes")
        scale = logits[finite].abs().max().clamp(min=1)
        difference = max(difference, float(((logits - its)[finite].abs() / scale).max()))
    if not difference < 0.01:
        raise ExportError(f"what was written gives other logits, by {difference:.2g} of the largest")
    return difference


def _first_line(error: Exception) -> str:
    """What an exporter says, of the innermost cause, without its advice."""
    while error.__cause__ is not None and isinstance(error.__cause__, Exception):
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


# ------------------------------------------------------------------------------------------------ safetensors


def _write_folder(run: Path, out: Path) -> Path:
    """Model and backbone as a folder that :func:`clprompt.load` reads."""
    model = inference.load(run)
    facts = read_json(run / "model.json", runfolder.UNCOVERED)
    check_exportable(facts["backbone"])
    files = sorted(set(facts.get("files") or {}) - model.files_in_state())
    if files:
        raise ExportError(
            f"strategy.{files[0]} names a file, which a loaded model reads again and which cannot go along"
        )
    facts["backbone"] |= {"checkpoint": None, "pretrained": False}
    facts |= {key: paths.without_folders(facts[key]) for key in ("strategy", "files") if facts.get(key)}
    with one_line_errors(f"make the folder {out}"):
        out.mkdir(parents=True, exist_ok=True)
    runfolder.write_model(out, model.state_dict(), facts)
    return out
