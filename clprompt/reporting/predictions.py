"""`predictions.npz` of a run folder: what the last evaluation of the run predicted, test image by test image.

Arrays only, one place for each image, images ascending:

* `test_set`: a checksum of what the test set is known by, uint8 [32];
* `images`: indices into it, int32 [n];
* of labels `targets` and `predicted`: class ids, int32 [n];
* of label sets `classes`: the class ids of the columns, int32 [C], `targets`: 0/1, uint8 [n, C], and
  `scores`: logits, float32 [n, C];
* `trained_head_predicted` or `trained_head_scores`: the same of the trained head, where a plug-in answered in
  its place.

`results.json` holds the checksum of the file.

`test_images.csv` beside it says of data that are files which file each index is: `index`, `path` below the
folder that all images of the data set have in common, `class` (of label sets all of them, with "; " between),
and of labels the class `predicted`.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clprompt.errors import CheckpointError
from clprompt.metrics.last import LastPredictions
from clprompt.reporting.markup import csv_table
from clprompt.system.files import atomic_write, read_bytes

PREDICTIONS = "predictions.npz"
TEST_IMAGES = "test_images.csv"
_TRAINED_HEAD = "trained_head_"
Form = tuple[str, tuple[int, ...]]  # kind and shape of an array


def write(folder: Path, predictions: LastPredictions) -> str:
    """Write the file of a run folder, atomically; its SHA-256.

    Raises:
        ClpromptError: the operating system refused.
    """
    name = "predicted" if predictions.classes is None else "scores"
    arrays = {
        "test_set": predictions.test_set,
        "images": predictions.images,
        "targets": predictions.targets,
        name: predictions.outputs,
        f"{_TRAINED_HEAD}{name}": predictions.trained_head,
        "classes": predictions.classes,
    }
    held: dict[str, Any] = {key: values for key, values in arrays.items() if values is not None}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **held)
    data = buffer.getvalue()
    atomic_write(folder / PREDICTIONS, data)
    return hashlib.sha256(data).hexdigest()


def write_images(
    folder: Path, predictions: LastPredictions, files: Sequence[str], common: str, class_names: Sequence[str]
) -> None:
    """Write `test_images.csv` of a run folder, atomically.

    Args:
        folder: of the run.
        predictions: of the last evaluation.
        files: the path of each test image.
        common: what the paths of all images begin with, which is left out.
        class_names: by class id.

    Raises:
        ClpromptError: the operating system refused.
    """
    rows: list[Sequence[object]] = [("index", "path", "class", "predicted")]
    if predictions.classes is not None:
        rows = [("index", "path", "class")]
    for number, index in enumerate(predictions.images.tolist()):
        target = predictions.targets[number]
        ids = [target] if predictions.classes is None else predictions.classes[target.astype(bool)]
        names = ["; ".join(class_names[c] for c in ids)]
        if predictions.classes is None:
            names.append(class_names[predictions.outputs[number]])
        rows.append((index, PurePath(files[index].removeprefix(common)), *names))
    atomic_write(folder / TEST_IMAGES, csv_table(rows).encode(errors="surrogateescape"))


def read(folder: Path, checksum: str | None) -> LastPredictions:
    """The predictions of a run folder, checked.

    Args:
        folder: of a finished run.
        checksum: of the file, as results.json says; None where it says nothing of it.

    Raises:
        CheckpointError: the file is missing, cannot be read, is another than results.json tells of, or holds
            something else than predictions.
    """
    path = folder / PREDICTIONS
    try:
        data = read_bytes(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    if hashlib.sha256(data).hexdigest() != checksum:
        raise CheckpointError(f"{path} was changed or damaged: it is not what results.json tells of")
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            arrays = dict(file)
    except (OSError, ValueError, TypeError, LookupError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    wrong = _wrong(arrays)
    if wrong:
        raise CheckpointError(f"{path} holds no predictions: {wrong}")
    name = "scores" if "classes" in arrays else "predicted"
    return LastPredictions(
        arrays["images"],
        arrays["targets"],
        arrays[name],
        arrays.get(f"{_TRAINED_HEAD}{name}"),
        arrays.get("classes"),
        arrays["test_set"],
    )


def _wrong(arrays: Mapping[str, NDArray[Any]]) -> str:
    """What is wrong with the arrays of a file; "" for nothing."""
    images, columns = (arrays[key].shape[:1] if key in arrays else () for key in ("images", "classes"))
    labels: Form = ("int32", images)
    if "classes" in arrays:
        scores: Form = ("float32", images + columns)
        forms = {"targets": ("uint8", images + columns), "scores": scores, "classes": ("int32", columns)}
        may_lack = f"{_TRAINED_HEAD}scores"
        forms |= {may_lack: scores}
    else:
        may_lack = f"{_TRAINED_HEAD}predicted"
        forms = {"targets": labels, "predicted": labels, may_lack: labels}
    for key, (kind, shape) in {"test_set": ("uint8", (32,)), "images": labels, **forms}.items():
        if key not in arrays:
            if key != may_lack:
                return f"there is no array {key}"
        elif (str(arrays[key].dtype), arrays[key].shape) != (kind, shape):
            return f"{key} is {arrays[key].dtype} {list(arrays[key].shape)}, not {kind} {list(shape)}"
    if (np.diff(arrays["images"]) <= 0).any():
        return "images are not ascending"
    if "classes" in arrays and not (arrays["targets"] <= 1).all():
        return "targets are not 0 or 1"
    if not all(np.isfinite(values).all() for values in arrays.values()):
        return "a score is not finite"
    return ""
