"""What records look like: plots, tables, pages, and the report over many runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clprompt import lazy_names

if TYPE_CHECKING:
    from clprompt.reporting.report import Report as Report
    from clprompt.reporting.report import collect as collect
    from clprompt.reporting.stream_map import StreamMap as StreamMap
    from clprompt.reporting.summary import text_summary as text_summary

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Report": "clprompt.reporting.report",
        "StreamMap": "clprompt.reporting.stream_map",
        "collect": "clprompt.reporting.report",
        "text_summary": "clprompt.reporting.summary",
    },
)
