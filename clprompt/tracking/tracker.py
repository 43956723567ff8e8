"""What a run writes while it goes on: its records, what sinks show of them, and at the end tables and plots.

The records are the one source, see :mod:`clprompt.tracking.records`; everything else is drawn from them.

Tags of the sinks, TensorBoard among them, each on an axis of its own (`<jj>` counts class groups from 01;
the value after k experiences stands at k; the forgetting starts at 2):

| tag | kind | axis |
|---|---|---|
| `train/<term>`, `train/accuracy`, `train/lr` | scalar | optimizer steps |
| `speed/images_per_second` | scalar | optimizer steps |
| `accuracy/group_<jj>`, `accuracy/average`, `accuracy/forgetting` | scalar | experiences |
| `accuracy/calibration_error` | scalar | experiences |
| `anytime/accuracy` | scalar | training samples |
| `final/<metric of results.json>` | scalar | experiences, one point |
| `accuracy_matrix`, `accuracy_curves`, `confusion_matrix` | image | experiences |
| `anytime_accuracy` (online runs) | image | experiences |
| `per_class_accuracy` | text: a table of all classes | experiences |
| `mAP/seen`, `mAP/group_<jj>` (label sets) | scalar | experiences |
| `multi_label/CF1`, `CF1_macro`, `OF1`, `OP`, `OR` (label sets) | scalar | experiences |
| `anytime/mAP` (label sets) | scalar | training samples |
| `map_curves`, `class_ap` (label sets) | image | experiences |
| `trained_head/<one of these>` (where a plug-in answers in its place) | scalar | the same |
| whatever a strategy's `diagnostics` are called | scalar, histogram or image | experiences |

Images and texts are drawn after each of at most twenty experiences, and of more after twenty of them, the
last among them: see :mod:`clprompt.tracking.pictures`. Numbers are shown after every one.

TensorBoard's HPARAMS tab shows the settings of finished runs beside their last metrics, `final/<metric>`
among them.

Its custom-scalars tab has a chart of the average accuracy and one of the forgetting, with a line for each run
that is selected, and of one run a chart of the accuracies of all its class groups and one of its loss terms.

torch is not needed here; matplotlib and tensorboard are imported when a tracker is made.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clprompt.errors import CheckpointError
from clprompt.metrics.measure import (
    TRAINED_HEAD,
    Accuracy,
    Measure,
    last_evaluation,
    of_trained_head,
    trained_head_summary,
)
from clprompt.reporting.markup import csv_table, markdown_table
from clprompt.system.files import atomic_write, one_line_errors, remove_temporaries
from clprompt.tracking import records as records_
from clprompt.tracking.pictures import draws
from clprompt.tracking.records import RECORDS, Prefixes, Record, Records, jsonable
from clprompt.tracking.sink import Sink
from clprompt.tracking.tensorboard import TensorBoard

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LOSSES = {"loss terms (select one run)": [r"^train/(?!(accuracy|lr)$)"]}


class RunTracker:
    """Writes what a run leaves in its folder, and tells its sinks.

    Every file that only grows is cut back to the size that it had at the checkpoint; what a killed process
    wrote after it is gone.

    Args:
        folder: an existing run folder that nobody else writes to (see `clprompt.system.files.FolderLock`).
        class_names: the names of the classes 0..C-1.
        groups: the classes of each class group, the groups in the order of `records[...]["groups"]`.
        sizes: what `flush` returned when the checkpoint was written; None starts afresh and removes the
            records of an earlier start.
        checksums: what :attr:`checksums` were when the checkpoint was written; None for a checkpoint without.
        measure: what the run is measured by.
        sinks: the classes of its sinks.
        experiences: how many the stream has, which decides after which of them pictures are drawn; None where
            nobody knows.

    Attributes:
        checksums: of the files that only grow, as they were at the last `flush`, by their path in the folder.

    Raises:
        CheckpointError: a recorded file is missing, shorter than recorded, changed, outside the folder or
            unreadable. Nothing has been changed then.
        ClpromptError: the folder cannot be written.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        class_names: Sequence[str],
        groups: Sequence[Sequence[int]],
        sizes: Mapping[str, int] | None = None,
        *,
        checksums: Mapping[str, str] | None = None,
        measure: Measure | None = None,
        sinks: Sequence[type[Sink]] = (TensorBoard,),
        experiences: int | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.class_names = list(class_names)
        self.groups = [list(group) for group in groups]
        self.measure = measure or Accuracy()
        self.experiences = experiences
        patterns = [RECORDS, *(pattern for sink in sinks for pattern in sink.files)]
        if sizes is not None and RECORDS not in sizes:
            raise CheckpointError(f"{self.folder}: the checkpoint records no size of {RECORDS}")
        sizes = {} if sizes is None else sizes
        records_.check_sizes(self.folder, patterns, sizes)
        self._prefixes = Prefixes(self.folder)
        self.checksums = self._prefixes.checksums(sizes)
        if checksums is not None:
            records_.check_checksums(self.folder, sizes, self.checksums, checksums)
        rows = records_.read_records(self.folder, sizes.get(RECORDS, 0))
        with one_line_errors(f"prepare {self.folder}"):
            os.listdir(self.folder)
            earlier = records_.growing_files(self.folder, patterns)
            remove_temporaries(self.folder)
            records_.cut_back(self.folder, patterns, sizes)
        self._records = Records(self.folder, rows)
        self.sinks = [sink(self.folder, earlier) for sink in sinks]
        self._finished = False
        for sink in self.sinks:
            sink.charts({**self.measure.charts, **_LOSSES})
        self.flush()

    @property
    def records(self) -> list[Record]:
        """All records so far."""
        return self._records.rows

    def record(self, record: Mapping[str, Any]) -> None:
        """Append one record (a `train` or `evaluation` object; see `metrics.jsonl`) and chart it.

        Other kinds are written and not charted. Numbers may be Python's, numpy's or one-element tensors;
        those that are not finite become null, which is all that JSON has for them.
        """
        clean = jsonable(record)
        scalars, step = self._scalars(clean)
        self._records.append(clean)
        for sink in self.sinks if scalars else ():
            sink.scalars(step, scalars)
        if clean.get("kind") == "evaluation" and clean["when"] == "experience" and self._draws(step):
            self._show(clean, self._plots(clean))

    def _draws(self, step: int) -> bool:
        """Whether pictures are drawn after so many experiences."""
        return draws(step, self.experiences)

    def _show(self, record: Mapping[str, Any], figures: Mapping[str, Figure]) -> None:
        """Show what is drawn of an evaluation at the end of an experience, and its tables."""
        step = record["experience"] + 1
        for tag, figure in figures.items():
            for sink in self.sinks:
                sink.image(step, tag, figure)
        for tag, rows in self.measure.notes(record, self.class_names, self.groups).items():
            table = "\n".join(markdown_table([[_cell(cell) for cell in row] for row in rows]))
            for sink in self.sinks:
                sink.text(step, tag, table)

    def settings(self, values: Mapping[str, Any]) -> None:
        """Show the settings of the run, by dotted key; called before the first record."""
        for sink in self.sinks:
            sink.settings(values)

    def speed(self, step: int, images_per_second: float) -> None:
        """Chart the speed; it is no record, for records are the same in every run of a configuration."""
        for sink in self.sinks:
            sink.scalars(step, {"speed/images_per_second": images_per_second})

    def diagnostics(self, step: int, values: Mapping[str, Any]) -> None:
        """Show what a strategy has to tell about itself.

        Args:
            step: experiences so far, the one that goes on included.
            values: by tag, a drawing (image; its latest state is a file in `figures/` too), a number or
                tensor without axes (scalar), or any other array or tensor (histogram of its finite values). A
                drawing is a matplotlib Figure, or a function that makes one and is called only where pictures
                are drawn; None from it is no picture.
        """
        for tag, value in values.items():
            if callable(value) or hasattr(value, "savefig"):
                if self._draws(step):
                    self._show_drawing(step, tag, value() if callable(value) else value)
                continue
            array = _as_array(value)
            for sink in self.sinks:
                if array.ndim == 0:
                    sink.scalars(step, {tag: array.item()})
                else:
                    sink.histogram(step, tag, array)

    def _show_drawing(self, step: int, tag: str, figure: Figure | None) -> None:
        """Show what a strategy drew of itself."""
        if figure is None:
            return
        for sink in self.sinks:
            sink.image(step, tag, figure)
        self._draw({tag.replace("/", "_"): figure})

    def flush(self) -> dict[str, int]:
        """Make everything durable; the sizes of all files that only grow, by their path in the folder.

        The sizes belong into the checkpoint that is written next, and so do :attr:`checksums`.

        Raises:
            ClpromptError: a file cannot be written, or was removed or cut by somebody else.
        """
        sizes = self._records.flush()
        for sink in self.sinks:
            sizes |= sink.flush()
        self.checksums = self._prefixes.checksums(sizes)
        return sizes

    def finish(self) -> dict[str, float]:
        """Write the tables and plots of the finished run, tell the sinks and return its metrics.

        The measure's tables and `figures/*.png`, each replaced atomically; without an evaluation at the end
        of an experience there is nothing to write.
        """
        summary = self.measure.summarise(self.records)
        last = last_evaluation(self.records)
        if last is not None:
            self._write_end(last, summary)
        if not self._finished:
            for sink in self.sinks:
                sink.finish()
            self._finished = True
        self.flush()
        return summary

    def _write_end(self, last: Mapping[str, Any], summary: Mapping[str, float]) -> None:
        """Tables and plots, and at the first call the final metrics.

        Args:
            last: the last evaluation at the end of an experience.
            summary: the metrics of the run.
        """
        from clprompt.reporting import measure_plots

        for name, rows in self.measure.tables(self.records, self.class_names, self.groups).items():
            atomic_write(self.folder / name, csv_table(rows))
        figures = self._plots(last)
        self._draw({**figures, **measure_plots.at_the_end(self.measure, self.records)})
        if not self._finished:
            if not self._draws(last["experience"] + 1):  # nobody knew that it would be the last
                self._show(last, figures)
            trained = trained_head_summary(self.records) or {}
            final = {
                f"{prefix}final/{key}": value
                for prefix, metrics in (("", summary), (f"{TRAINED_HEAD}/", trained))
                for key, value in metrics.items()
                if not math.isnan(value)
            }
            for sink in self.sinks:
                sink.scalars(last["experience"] + 1, final)

    def close(self) -> None:
        """Write what is pending and close the files; a second call does nothing."""
        with contextlib.ExitStack() as stack:
            for sink in reversed(self.sinks):
                stack.callback(sink.close)
            stack.callback(self._records.close)

    def _scalars(self, record: Record) -> tuple[dict[str, float | None], int]:
        """What a record charts, and where."""
        if record.get("kind") == "train":
            return _train_scalars(record), record["step"]
        if record.get("kind") != "evaluation":
            return {}, 0
        step = record["samples"] if record["when"] == "anytime" else record["experience"] + 1
        records = [*self.records, record]
        scalars = self.measure.scalars(records, record, self.groups)
        if TRAINED_HEAD in record:
            trained = of_trained_head(records)
            of_trained = self.measure.scalars(trained, trained[-1], self.groups)
            scalars |= {f"{TRAINED_HEAD}/{tag}": value for tag, value in of_trained.items()}
        return scalars, step

    def _plots(self, record: Mapping[str, Any]) -> dict[str, Figure]:
        from clprompt.reporting import measure_plots

        return measure_plots.of_evaluation(self.measure, self.records, record, self.class_names, self.groups)

    def _draw(self, figures: Mapping[str, Figure]) -> None:
        from clprompt.reporting import plots

        with one_line_errors(f"write {self.folder / 'figures'}"):
            (self.folder / "figures").mkdir(exist_ok=True)
        for name, figure in figures.items():
            atomic_write(self.folder / "figures" / f"{name}.png", plots.png(figure))


def _cell(value: Any) -> str:
    """What stands in a table that people read: the files beside it have all digits."""
    return f"{value:.3f}" if isinstance(value, float) else str(value)


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
