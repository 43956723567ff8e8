"""Tables and drawings as CSV, as Markdown, as LaTeX and as an HTML page that needs no other file."""

from __future__ import annotations

import base64
import csv
import html
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from types import SimpleNamespace

from clprompt.errors import printable


def csv_table(rows: Iterable[Iterable[object]]) -> str:
    """Rows as CSV that a spreadsheet does not take for formulas.

    Text that begins with ``=``, ``+``, ``-``, ``@``, a tab or the end of a line, and is no number, gets an
    apostrophe in front, as does text that begins with apostrophes and such a mark: to read a name back, take
    one away. A path gets ``./`` in its place, so that it names the same file.
    """
    lines: list[str] = []
    # the writer quotes what is in its terminator: a name may hold a lone carriage return
    writer = csv.writer(SimpleNamespace(write=lines.append), lineterminator="\r\n")
    writer.writerows([_cell(cell) for cell in row] for row in rows)
    return "".join(line.removesuffix("\r\n") + "\n" for line in lines)


_FORMULA = re.compile("'*[=+\\-@\t\r\n＝＋－＠]")
_NUMBER = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?([eE][-+]?[0-9]+)?")


def _cell(cell: object) -> object:
    if isinstance(cell, os.PathLike):
        path = os.fspath(cell)
        return f"./{path}" if _FORMULA.match(path) else path
    if isinstance(cell, str) and _FORMULA.match(cell) and not _NUMBER.fullmatch(cell):
        return f"'{cell}"
    return cell


def as_markdown(text: str) -> str:
    """Text as Markdown that shows it, on one line: no tag, no link, no column of a table."""
    text = html.escape(printable(" ".join(text.splitlines())), quote=False)
    return text.replace("|", "\\|").replace("](", "]\\(").replace("][", "]\\[")


def markdown_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table; the first row is the header, columns but the first are numbers."""
    lines = ["| " + " | ".join(map(as_markdown, row)) + " |" for row in rows]
    aligned = ["---" if number == 0 else "---:" for number in range(len(rows[0]))]
    return [lines[0], "| " + " | ".join(aligned) + " |", *lines[1:]]


def as_latex(text: str) -> str:
    """Text as LaTeX that shows it, on one line: no command, no formula."""
    return printable(" ".join(text.split())).translate(_LATEX)


_LATEX = str.maketrans(
    {mark: f"\\{mark}" for mark in "{}$&#_%"}
    | {"\\": r"\textbackslash{}", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}"}
    | {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}"}
    | {"±": r"$\pm$", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "…": r"\dots{}"}
)
_FIGURES = re.compile(r"(?P<first>[-+<]?[0-9][0-9.,]*)(?P<rest>[-+<0-9.,± ]*)")


def latex_table(
    rows: Sequence[Sequence[str]],
    caption: str,
    label: str,
    marks: Mapping[tuple[int, int], str] | None = None,
) -> str:
    """A table of the package booktabs; the first row is the header, columns but the first are numbers.

    Args:
        rows: cells; "72.3 ± 1.4" and the like become formulas. A row of one cell is the title of those below.
        caption: above the table.
        label: by which a text refers to it.
        marks: by row and column the command around a cell's first number, such as "mathbf".
    """
    marks = marks or {}
    width = len(rows[0])

    def line(i: int, row: Sequence[str]) -> str:
        if len(row) < width:
            title = rf"\multicolumn{{{width}}}{{@{{}}l@{{}}}}{{\emph{{{as_latex(row[0])}}}}} \\"
            return "    " + (r"\addlinespace " if i > 1 else "") + title
        return (
            "    "
            + " & ".join(_latex_cell(cell, marks.get((i, j), "")) for j, cell in enumerate(row))
            + r" \\"
        )

    header, *lines = (line(i, row) for i, row in enumerate(rows))
    return "\n".join(
        [
            r"\begin{table}",
            r"  \centering\footnotesize\setlength{\tabcolsep}{3pt}",
            rf"  \caption{{{as_latex(caption)}}}",
            rf"  \label{{{label}}}",
            rf"  \begin{{tabular}}{{@{{}}l{'r' * (width - 1)}@{{}}}}",
            r"    \toprule",
            header,
            r"    \midrule",
            *lines,
            r"    \bottomrule",
            r"  \end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _latex_cell(cell: str, mark: str) -> str:
    figures = _FIGURES.fullmatch(cell)
    if figures is None:
        return as_latex(cell)
    first, rest = (text.replace("±", r"\pm") for text in figures.groups())
    rest = re.sub(r" \.\. ([-+]?)", r" \\ldots {\1}", rest)  # in braces a sign is none of a sum
    first = re.sub(r",(?=[0-9])", "{,}", first)
    return f"$\\{mark}{{{first}}}{rest}$" if mark else f"${first}{rest}$"


def html_table(rows: Sequence[Sequence[str]]) -> str:
    """A table; the first row is the header."""

    def line(cells: Sequence[str], tag: str) -> str:
        inner = "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells)
        return f"<tr>{inner}</tr>"

    body = "\n".join(line(row, "td") for row in rows[1:])
    table = f"<table>\n<thead>{line(rows[0], 'th')}</thead>\n<tbody>\n{body}\n</tbody>\n</table>"
    return f'<div class="table">{table}</div>'


def html_image(data: bytes, description: str) -> str:
    """A PNG file inside the page itself."""
    source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    return f'<div class="drawing"><img alt="{html.escape(description)}" src="{source}"></div>'


def html_page(title: str, parts: Sequence[str]) -> str:
    """A page that loads nothing; `parts` are HTML."""
    return printable(_PAGE.format(title=html.escape(title), body="\n".join(parts)))


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 80rem; margin: 2rem auto; \
padding: 0 1rem; }}
h1 {{ font-size: 1.6rem; }}
h2 {{ font-size: 1.15rem; margin-top: 2.5rem; }}
.table, .drawing {{ overflow-x: auto; margin: 0.8rem 0; }}
table {{ border-collapse: collapse; }}
th, td {{ padding: 0.3rem 0.8rem; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap; }}
th:first-child, td:first-child {{ text-align: left; }}
th {{ border-bottom: 2px solid #888; font-weight: 600; }}
th:first-child, td:first-child {{ position: sticky; left: 0; background: #fff; }}
img {{ max-width: 100%; min-width: 34rem; display: block; }}
@media (max-width: 40rem) {{ th, td {{ padding: 0.3rem 0.5rem; }} \
th:first-child, td:first-child {{ min-width: 7rem; white-space: normal; overflow-wrap: anywhere; }} }}
details {{ margin: 0.8rem 0; color: #444; }}
p {{ max-width: 65rem; color: #555; overflow-wrap: anywhere; }}
</style>
</head>
<body>
<h1>{title}</h1>
{body}
</body>
</html>
"""
