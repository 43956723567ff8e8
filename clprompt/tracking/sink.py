"""Where the numbers, drawings and texts of a run are shown, beside its records: a sink is a small class.

    from clprompt.registry import sinks
    from clprompt.tracking import Sink

    @sinks.register("my_dashboard")
    class MyDashboard(Sink):
        def scalars(self, step, values): ...

Those that a configuration names under `trackers` take part in a run: `tensorboard` unless it says otherwise,
`csv`, `wandb`, `mlflow`, those of installed packages (entry points of the group `clprompt.sinks`) and those
that `clprompt --import my_module` registers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from clprompt.system.files import atomic_write

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

    Attributes:
        files: files in the run folder that only grow: paths inside it, "*" allowed.
        package: the package that it needs and clprompt does not install, an extra of that name; "" for none.
    """

    files: ClassVar[Sequence[str]] = ()
    package: ClassVar[str] = ""

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
        """The configuration of the run by dotted key; told before the first number, and again at a resume."""

    def finish(self) -> None:
        """The run is done, and this was all; a run that is stopped or fails is closed without it."""

    def flush(self) -> dict[str, int]:
        """Make durable what was told so far.

        Returns:
            The size of each file of ``files``, by its path inside the run folder.
        """
        return {}

    def close(self) -> None:
        """Write what is pending and let go; a second call does nothing."""


def kept_id(path: Path, create: Callable[[], str]) -> str:
    """The name of a run on a server, from a file of its folder, so that a resumed run is the same one there.

    Args:
        path: of the file; it is written where it is missing.
        create: gives a new name.
    """
    if not path.exists():
        atomic_write(path, create() + "\n")
    return path.read_text().strip()


def title(folder: Path) -> str:
    """A run's name where a narrow column cuts it: the folder's, with what runs have in common at the end.

    "20260101-120000-seed0-mvp" is "seed0-mvp-20260101-120000".
    """
    return re.sub(r"(\d{8}-\d{6})-(.+)", r"\2-\1", folder.name)


def step_axis(tag: str) -> str:
    """What the steps of a tag count: optimizer "steps", "samples" or "experiences"."""
    return {"train": "steps", "speed": "steps", "anytime": "samples"}.get(
        tag.removeprefix("trained_head/").split("/")[0], "experiences"
    )
