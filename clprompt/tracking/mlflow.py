"""MLflow as a sink. `MLFLOW_TRACKING_URI=sqlite:///FILE` writes to a local file and asks no server."""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from clprompt.errors import ClpromptError
from clprompt.registry import sinks
from clprompt.tracking.sink import Sink, kept_id, title

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_AT_ONCE = 100  # settings in one request


@sinks.register("mlflow")
class MLflow(Sink):
    """A run in the experiment that is called as the configuration; see :class:`Sink` for the arguments.

    A resumed run is the same one there: its id is kept in `mlflow-id.txt`. MLflow's own settings
    (`MLFLOW_TRACKING_URI`, ...) count.

    Raises:
        ClpromptError: MLflow could not begin a run, or go on with it; the methods raise it, too.
    """

    package: ClassVar[str] = "mlflow"

    def __init__(self, folder: Path, earlier: Collection[str] = ()) -> None:
        super().__init__(folder, earlier)
        from mlflow.tracking import MlflowClient

        with _one_line():
            self.client = MlflowClient()
            self.run_id = kept_id(folder / "mlflow-id.txt", self._create)
            self.client.update_run(self.run_id, status="RUNNING")

    def _create(self) -> str:
        from mlflow.tracking.context.registry import resolve_tags

        name = self.folder.absolute().parent.name
        known = self.client.get_experiment_by_name(name)
        experiment = known.experiment_id if known else self.client.create_experiment(name)
        tags = resolve_tags()  # who runs it and from where, as MLflow itself notes it
        return str(self.client.create_run(experiment, tags=tags, run_name=title(self.folder)).info.run_id)

    def scalars(self, step: int, values: Mapping[str, float | None]) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        points = [Metric(_name(tag), value, now, step) for tag, value in values.items() if value is not None]
        with _one_line():
            self.client.log_batch(self.run_id, metrics=points)

    def image(self, step: int, tag: str, figure: Figure) -> None:
        from clprompt.reporting import plots

        with _one_line():
            # MLflow's own log_figure cuts off what stands beside the axes
            self.client.log_image(self.run_id, plots.image(figure), f"{_name(tag)}/{step:04d}.png")

    def text(self, step: int, tag: str, markdown: str) -> None:
        with _one_line():
            self.client.log_text(self.run_id, markdown, f"{_name(tag)}/{step:04d}.md")

    def settings(self, values: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        with _one_line():
            known = self.client.get_run(self.run_id).data.params  # of a resumed run, and must not change
            told = [Param(_name(key), str(value)[:500]) for key, value in values.items()]
            told = [param for param in told if param.key not in known]
            for first in range(0, len(told), _AT_ONCE):
                self.client.log_batch(self.run_id, params=told[first : first + _AT_ONCE])
            if values.get("note"):
                self.client.set_tag(self.run_id, "mlflow.note.content", values["note"])
            for tag in values.get("tags") or ():
                self.client.set_tag(self.run_id, _name(tag), "")

    def finish(self) -> None:
        with _one_line():
            self.client.set_terminated(self.run_id)

    def close(self) -> None:
        with _one_line():
            if self.client.get_run(self.run_id).info.status == "RUNNING":  # nobody told that it is done
                self.client.set_terminated(self.run_id, "KILLED")


@contextmanager
def _one_line() -> Iterator[None]:
    """What MLflow cannot do, in one line; the run can be resumed."""
    try:
        yield
    except Exception as error:
        raise ClpromptError(f"mlflow: {' '.join(str(error).split())}") from error


def _name(tag: str) -> str:
    """A tag of the characters that MLflow takes."""
    return re.sub(r"[^\w./ -]", "_", tag)
