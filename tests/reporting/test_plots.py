import io
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from PIL import Image

from clprompt.metrics import text
from clprompt.metrics.measure import MEASURES
from clprompt.reporting import measure_plots, plots

NAN = float("nan")


def lower_triangle(size):
    return np.where(np.tri(size, dtype=bool), 0.5, NAN)


def test_a_legend_says_which_classes_a_group_holds():
    labels = [
        text.group_label(group, ["cat", "hammer", "a very long name of a class", "3"])
        for group in ([0, 1], [2, 1], [3])
    ]
    assert labels == ["cat, hammer", "a very long name of a c…", ""]
    (axes, *_) = plots.accuracy_curves(lower_triangle(3), None, {}, labels).axes
    legend = [entry.get_text() for entry in axes.get_legend().get_texts()]
    assert legend == ["1: cat, hammer", "2: a very long name of a c…", "group 3", "average"]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("size", [0, 1, 2, 13, 25, 120])
def test_every_figure_can_be_drawn_for_any_number_of_groups(size):
    matrix = lower_triangle(size)
    counts = np.eye(2 * size, dtype=np.int64)
    counts[size:] = 0
    names = ["$broken_formula$", "漢字", "a very long name of a class" * 3, ""] * size
    for figure in (
        plots.accuracy_matrix(matrix),
        plots.accuracy_curves(matrix),
        plots.forgetting(matrix),
        plots.confusion_matrix(counts, names[: 2 * size]),
    ):
        data = plots.png(figure, dpi=50)
        assert Image.open(io.BytesIO(data)).format == "PNG"


def test_classes_of_a_confusion_matrix_stand_as_they_arrived():
    counts = np.arange(9).reshape(3, 3)
    axes = plots.confusion_matrix(counts, ["ant", "bee", "cat"], [[2], [0]]).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "ant", "bee"]
    share = np.asarray(axes.images[0].get_array())
    assert share[0].tolist() == pytest.approx([100 * n / 21 for n in (8, 6, 7)])


def test_domains_stand_in_the_drawings_by_name():
    names = ["$x$/y", "a very long name of a domain", "art"]
    matrix, curves, lost = (
        draw(lower_triangle(3), names)
        for draw in (plots.accuracy_matrix, plots.accuracy_curves, plots.forgetting)
    )
    expected = [plots.short(name) for name in names]
    assert [label.get_text() for label in matrix.axes[0].get_xticklabels()] == expected
    assert [label.get_text() for label in lost.axes[1].get_xticklabels()] == expected
    legend = [text.get_text() for text in curves.axes[0].get_legend().get_texts()]
    assert legend == [r"\$x\$/y", *expected[1:], "average"]
    for figure in (matrix, curves, lost):
        assert "class group" not in str([axes.get_title() + axes.get_xlabel() for axes in figure.axes])
        assert plots.png(figure, dpi=30)


@pytest.mark.parametrize("size", [3, 25])
def test_curves_carry_the_line_that_they_are_held_against(size):
    (axes, *_) = plots.accuracy_curves(lower_triangle(size), None, {"zero-shot": np.full(size, 0.4)}).axes
    line = axes.lines[-1]
    assert line.get_linestyle() == "--"
    assert set(line.get_ydata()) == {40}
    shown = [text.get_text() for text in axes.get_legend().get_texts()]
    assert shown[-2:] == ["average", "zero-shot"]


def test_at_most_six_lines_have_a_colour_and_the_subject_stands_in_front():
    curves = {f"method {n}": np.full((2, 3), 0.1 * n) for n in range(9)}
    (axes,) = plots.overlay(curves, "title", "accuracy (%)", subject="method 8").axes
    lines = {line.get_label(): line for line in axes.lines}
    grey = [name for name, line in lines.items() if line.get_color() == plots._BEHIND]
    assert grey == ["method 5", "method 6", "method 7"]
    coloured = [line.get_color() for name, line in lines.items() if name not in grey]
    assert len(set(coloured)) == 6
    in_front = max(lines.values(), key=lambda line: line.get_zorder())
    assert in_front.get_label() == "method 8"
    assert in_front.get_linewidth() > lines["method 0"].get_linewidth()


def test_a_name_keeps_its_colour_whatever_its_rank_and_its_company():
    names = [
        "l2p",
        "dualprompt",
        "coda_prompt",
        "mvp",
        "vpt_deep",
        "slda",
    ]  # often compared: no two share one

    def colours(order, **how):
        (axes,) = plots.overlay({name: [[0.1, 0.2]] for name in order}, "t", "l", **how).axes
        return {line.get_label(): (line.get_color(), line.get_marker()) for line in axes.lines}

    found = colours(names)
    assert len(set(found.values())) == 6
    assert colours(names[::-1], subject="mvp") == found
    assert colours(names[2:4]) == {name: found[name] for name in names[2:4]}
    taken = colours([f"method {n}" for n in range(6)])
    assert len(set(taken.values())) == 6


@pytest.mark.parametrize(
    ("values", "begins", "said"),
    [((0.3, 0.6), True, False), ((0.7, 0.8), False, True), ((-0.1, 0.5), False, False)],
)
def test_an_axis_begins_at_zero_or_says_that_it_does_not(values, begins, said):
    (axes,) = plots.overlay({"a": [values] * 3, "b": [values] * 2}, "title", "accuracy (%)").axes
    assert bool(axes.get_ylim()[0] == 0) == begins
    assert ("(axis not from 0)" in axes.get_ylabel()) is said
    assert axes.get_title() == "title\nmean ± standard error over 2 to 3 seeds"


def test_every_line_is_named_at_its_end_and_no_name_lies_on_another():
    curves = {f"method {n}": np.array([[0.2, 0.5 + 0.001 * n, NAN]]) for n in range(12)}
    figure = plots.overlay(curves, "title", "accuracy (%)", references={"line": np.full((1, 3), 0.5)})
    (axes,) = figure.axes
    assert {text.get_text() for text in axes.texts} == {*curves, "line"}
    assert {text.xy[0] for text in axes.texts} == {2, 3}  # where each line ends
    plots.png(figure)
    heights = sorted(axes.transData.transform((0, text.xyann[1]))[1] for text in axes.texts)
    assert min(np.diff(heights)) >= 9 * figure.dpi / 72  # points of the font


def test_cells_carry_numbers_as_long_as_they_fit():
    assert [text.get_text() for text in plots.accuracy_matrix([[0.5, NAN], [0.25, 1]]).axes[0].texts] == [
        "50.0",
        "25.0",
        "100.0",
    ]
    assert len(plots.accuracy_matrix(lower_triangle(20)).axes[0].texts) == 210
    assert len(plots.accuracy_matrix(lower_triangle(21)).axes[0].texts) == 0


def test_drawing_leaves_no_figure_behind_in_pyplot():
    code = """
        import sys, numpy as np
        from clprompt.reporting import plots
        plots.png(plots.accuracy_matrix(np.eye(2)))
        print("matplotlib.pyplot" in sys.modules)
    """
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60
    )
    assert ran.stdout == "False\n", ran.stderr


def test_what_measures_want_drawn_is_what_can_be_drawn():
    names = {name for measure in MEASURES.values() for name in (*measure.plots, *measure.final_plots)}
    assert names == measure_plots.PLOTS.keys()
