"""Weights & Biases as a sink. `WANDB_MODE=offline` writes below the run folder and asks no server."""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from clprompt.errors import ClpromptError
from clprompt.registry import sinks
from clprompt.tracking.sink import Sink, kept_id, step_axis, title

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@sinks.register("wandb")
class WeightsAndBiases(Sink):
    """A run in the project that is called as the configuration; see :class:`Sink` for the arguments.

    A resumed run is the same one there: its id is kept in `wandb-id.txt`. wandb's own settings
    (`WANDB_MODE`, `WANDB_ENTITY`, `WANDB_PROJECT`, ...) count.

    Raises:
        ClpromptError: wandb could not begin a run.
    """

    package: ClassVar[str] = "wandb"

    def __init__(self, folder: Path, earlier: Collection[str] = ()) -> None:
        super().__init__(folder, earlier)
        import wandb

        name = None if "WANDB_PROJECT" in os.environ else folder.absolute().parent.name
        identity = kept_id(folder / "wandb-id.txt", lambda: uuid.uuid4().hex)
        try:
            self.run = wandb.init(
                project=name,
                name=title(folder),
                group=re.sub(r"(\d{8}-\d{6})-seed\d+-(.+)", r"\2-\1", folder.name),  # its other seeds
                id=identity,
                dir=folder,
                resume="allow",
                reinit="create_new",
                settings=wandb.Settings(console="off", silent=True),
            )
        except Exception as error:
            raise ClpromptError(f"wandb began no run: {' '.join(str(error).split())}") from error
        for axis in ("steps", "samples", "experiences"):
            self.run.define_metric(axis, hidden=True)
        self._defined: set[str] = set()

    def _log(self, step: int, values: Mapping[str, Any]) -> None:
        rows: dict[str, dict[str, Any]] = {}
        for tag, value in values.items():
            axis = step_axis(tag)
            if tag not in self._defined:
                self._defined.add(tag)
                self.run.define_metric(tag, step_metric=axis)
            rows.setdefault(axis, {axis: step})[tag] = value
        for row in rows.values():
            self.run.log(row)

    def scalars(self, step: int, values: Mapping[str, float | None]) -> None:
        self._log(step, {tag: value for tag, value in values.items() if value is not None})

    def image(self, step: int, tag: str, figure: Figure) -> None:
        import wandb

        from clprompt.reporting import plots

        # of a figure wandb asks whether it is pyplot's, which nobody has imported
        self._log(step, {tag: wandb.Image(plots.image(figure, dpi=80))})

    def histogram(self, step: int, tag: str, values: NDArray[np.float64]) -> None:
        import wandb

        finite = values[np.isfinite(values)]
        if finite.size:
            self._log(step, {tag: wandb.Histogram(np_histogram=np.histogram(finite, bins=64))})

    def settings(self, values: Mapping[str, Any]) -> None:
        self.run.config.update(dict(values), allow_val_change=True)
        if values.get("note"):
            self.run.notes = values["note"]
        self.run.tags = tuple(values.get("tags") or ())

    def finish(self) -> None:
        self.run.finish()

    def close(self) -> None:
        self.run.finish(exit_code=1)  # which a finished run does not hear
