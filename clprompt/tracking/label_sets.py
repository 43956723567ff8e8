"""What a run on multi-hot targets writes: mAP curves in place of accuracies.

TensorBoard tags beside those of :mod:`clprompt.tracking.tracker` that do not speak of accuracy, over experiences:

| tag | kind |
|---|---|
| `mAP/seen` | scalar: over all seen classes, the protocol's figure |
| `mAP/group_<jj>` | scalar: over the classes of one experience |
| `multi_label/CF1`, `CF1_macro`, `OF1`, `OP`, `OR` | scalar |
| `map_curves`, `class_ap` | image |
| `anytime/mAP` | scalar, over training samples |
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from clprompt.metrics import label_sets
from clprompt.system.files import atomic_write
from clprompt.tracking.tracker import Record, RunTracker, _cell, _csv

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class MultiLabelTracker(RunTracker):
    """Writes the records of a run on multi-hot targets; see :class:`RunTracker` for the arguments."""

    charts: ClassVar[Mapping[str, Sequence[str]]] = {
        "mAP per class group": [r"^mAP/group_\d+$"],
        "mAP over the seen classes": [r"^mAP/seen$"],
        "F1": [r"^multi_label/(CF1|OF1)$"],
        "loss terms": [r"^train/(?!(accuracy|lr)$)"],
    }

    def finish(self) -> dict[str, float]:
        """Write the tables and figures of the finished run and return its figures of merit.

        `map_matrix.csv` (mAP per class group after each experience), `per_class_ap.csv` and `figures/*.png`.
        """
        results = label_sets.summarise(self.records)
        last = self._last_evaluation()
        if last is None:
            return results
        matrix = label_sets.group_matrix(self.records, self.groups)
        seen = label_sets.curve(self.records)
        header: list[object] = [
            "after_experience",
            "seen",
            *(f"group_{j + 1}" for j in range(len(self.groups))),
        ]
        rows = [[i + 1, _cell(seen[i]), *map(_cell, row)] for i, row in enumerate(matrix)]
        atomic_write(self.folder / "map_matrix.csv", _csv([header, *rows]))
        atomic_write(self.folder / "per_class_ap.csv", _csv(self._ap_rows(last)))
        self._conclude(results, last, self._figures(last))
        return results

    def _anytime_scalars(self, record: Record) -> dict[str, float | None]:
        return {"anytime/mAP": record["mAP"]} if record["mAP"] is not None else {}

    def _experience_scalars(self, record: Record) -> dict[str, float | None]:
        groups = label_sets.group_matrix([record], self.groups)[0]
        width = max(2, len(str(len(groups))))
        scalars: dict[str, Any] = {f"mAP/group_{j + 1:0{width}d}": value for j, value in enumerate(groups)}
        scalars["mAP/seen"] = record["mAP"]
        for name in label_sets.FIGURES[1:]:
            scalars[f"multi_label/{name}"] = record[name]
        return {tag: value for tag, value in scalars.items() if value is not None and not math.isnan(value)}

    def _figures(self, record: Record) -> dict[str, Figure]:
        from clprompt.reporting import label_set_plots

        seen = label_sets.curve(self.records)
        groups = label_sets.group_matrix(self.records, self.groups)
        classes = label_sets.class_curves(self.records, len(self.class_names))
        return {
            "map_curves": label_set_plots.map_curves(seen, groups),
            "class_ap": label_set_plots.class_ap(classes, self.class_names),
        }

    def _ap_rows(self, last: Record) -> list[list[object]]:
        group_of = {c: j + 1 for j, group in enumerate(self.groups) for c in group}
        rows: list[list[object]] = [["class", "name", "group", "ap", "f1"]]
        values = zip(last["classes"], last["ap"], last["f1"], strict=True)
        for c, ap, f1 in values:
            numbers = [_cell(np.nan if value is None else value) for value in (ap, f1)]
            rows.append([c, self.class_names[c], group_of.get(c, ""), *numbers])
        return rows


def tracker_for(
    folder: Path,
    class_names: Sequence[str],
    groups: Sequence[Sequence[int]],
    sizes: Mapping[str, int] | None,
    targets: np.ndarray,
) -> RunTracker:
    """The tracker that fits the targets of a stream: labels [n] or multi-hot [n, C]."""
    kind = MultiLabelTracker if np.ndim(targets) == 2 else RunTracker
    return kind(folder, class_names, groups, sizes)
