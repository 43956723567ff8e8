"""The mean over seeds as a run of its own on TensorBoard: event files beside those of the runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from clprompt.metrics.measure import measure_in
from clprompt.system.files import one_line_errors
from clprompt.tracking.records import Record
from clprompt.tracking.tensorboard import EventFile


def write_mean(folder: Path, runs: Sequence[tuple[Sequence[Record], Sequence[Sequence[int]]]]) -> None:
    """Chart the mean of what runs charted after each experience; what one of them lacks has no mean.

    Args:
        folder: to be made; TensorBoard shows its name.
        runs: of each its records and the classes of its groups.

    Raises:
        ClpromptError: it cannot be written.
    """
    curves = [_scalars(records, groups) for records, groups in runs]
    with one_line_errors(f"make {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
    events = EventFile(folder, after=())
    for step in sorted(set.intersection(*(set(curve) for curve in curves))):
        shared = [tag for tag in curves[0][step] if all(tag in curve[step] for curve in curves)]
        events.scalars(step, {tag: sum(curve[step][tag] for curve in curves) / len(curves) for tag in shared})
    events.file.sync()
    events.file.close()


def _scalars(records: Sequence[Record], groups: Sequence[Sequence[int]]) -> dict[int, dict[str, float]]:
    """What a run charts, by experience and tag."""
    measure = measure_in(records)
    charted: dict[int, dict[str, float]] = {}
    for position, record in enumerate(records, start=1):
        if record.get("kind") == "evaluation" and record["when"] == "experience":
            scalars = measure.scalars(records[:position], record, groups)
            charted[record["experience"] + 1] = {k: v for k, v in scalars.items() if v is not None}
    return charted
