"""What a run writes while it goes on, and the summary that it prints.

`metrics.jsonl` is the one source: a JSON object a line, without times, so that two runs of one configuration
are equal byte for byte. The TensorBoard dashboards, the tables and the figures are drawn from it.

TensorBoard tags, each on an axis of its own (`<jj>` counts class groups from 01; the value after k
experiences stands at k; the forgetting starts at 2):

| tag | kind | axis |
|---|---|---|
| `train/<term>`, `train/accuracy`, `train/lr` | scalar | optimizer steps |
| `speed/images_per_second` | scalar | optimizer steps |
| `accuracy/group_<jj>`, `accuracy/average`, `accuracy/forgetting` | scalar | experiences |
| `anytime/accuracy` | scalar | training samples |
| `final/<figure of results.json>` | scalar | experiences, one point |
| `accuracy_matrix`, `accuracy_curves`, `confusion_matrix` | image | experiences |
| `anytime_accuracy` (online runs) | image | experiences |
| `per_class_accuracy` | text: a table of all classes | experiences |
| whatever a strategy's `diagnostics` are called | scalar, histogram or image | experiences |

The HPARAMS tab shows the settings of finished runs beside their last figures, `final/<figure>` among them.

The custom-scalars tab shows the accuracies of all class groups in one chart, which is the forgetting, the
average accuracy with the forgetting's figure in a second, and the loss terms in a third.

torch is not needed here; matplotlib and tensorboard are imported when a tracker is made.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from clprompt.errors import CheckpointError
from clprompt.metrics import accuracy as metrics
from clprompt.reporting.markup import markdown_table
from clprompt.system.files import AppendOnlyFile, atomic_write, one_line_errors, remove_temporaries
from clprompt.tracking.tensorboard import EventFile, custom_charts, hyperparameters, text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_METRICS = "metrics.jsonl"
_TENSORBOARD = "tensorboard"

_CHARTS = {  # of the custom-scalars tab: regular expressions over tags
    "accuracy per class group": [r"^accuracy/group_\d+$"],
    "average accuracy and forgetting": [r"^accuracy/average$", r"^accuracy/forgetting$"],
    "loss terms": [r"^train/(?!(accuracy|lr)$)"],
}

Record = dict[str, Any]


class RunTracker:
    """Writes the records of one run: `metrics.jsonl`, TensorBoard events, and at the end tables and figures.

    A resumed run is exact because every append-only file is cut back to the size that it had at the
    checkpoint; what a killed process wrote after it is gone, and new events go to a further file.

    Args:
        folder: an existing run folder that nobody else writes to (see `clprompt.system.files.FolderLock`).
        class_names: the names of the classes 0..C-1.
        groups: the classes of each class group, the groups in the order of `records[...]["groups"]`.
        sizes: what `flush` returned when the checkpoint was written; None starts afresh and removes the
            records of an earlier start.

    Raises:
        CheckpointError: a recorded file is missing, shorter than recorded, outside the folder or unreadable.
            Nothing has been changed then.
        ClpromptError: the folder cannot be written.
    """

    charts: ClassVar[Mapping[str, Sequence[str]]] = _CHARTS

    def __init__(
        self,
        folder: str | os.PathLike[str],
        class_names: Sequence[str],
        groups: Sequence[Sequence[int]],
        sizes: Mapping[str, int] | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.class_names = list(class_names)
        self.groups = [list(group) for group in groups]
        existing = _append_only_files(self.folder)
        if sizes is None:
            sizes = {}
            self.records: list[Record] = []
        else:
            _check_sizes(self.folder, sizes)
            self.records = _read_records(self.folder / _METRICS, sizes.get(_METRICS, 0))
        with one_line_errors(f"prepare {self.folder}"):
            (self.folder / _TENSORBOARD).mkdir(exist_ok=True)
            remove_temporaries(self.folder)
            for name in existing - sizes.keys():
                (self.folder / name).unlink()
            for name, size in sizes.items():
                os.truncate(self.folder / name, size)
        self._metrics = AppendOnlyFile(self.folder / _METRICS)
        # A name later than all that were ever here, removed ones included: a TensorBoard that is watching
        # the folder would otherwise go on reading a new file where it stopped in the old one.
        self._events = EventFile(self.folder / _TENSORBOARD, after=existing)
        self._sizes = {name: size for name, size in sizes.items() if name != _METRICS}
        self._finished = False
        if not self._sizes:  # else an earlier file has it
            self._events.add(0, custom_charts("class-incremental learning", self.charts))
        self.flush()

    def record(self, record: Mapping[str, Any]) -> None:
        """Append one record (a `train` or `evaluation` object; see `metrics.jsonl`) and chart it.

        Other kinds are written and not charted. Numbers may be Python's, numpy's or one-element tensors;
        those that are not finite become null, which is all that JSON has for them.
        """
        clean = _jsonable(record)
        if clean.get("kind") not in ("train", "evaluation"):
            scalars, step = {}, 0
        elif clean["kind"] == "train":
            scalars, step = _train_scalars(clean), clean["step"]
        elif clean["when"] == "anytime":
            scalars, step = self._anytime_scalars(clean), clean["samples"]
        else:
            scalars, step = self._experience_scalars(clean), clean["experience"] + 1
        self._metrics.append((json.dumps(clean, sort_keys=True, allow_nan=False) + "\n").encode())
        self._metrics.drain()
        self.records.append(clean)
        self._events.scalars(step, scalars)
        if clean.get("kind") == "evaluation" and clean["when"] == "experience":
            for tag, figure in self._figures(clean).items():
                self._events.image(step, tag, figure)
            if clean.get("confusion") is not None:
                counts = metrics.confusion_matrix(clean["confusion"], len(self.class_names))
                cells = [[str(cell) for cell in row] for row in self._class_rows(counts) if row[3]]
                self._events.add(step, text("per_class_accuracy", "\n".join(markdown_table(cells))))

    def hyperparameters(self, values: Mapping[str, Any]) -> None:
        """Show the settings of the run in TensorBoard's HPARAMS tab; called when it is done."""
        for summary in hyperparameters(values, f"{self.folder.parent.name}/{self.folder.name}"):
            self._events.add(0, summary)

    def speed(self, step: int, images_per_second: float) -> None:
        """Chart the speed; it is no record, for records are the same in every run of a configuration."""
        self._events.scalars(step, {"speed/images_per_second": images_per_second})

    def diagnostics(self, step: int, values: Mapping[str, Any]) -> None:
        """Show what a strategy has to tell about itself.

        Args:
            step: experiences so far.
            values: by tag, a matplotlib Figure (image; its latest state is a file in `figures/` too), a number or
                one-element tensor (scalar), or any other array or tensor (histogram of its finite values).
        """
        for tag, value in values.items():
            if hasattr(value, "savefig"):
                self._events.image(step, tag, value)
                self._draw({tag.replace("/", "_"): value})
                continue
            array = _as_array(value)
            if array.size == 1:
                self._events.scalars(step, {tag: array.item()})
            else:
                self._events.histogram(step, tag, array)

    def flush(self) -> dict[str, int]:
        """Make everything durable and return the sizes of all append-only files, by their path in the folder.

        The sizes belong into the checkpoint that is written next.
        """
        events = f"{_TENSORBOARD}/{self._events.file.path.name}"
        return {**self._sizes, _METRICS: self._metrics.sync(), events: self._events.file.sync()}

    def finish(self) -> dict[str, float]:
        """Write the tables and figures of the finished run and return `clprompt.metrics.accuracy.summarise`.

        `accuracy_matrix.csv`, `per_class_accuracy.csv`, `confusion_matrix.csv` and `figures/*.png`, each
        replaced atomically; without an evaluation at the end of an experience there is nothing to write.
        """
        results = metrics.summarise(self.records)
        last = self._last_evaluation()
        if last is None:
            return results
        atomic_write(self.folder / "accuracy_matrix.csv", _csv(self._matrix_rows()))
        if last.get("confusion") is not None:
            counts = metrics.confusion_matrix(last["confusion"], len(self.class_names))
            atomic_write(self.folder / "per_class_accuracy.csv", _csv(self._class_rows(counts)))
            header = ["true class \\ predicted class", *self.class_names]
            rows = ([name, *row] for name, row in zip(self.class_names, counts.tolist(), strict=True))
            atomic_write(self.folder / "confusion_matrix.csv", _csv([header, *rows]))
        from clprompt.reporting import plots

        forgetting = plots.forgetting(metrics.accuracy_matrix(self.records))  # in TensorBoard a chart
        self._conclude(results, last, {**self._figures(last), "forgetting": forgetting})
        return results

    def _conclude(self, results: Mapping[str, float], last: Record, drawn: Mapping[str, Figure]) -> None:
        """Write the drawings, and the final figures to TensorBoard once."""
        self._draw(drawn)
        if not self._finished:
            final = {f"final/{key}": value for key, value in results.items() if not math.isnan(value)}
            self._events.scalars(last["experience"] + 1, final)
            self._finished = True
        self.flush()

    def _draw(self, drawn: Mapping[str, Figure]) -> None:
        from clprompt.reporting import plots

        with one_line_errors(f"write {self.folder / 'figures'}"):
            (self.folder / "figures").mkdir(exist_ok=True)
        for name, figure in drawn.items():
            atomic_write(self.folder / "figures" / f"{name}.png", plots.png(figure))

    def close(self) -> None:
        """Write what is pending and close the files; a second call does nothing."""
        try:
            self._metrics.close()
        finally:
            self._events.file.close()

    def _last_evaluation(self) -> Record | None:
        for record in reversed(self.records):
            if record.get("kind") == "evaluation" and record["when"] == "experience":
                return record
        return None

    def _anytime_scalars(self, record: Record) -> dict[str, float | None]:
        return {"anytime/accuracy": record["accuracy"]}

    def _experience_scalars(self, record: Record) -> dict[str, float | None]:
        row, width = record["experience"], max(2, len(str(len(record["groups"]))))
        matrix = metrics.accuracy_matrix([*self.records, record])[: row + 1, : row + 1]
        scalars = {f"accuracy/group_{j + 1:0{width}d}": value for j, value in enumerate(record["groups"])}
        scalars["accuracy/average"] = metrics.average_accuracy(matrix)
        scalars["accuracy/forgetting"] = metrics.forgetting(matrix)
        # A group that was not seen yet has no point, and no forgetting is defined after one experience.
        return {tag: value for tag, value in scalars.items() if value is not None and not math.isnan(value)}

    def _figures(self, record: Record) -> dict[str, Figure]:
        from clprompt.reporting import plots

        matrix = metrics.accuracy_matrix(self.records)
        drawn = {
            "accuracy_matrix": plots.accuracy_matrix(matrix),
            "accuracy_curves": plots.accuracy_curves(matrix),
        }
        if metrics.is_online(self.records):
            drawn["anytime_accuracy"] = plots.anytime_accuracy(self.records)
        if record.get("confusion") is not None:
            counts = metrics.confusion_matrix(record["confusion"], len(self.class_names))
            drawn["confusion_matrix"] = plots.confusion_matrix(counts, self.class_names)
        return drawn

    def _matrix_rows(self) -> list[list[object]]:
        matrix = metrics.accuracy_matrix(self.records)
        header: list[object] = ["after_experience", *(f"group_{j + 1}" for j in range(len(matrix)))]
        return [header, *([i + 1, *map(_cell, row)] for i, row in enumerate(matrix))]

    def _class_rows(self, counts: NDArray[np.int64]) -> list[list[object]]:
        group_of = {c: j + 1 for j, group in enumerate(self.groups) for c in group}
        rows: list[list[object]] = [["class", "name", "group", "samples", "correct", "accuracy"]]
        for c, name in enumerate(self.class_names):
            samples, correct = int(counts[c].sum()), int(counts[c, c])
            accuracy = correct / samples if samples else math.nan
            rows.append([c, name, group_of.get(c, ""), samples, correct, _cell(accuracy)])
        return rows


def _append_only_files(folder: Path) -> set[str]:
    """The files of a run folder that only grow, as paths relative to it with forward slashes."""
    events = {f"{_TENSORBOARD}/{path.name}" for path in (folder / _TENSORBOARD).glob("*tfevents*")}
    return events | ({_METRICS} if (folder / _METRICS).exists() else set())


def _check_sizes(folder: Path, sizes: Mapping[str, int]) -> None:
    """Refuse, before anything is cut, what a checkpoint of this folder cannot have recorded."""
    for name, size in sizes.items():
        parts = PurePosixPath(name).parts
        is_events = len(parts) == 2 and parts[0] == _TENSORBOARD and "tfevents" in parts[1]
        if not (name == _METRICS or is_events) or not isinstance(size, int) or size < 0:
            raise CheckpointError(f"{folder}: the checkpoint records {name!r} with size {size!r}: not ours")
        path = folder / name
        if path.is_symlink() or not path.is_file():
            raise CheckpointError(f"{path} is missing, but the checkpoint recorded {size} bytes of it")
        found = path.stat().st_size
        if found < size:
            raise CheckpointError(
                f"{path} has {found} bytes, fewer than the {size} that the checkpoint recorded"
            )


def _read_records(path: Path, size: int) -> list[Record]:
    """The records in the first bytes of `metrics.jsonl`."""
    if size == 0:
        return []
    try:
        with open(path, "rb") as file:
            data = file.read(size)
        if not data.endswith(b"\n"):
            raise ValueError("not at the end of a line")
        return [json.loads(line) for line in data.splitlines()]
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read up to the checkpoint at byte {size}: {error}"
        ) from error


def _jsonable(value: Any) -> Any:
    """Plain JSON values from numbers of numpy and torch too; what is not finite becomes None."""
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _jsonable(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(entry) for entry in value]
    if hasattr(value, "tolist"):  # arrays, tensors and their scalars
        return _jsonable(value.tolist())
    raise TypeError(f"a record cannot hold a {type(value).__name__}: {value!r}")


def _as_array(value: Any) -> NDArray[np.float64]:
    """Any numbers, a torch tensor of any type and device included, as float64."""
    if hasattr(value, "detach"):
        value = value.detach().cpu().double().numpy()
    return np.asarray(value, dtype=np.float64)


def _train_scalars(record: Record) -> dict[str, float | None]:
    scalars = {f"train/{name}": value for name, value in record["terms"].items()}
    for name in ("accuracy", "lr"):
        if name in record["terms"]:
            raise ValueError(
                f'a loss term may not be called "{name}": train/{name} is the chart of the {name}'
            )
        if record.get(name) is not None:
            scalars[f"train/{name}"] = record[name]
    return scalars


def _cell(value: float) -> str:
    return "" if math.isnan(value) else repr(float(value))


def _csv(rows: Iterable[Iterable[object]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()
