"""Where the numbers, drawings and texts of a run are shown, beside its records: a sink is a small class.

    from clprompt.registry import sinks
    from clprompt.tracking import Sink

    @sinks.register("my_dashboard")
    class MyDashboard(Sink):
        def scalars(self, step, values): ...

Every registered sink takes part in every run: TensorBoard, those of installed packages (entry points of the
group `clprompt.sinks`) and those that `clprompt --import my_module` registers. One that needs a switch asks
for it itself, for instance by an environment variable.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Sink:
    """One run's way to some display; what a method does not override goes nowhere.

    A resumed run makes a new sink, and what came after the checkpoint comes again. A sink that writes files
    in the run folder names them, and they are cut back to the checkpoint before the sink is made.

    Args:
        folder: the run folder; its name and its parent's tell runs apart.
        earlier: the files that were there when this process began and that fit ``files``, as paths inside the
            folder; those that no checkpoint recorded are removed by now.
    """

    #: Files in the run folder that only grow: paths inside it, "*" allowed.
    files: ClassVar[Sequence[str]] = ()

    def __init__(self, folder: Path, earlier: Collection[str] = ()) -> None:
        self.folder = folder

    def scalars(self, step: int, values: Mapping[str, float | None]) -> None:
        """Points of curves.

        Args:
            step: where they stand: optimizer steps (``train/``, ``speed/``), samples (``anytime/``) or
                experiences.
            values: by tag; None where a number is not finite.
        """

    def image(self, step: int, tag: str, figure: Figure) -> None:
        """A drawing of matplotlib."""

    def histogram(self, step: int, tag: str, values: NDArray[np.float64]) -> None:
        """Numbers of any shape, some of them possibly not finite, whose distribution tells something."""

    def text(self, step: int, tag: str, markdown: str) -> None:
        """Markdown, tables included."""

    def charts(self, charts: Mapping[str, Sequence[str]]) -> None:
        """Which scalars belong into one chart, by its title: regular expressions over tags; told first."""

    def settings(self, values: Mapping[str, Any]) -> None:
        """The configuration of the run by dotted key; told when it is done."""

    def flush(self) -> dict[str, int]:
        """Make durable what was told so far.

        Returns:
            The size of each file of ``files``, by its path inside the run folder.
        """
        return {}

    def close(self) -> None:
        """Write what is pending and let go; a second call does nothing."""
