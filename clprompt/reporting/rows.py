"""The rows of a report: runs that differ in their seed alone, their labels, rates and metrics."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clprompt.metrics.measure import TRAINED_HEAD_TITLE
from clprompt.reporting import facts
from clprompt.reporting.finished import Run
from clprompt.reporting.tables import mean_and_error

#: Numbers under `cost` by their title in tables, the factor that they are shown with, and the decimals.
COSTS = {
    "method_parameters": ("parameters", 1, 0),
    "seconds": ("seconds", 1, 1),
    "experience_seconds": ("s/experience", 1, 1),
    "peak_memory_bytes": ("peak MiB", 2**-20, 0),
}


@dataclass
class Row:
    """Runs that differ in nothing but their seed.

    Attributes:
        label: its label or strategy, with what tells it apart from others of its name.
        runs: by seed.
    """

    label: str
    runs: dict[int, Run]

    def mean(self, key: str) -> str:
        """A metric of results.json over the seeds."""
        return mean_and_error(self.values(key).values())

    def values(self, key: str) -> dict[int, float]:
        """A metric of results.json by seed, where it was measured."""
        return {seed: run.results[key] for seed, run in self.runs.items() if run.results.get(key) is not None}

    def cost(self, key: str) -> float | None:
        """The mean of a number under `cost`; None where no run has it."""
        numbers = self.costs(key).values()
        return sum(numbers) / len(numbers) if numbers else None

    def costs(self, key: str) -> dict[int, float]:
        """A number under `cost` by seed, where there is one."""
        costs = {seed: run.results.get("cost", {}).get(key) for seed, run in self.runs.items()}
        # of a list, such as the seconds of each experience, its mean
        means = {seed: sum(v) / len(v) if isinstance(v, list) and v else v for seed, v in costs.items()}
        return {seed: value for seed, value in means.items() if isinstance(value, int | float)}


def not_default(row: Row, common: Mapping[str, Any]) -> str | None:
    """What a row's strategy and its training were told, "length=1, training.lr=0.001"; None if nothing tells.

    Args:
        row: of a report.
        common: dotted settings that all rows share; those of training are told with them.
    """
    runs = row.runs.values()
    keys = {key for run in runs for key in run.not_default or ()}
    if all(run.not_default is None for run in runs):
        return None
    settings = next(iter(runs)).settings
    told = {
        key.removeprefix("strategy."): value
        for key, value in settings.items()
        if is_below(key, keys) and (key.startswith("strategy.") or key not in common)
    }
    return facts.arguments(told) or "the defaults"


def is_below(key: str, keys: Collection[str]) -> bool:
    """Whether a dotted key is one of these, or inside one."""
    return any(key == other or key.startswith(f"{other}.") for other in keys)


def with_trained_heads(rows: Sequence[Row]) -> list[Row]:
    """Rows, each followed by one of what its runs' trained heads answered, where something else did.

    No two labels are equal.
    """
    together: list[Row] = []
    for row in rows:
        together.append(row)
        heads = {seed: run.trained_head for seed, run in row.runs.items() if run.trained_head is not None}
        if heads:
            label = f"{row.label} ({TRAINED_HEAD_TITLE})"
            taken = {other.label for other in [*rows, *together]}
            together.append(Row(label if label not in taken else f"{label} #{len(together) + 1}", heads))
    return together


def differences(row: Row, base: Row, key: str) -> dict[int, float]:
    """A metric of one row less that of another by seed, where both have it.

    Pairs take out what the class order of a seed does to all rows alike.
    """
    values, others = row.values(key), base.values(key)
    return {seed: values[seed] - others[seed] for seed in sorted(values.keys() & others.keys())}


def rates_of(row: Row) -> str:
    """The learning rate of a row's runs, or the rates of its own that a method was given; of nothing, "-"."""
    if row.cost("method_parameters") == 0:
        return "-"
    values: dict[str, None] = {}
    for settings in (run.settings for run in row.runs.values()):
        rates = {
            key.removeprefix("strategy."): value
            for key, value in settings.items()
            if key.startswith("strategy.") and key.endswith("_lr")
        }
        rate = facts.arguments(rates) if rates else facts.value_text(settings.get("training.lr"))
        values[rate] = None
    return "/".join(values)


def labels_of(groups: Sequence[Mapping[int, Run]]) -> list[str]:
    """Their labels or strategies; where one comes twice, with what differs: the strategy's name or arguments.

    No two labels are equal.
    """
    first = [next(iter(group.values())) for group in groups]
    settings = [run.settings for run in first]
    names = [run.config.get("label") or _name(run.settings) for run in first]
    labels: list[str] = []
    for name, of_row in zip(names, settings, strict=True):
        same = [other for other, its in zip(settings, names, strict=True) if its == name]
        keys = sorted(
            {key for other in same for key in {*of_row, *other} if of_row.get(key) != other.get(key)}
        )
        if len({str(other["name"]) for other in same}) == len(same) > 1:
            differences = [str(of_row["name"])]
        else:
            differences = [
                f"{key.removeprefix('strategy.')}={facts.value_text(of_row.get(key))}" for key in keys
            ]
        label = f"{name} ({', '.join(differences)})" if differences else name
        labels.append(label if label not in labels else f"{label} #{len(labels) + 1}")
    return labels


def _name(settings: Mapping[str, Any]) -> str:
    """The strategy; a memory of images beside it is always told."""
    size = settings.get("memory.size")
    return str(settings["strategy.name"]) + (f" + {size} images" if size else "")
