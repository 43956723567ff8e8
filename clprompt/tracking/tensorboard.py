"""TensorBoard as a sink: event files, written in the order of events and without a thread.

tensorboard and matplotlib are imported when a file is opened or a picture drawn.
"""

from __future__ import annotations

import io
import math
import os
import re
import socket
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from clprompt.registry import sinks
from clprompt.system.files import AppendOnlyFile
from clprompt.tracking.sink import Sink, title

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from tensorboard.compat.proto.summary_pb2 import Summary

_DASHBOARD_DPI = 80  # the pictures inside TensorBoard; the files under figures/ are sharper
_DRAIN_SECONDS, _DRAIN_BYTES = 5.0, 1 << 20  # how long and how much the dashboards may lag behind


@sinks.register("tensorboard")
class TensorBoard(Sink):
    """Event files, one for every start of a run; see :class:`Sink` for the arguments.

    They lie in the run folder itself, whose name TensorBoard shows. Older versions wrote them to
    `tensorboard/` in it, where such a run goes on.
    """

    files: ClassVar[Sequence[str]] = ("*tfevents*", "tensorboard/*tfevents*")

    def __init__(self, folder: Path, earlier: Collection[str] = ()) -> None:
        super().__init__(folder, earlier)
        kept = [path for pattern in self.files for path in folder.glob(pattern)]
        #: sizes of the event files that a resumed run goes on from
        self._kept = {path.relative_to(folder).as_posix(): path.stat().st_size for path in kept}
        self._settings: Mapping[str, Any] = {}
        home = kept[0].parent if kept else folder
        # A name later than all that were ever here, removed ones included: a TensorBoard that is watching
        # the folder would otherwise go on reading a new file where it stopped in the old one.
        self.events = EventFile(home, after=earlier)

    def scalars(self, step: int, values: Mapping[str, float | None]) -> None:
        self.events.scalars(step, values)

    def image(self, step: int, tag: str, figure: Figure) -> None:
        self.events.image(step, tag, figure)

    def histogram(self, step: int, tag: str, values: NDArray[np.float64]) -> None:
        self.events.histogram(step, tag, values)

    def text(self, step: int, tag: str, markdown: str) -> None:
        self.events.add(step, text(tag, markdown))

    def charts(self, charts: Mapping[str, Sequence[str]]) -> None:
        if not self._kept:  # else an earlier file has them
            self.events.add(0, custom_charts("class-incremental learning", charts))

    def settings(self, values: Mapping[str, Any]) -> None:
        self._settings = values

    def finish(self) -> None:
        if self._settings:
            name = f"{title(self.folder)}, {self.folder.parent.name}"
            for summary in hyperparameters(self._settings, name):
                self.events.add(0, summary)

    def flush(self) -> dict[str, int]:
        file = self.events.file
        return {**self._kept, file.path.relative_to(self.folder).as_posix(): file.sync()}

    def close(self) -> None:
        self.events.file.close()


class EventFile:
    """One TensorBoard event file.

    Not torch's SummaryWriter: that one writes from a thread, so an error there (disk full) ends no run, and
    names its files after the process id, so the file of a resumed run may sort before the one that it
    continues. Readers go by name.

    Args:
        folder: an existing folder.
        after: names of event files; the new one sorts behind all of them, whatever the clock and the host.
    """

    def __init__(self, folder: Path, after: Iterable[str]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = Event, Summary
        second = max([int(time.time()), *(1 + _second(name) for name in after)])
        name = f"events.out.tfevents.{second:010d}.{socket.gethostname()}.{os.getpid()}.0"
        self.file = AppendOnlyFile(folder / name)
        self._buffer = io.BytesIO()
        self._writer = RecordWriter(self._buffer)  # the framing: length and checksums
        self._next_drain = 0.0
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))

    def scalars(self, step: int, values: Mapping[str, float | None]) -> None:
        """All values in one event, None as nan."""
        summary = self._summary()
        for tag, value in values.items():
            summary.value.add(tag=tag, simple_value=math.nan if value is None else float(value))
        self.add(step, summary)

    def image(self, step: int, tag: str, figure: Figure) -> None:
        """A drawing, as a PNG file."""
        from clprompt.reporting import plots

        data = plots.png(figure, _DASHBOARD_DPI)
        # A PNG file starts with its signature and the header chunk: width and height at byte 16.
        width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
        image = self._summary.Image(width=width, height=height, colorspace=4, encoded_image_string=data)
        self.add(step, self._summary(value=[self._summary.Value(tag=tag, image=image)]))

    def histogram(self, step: int, tag: str, values: NDArray[np.float64]) -> None:
        """The finite ones among the values, of any shape, in 64 bins; nothing when there are none."""
        values = values[np.isfinite(values)]
        if not values.size:
            return
        low, high = float(values.min()), float(values.max())
        edges = np.linspace(low, high, 65) if low < high else np.linspace(low - 0.5, high + 0.5, 65)
        counts, _ = np.histogram(values, bins=edges)
        summary = self._summary()
        value = summary.value.add(tag=tag)
        value.histo.min, value.histo.max = low, high
        value.histo.num, value.histo.sum = float(values.size), float(values.sum())
        value.histo.sum_squares = float(np.square(values).sum())
        # The format gives the bins' right edges only; an empty first bin tells where the second starts.
        value.histo.bucket_limit.extend(edges.tolist())
        value.histo.bucket.extend([0.0, *counts.tolist()])
        self.add(step, summary)

    def add(self, step: int, summary: Summary) -> None:
        """One event with any summary; none for an empty one."""
        if summary.value:
            self._write(self._event(wall_time=time.time(), step=int(step), summary=summary))

    def _write(self, event: Any) -> None:
        self._writer.write(event.SerializeToString())
        self.file.append(self._buffer.getvalue())
        self._buffer.seek(0)
        self._buffer.truncate()
        now = time.monotonic()
        if now >= self._next_drain or self.file.pending >= _DRAIN_BYTES:
            self.file.drain()
            self._next_drain = now + _DRAIN_SECONDS


def custom_charts(title: str, charts: Mapping[str, Sequence[str]]) -> Summary:
    """The layout of the custom-scalars tab.

    Args:
        title: the heading above the charts.
        charts: by title, regular expressions; a chart draws one line for every tag that matches.
    """
    from tensorboard.compat.proto import types_pb2
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.custom_scalar import layout_pb2, metadata

    layout = layout_pb2.Layout()
    category = layout.category.add(title=title)
    for chart, tags in charts.items():
        category.chart.add(title=chart).multiline.tag.extend(tags)
    summary = Summary()
    value = summary.value.add(tag=metadata.CONFIG_SUMMARY_TAG, metadata=metadata.create_summary_metadata())
    value.tensor.dtype = types_pb2.DT_STRING
    value.tensor.string_val.append(layout.SerializeToString())
    return summary


def text(tag: str, markdown: str) -> Summary:
    """A text of the text tab; Markdown, tables included."""
    from tensorboard.compat.proto import types_pb2
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.text import metadata

    summary = Summary()
    value = summary.value.add(tag=tag, metadata=metadata.create_summary_metadata(tag, ""))
    value.tensor.dtype = types_pb2.DT_STRING
    value.tensor.string_val.append(markdown.encode())
    return summary


def hyperparameters(values: Mapping[str, Any], name: str) -> list[Summary]:
    """One line of the HPARAMS tab: a session with its settings, and that it ended well.

    The charts of the same run are its metrics. No experiment is described beside it: then TensorBoard shows
    the settings of all runs that it finds, also where strategies differ in what can be set.

    Args:
        values: settings by name; what is no number and no boolean is shown as text, None is left out.
        name: of the line.
    """
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams import api_pb2, metadata
    from tensorboard.plugins.hparams.plugin_data_pb2 import (
        HParamsPluginData,
        SessionEndInfo,
        SessionStartInfo,
    )

    start = SessionStartInfo(group_name=name, start_time_secs=time.time())
    for key, value in values.items():
        if isinstance(value, bool):
            start.hparams[key].bool_value = value
        elif isinstance(value, int | float):
            start.hparams[key].number_value = value
        elif value is not None:
            start.hparams[key].string_value = str(value)
    end = SessionEndInfo(status=api_pb2.STATUS_SUCCESS, end_time_secs=time.time())
    summaries = []
    for tag, data in (
        (metadata.SESSION_START_INFO_TAG, HParamsPluginData(session_start_info=start)),
        (metadata.SESSION_END_INFO_TAG, HParamsPluginData(session_end_info=end)),
    ):
        shown = metadata.create_summary_metadata(data)
        summaries.append(Summary(value=[Summary.Value(tag=tag, metadata=shown, tensor=metadata.NULL_TENSOR)]))
    return summaries


def _second(name: str) -> int:
    """The time in the name of an event file, 0 without one."""
    number = re.search(r"tfevents\.(\d+)\.", name)
    return int(number[1]) if number else 0
