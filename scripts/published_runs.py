"""Write the tables of docs/published-runs.md: each preset beside the released code of its paper.

    python scripts/published_runs.py  # needs clprompt installed

Everything between two marks is made of configs/released/*.yaml and the presets, or of
configs/reported/*.yaml; the rest is left alone.
"""

from __future__ import annotations

from pathlib import Path

from clprompt.experiment import published
from clprompt.reporting import reported
from clprompt.system import overlay

PAGE = Path(__file__).parents[1] / "docs" / "published-runs.md"
BEGIN, END = "<!-- scripts/published_runs.py: begin -->", "<!-- scripts/published_runs.py: end -->"
BEGIN_REPORTED, END_REPORTED = BEGIN.replace("begin", "begin reported"), END.replace("end", "end reported")


def tables() -> str:
    """A table of all presets with a published run, and of each a table of its fields."""
    overview = ["| preset | released code | run | fields that differ |", "|---|---|---|---|"]
    sections = []
    for name in published.names():
        run, rows = published.against(name)
        code = _link(run)
        differing = sum(row.differs for row in rows)
        overview.append(f"| `{name}` | {code} | {_cell(run.run)} | {differing} of {len(rows)} |")
        sections += [
            "",
            f"### {name}",
            "",
            f"`{run.run}` of {code}.",
            "",
            "| field | released | ours | where |",
            "|---|---|---|---|",
        ]
        for row in rows:
            field = (run.fields | run.no_switch)[row.field]
            elsewhere = f"{_link(field)}, " if field.repository != run.repository else ""
            where = f"{elsewhere}`{field.file}`: {_cell(field.called)}"
            ours = f"**{_cell(row.ours)}**: {_cell(row.reason)}" if row.differs else _cell(row.ours)
            sections.append(f"| {row.field} | {_cell(row.released)} | {ours} | {where} |")
    return "\n".join([*overview, *sections])


def _link(source: published.Released | published.Field) -> str:
    return f"[{source.repository}](https://github.com/{source.repository}/tree/{source.commit})"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def literature() -> str:
    """The literature's numbers, beside cells for ours that stay empty, as nothing of it was run."""
    names = sorted(
        (name for name, _ in overlay.names("reported")), key=lambda name: not name.startswith("split")
    )
    return "\n\n".join("\n".join(reported.read(name).markdown()) for name in names)


def page(text: str) -> str:
    """The page with its tables made anew."""
    for begin, end, made in ((BEGIN, END, tables), (BEGIN_REPORTED, END_REPORTED, literature)):
        before, _, rest = text.partition(begin)
        _, _, after = rest.partition(end)
        text = f"{before}{begin}\n\n{made()}\n\n{end}{after}"
    return text


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
