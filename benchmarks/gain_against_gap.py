"""Do prompts pay where the images are far from what the backbone knows? What they gain, against the gap.

python -m benchmarks.gain_against_gap RUNS [RUNS ...] [--out gain-against-gap.png]

RUNS are folders of finished runs on one stream whose images are drawn in several ways (``data.corrupt``, null
among them): those of ``clprompt study statistics-gap``. The gap is what streaming LDA on frozen features
(``slda``) loses against the images as they are; the gain is what a method with ``statistics: lda`` has above
``slda`` on the same images: the same head, so what remains is the prompts'. Both are differences of average
accuracy in percentage points, paired by seed; mean and standard error over the seeds.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from clprompt.errors import ClpromptError, ConfigError
from clprompt.reporting.finished import Run, find_runs, read_run
from clprompt.reporting.markup import markdown_table
from clprompt.reporting.plots import png
from clprompt.reporting.tables import mean_and_error
from clprompt.system.files import atomic_write

#: Accuracy by the way images are drawn (None: as they are), then by seed.
Accuracies = dict[str | None, dict[int, float]]
METRIC = "average_accuracy"


def accuracies(runs: Iterable[Run]) -> tuple[Accuracies, dict[str, Accuracies]]:
    """Those of ``slda``, and by label those of the methods with ``statistics: lda`` on prompted features.

    Raises:
        ConfigError: two runs of one label, seed and way; streams that differ in more than the way; a way
            without a seed of slda that images as they are have as well; runs of another measure.
    """
    base: Accuracies = {}
    methods: dict[str, Accuracies] = {}
    streams: dict[tuple[tuple[str, str], ...], Path] = {}
    for run in runs:
        settings = dict(run.settings)
        corrupt = settings.pop("data.corrupt", None)
        stream = {key: str(value) for key, value in settings.items() if key.split(".")[0] in _STREAM}
        streams.setdefault(tuple(sorted(stream.items())), run.folder)
        if len(streams) > 1:
            one, other = streams.values()
            raise ConfigError(f"{one} and {other} differ in more of their stream than data.corrupt")
        is_base = settings["strategy.name"] == "slda"
        prompted = settings.get("strategy.statistics_features") != "frozen"
        if not is_base and not (settings.get("strategy.statistics") == "lda" and prompted):
            continue
        if run.results.get(METRIC) is None:
            raise ConfigError(f"{run.folder}: the run has no average accuracy")
        of_label = base if is_base else methods.setdefault(run.name, {})
        by_seed = of_label.setdefault(corrupt, {})
        if run.seed in by_seed:
            raise ConfigError(f"{run.folder}: another run of {run.name} with seed {run.seed} was given")
        by_seed[run.seed] = run.results[METRIC]
    if None not in base:
        raise ConfigError("no finished run of slda with data.corrupt=null, which gaps are measured against")
    for way in {way for of_label in (base, *methods.values()) for way in of_label}:
        if not paired(base[None], base.get(way, {})):
            raise ConfigError(f"no run of slda with data.corrupt={way} and a seed that data.corrupt=null has")
    return base, methods


_STREAM = ("data", "scenario", "backbone", "online", "precision")


def paired(values: Mapping[int, float], others: Mapping[int, float]) -> list[float]:
    """Differences on the same seeds."""
    return [values[seed] - others[seed] for seed in sorted(values.keys() & others.keys())]


def draw(base: Accuracies, methods: Mapping[str, Accuracies], ways: list[str | None]) -> Figure:
    """Gains of every method against the gap of every way."""
    figure = Figure(figsize=(8.0, 4.8))
    axes = figure.add_subplot()
    gaps = [100 * np.mean(paired(base[None], base[way])) for way in ways]
    for (label, by_way), marker in zip(methods.items(), _MARKERS * len(methods), strict=False):
        points = [
            (gap, 100 * np.array(gains))
            for gap, way in zip(gaps, ways, strict=True)
            if (gains := paired(by_way.get(way, {}), base[way]))
        ]
        means = [gains.mean() for _, gains in points]
        errors = [gains.std(ddof=1) / len(gains) ** 0.5 if len(gains) > 1 else np.nan for _, gains in points]
        axes.errorbar([gap for gap, _ in points], means, errors, marker=marker, capsize=3, label=label)
    axes.axhline(0, color="grey", linewidth=1)
    top = axes.get_ylim()[1]
    for gap, way in zip(gaps, ways, strict=True):
        axes.annotate(way or "as they are", (gap, top), rotation=40, fontsize=8, annotation_clip=False)
    axes.set(
        xlabel="gap: what slda loses against the images as they are (points)",
        ylabel="gain over slda under the same head (points)",
    )
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    return figure


_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


def main() -> None:
    """A table, and the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUNS")
    parser.add_argument("--out", type=Path, default=Path("gain-against-gap.png"))
    options = parser.parse_args()
    try:
        folders = dict.fromkeys(folder for path in options.runs for folder in find_runs(path))
        runs = [read_run(folder) for folder in folders if (folder / "results.json").exists()]
        base, methods = accuracies(runs)
        ways = sorted(base, key=lambda way: np.mean(paired(base[None], base[way])))
        table = [["images", "slda", "gap", *methods]]
        for way in ways:
            cells = [mean_and_error(base[way].values()), mean_and_error(paired(base[None], base[way]))]
            gains = [
                mean_and_error(paired(by_way.get(way, {}), base[way]), signed=True)
                for by_way in methods.values()
            ]
            table.append([way or "as they are", *cells, *gains])
        print("\n".join(markdown_table(table)))
        atomic_write(options.out, png(draw(base, methods, ways)))
    except ClpromptError as error:
        parser.exit(2, f"clprompt: error: {error}\n")
    print(f"\n{options.out}")


if __name__ == "__main__":
    main()
