"""Where accuracy is lost: inside a class group, or between class groups.

python -m benchmarks.known_experience RUN [RUN ...]

RUN is a folder of finished runs on a stream of class groups with single labels (``clprompt study`` or
``clprompt run`` made them); rows are their labels, mean and standard error over their seeds. "told" is the
test accuracy when the model is told which class group an image belongs to, so that only the classes of that
group compete (task-incremental accuracy); the difference to plain accuracy is confusion between groups.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import clprompt
from clprompt.data import datasets_for
from clprompt.data.loading import image_stream, subset
from clprompt.errors import ClpromptError
from clprompt.experiment.build import Builder
from clprompt.experiment.folder import RESULTS, read_config
from clprompt.reporting.finished import find_runs
from clprompt.reporting.markup import markdown_table
from clprompt.reporting.tables import mean_and_error
from clprompt.training.precision import autocast


@torch.no_grad()
def measure(folder: Path, builder: Builder) -> tuple[float, float]:
    """Accuracy over all test images of the stream, plain and with the class group told."""
    config = read_config(folder)
    parts = builder.build(config)
    _, _, test = datasets_for(parts.bundle, parts.backbone)
    model = clprompt.load(folder)
    plain = told = total = 0
    for group, classes in zip(parts.test_groups, parts.plan.classes, strict=True):
        others = torch.ones(model.num_classes, dtype=torch.bool)
        others[list(classes)] = False
        images = subset(test, group)
        targets = torch.as_tensor(parts.bundle.test.targets[group])
        found = []
        for batch in image_stream(images, config.training.eval_mb_size):
            with autocast(torch.device("cpu"), config.precision):
                found.append(model(batch).float())
        logits = torch.cat(found)
        plain += int((logits.argmax(1) == targets).sum())
        told += int((logits.masked_fill(others, float("-inf")).argmax(1) == targets).sum())
        total += len(targets)
    return plain / total, told / total


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    options = parser.parse_args()
    builder, rows = Builder(), {}
    try:
        for folder in dict.fromkeys(found for path in options.runs for found in find_runs(path)):
            if (folder / RESULTS).exists():
                label = read_config(folder).label or folder.parent.name
                rows.setdefault(label, []).append(measure(folder, builder))
    except ClpromptError as error:
        parser.exit(2, f"clprompt: error: {error}\n")
    table = [["form", "accuracy", "group told", "lost between groups"]]
    for label, accuracies in sorted(
        rows.items(), key=lambda row: -sum(told for _, told in row[1]) / len(row[1])
    ):
        plain, told = zip(*accuracies, strict=True)
        lost = [b - a for a, b in accuracies]
        table.append([label, *(mean_and_error(list(values)) for values in (plain, told, lost))])
    print("\n".join(markdown_table(table)))


if __name__ == "__main__":
    main()
