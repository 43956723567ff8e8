"""The ceiling of a linear head on frozen features: logistic regression on all classes of a stream at once.

python -m benchmarks.linear_ceiling RUN [RUN ...]

RUN is a run folder, finished or not; its data, backbone and precision are read, its method is not. The
features of all training images of the stream are standardised, the strength of the penalty is chosen on a
fifth of them, held out with each class's share, and the classifier is fitted again on all. Test images
decide nothing: they are the run's own, counted once. "held out" is the accuracy that chose the strength.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedShuffleSplit
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from clprompt.data import datasets_for, image_stream
from clprompt.data.loading import Images, subset
from clprompt.errors import ClpromptError, ConfigError
from clprompt.experiment.build import Builder, Parts
from clprompt.experiment.config import Config
from clprompt.experiment.folder import read_config
from clprompt.reporting.markup import markdown_table
from clprompt.targets import is_label_sets
from clprompt.training.precision import autocast

#: Inverse strengths of the penalty, C of scikit-learn.
STRENGTHS = tuple(10.0**power for power in range(-5, 3))
HELD_OUT = 0.2


@torch.no_grad()
def features_of(images: Images, parts: Parts, config: Config) -> np.ndarray:
    """The backbone's own features, [n, D]."""
    features = []
    for batch in image_stream(images, config.training.eval_mb_size, config.training.workers):
        with autocast(parts.device, config.precision):
            features.append(parts.backbone.features(batch.to(parts.device)).double().cpu().numpy())
    return np.concatenate(features)


def ceiling(folder: Path, builder: Builder) -> tuple[int, float, float, float]:
    """Training images, strength, accuracy on what was held out, and on the test images.

    Raises:
        ConfigError: label sets, or a class with one training image.
    """
    config = read_config(folder)
    parts = builder.build(config)
    train_targets, test_targets = parts.bundle.train.targets, parts.bundle.test.targets
    if is_label_sets(train_targets):
        raise ConfigError(f"{folder}: label sets have no accuracy; give a run with one label for each image")
    parts.backbone.to(parts.device)
    chosen = np.unique(np.concatenate(parts.plan.indices))
    tested = np.unique(np.concatenate(parts.test_groups))
    if np.bincount(train_targets[chosen])[np.unique(train_targets[chosen])].min() < 2:
        raise ConfigError(f"{folder}: a class has one training image, so that none can be held out")
    _, clean, test = datasets_for(parts.bundle, parts.backbone)
    search = GridSearchCV(
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
        {"logisticregression__C": STRENGTHS},
        cv=StratifiedShuffleSplit(1, test_size=HELD_OUT, random_state=0),
    )
    search.fit(features_of(subset(clean, chosen), parts, config), train_targets[chosen])
    accuracy = search.score(features_of(subset(test, tested), parts, config), test_targets[tested])
    return len(chosen), search.best_params_["logisticregression__C"], search.best_score_, accuracy


def main() -> None:
    """One row for each run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    options = parser.parse_args()
    builder, table = Builder(), [["run", "training images", "C", "held out", "accuracy"]]
    try:
        for folder in options.runs:
            images, strength, held_out, accuracy = ceiling(folder, builder)
            if strength in (STRENGTHS[0], STRENGTHS[-1]):
                print(f"{folder}: the best strength, C={strength:g}, is the last that was tried")
            table.append(
                [str(folder), str(images), f"{strength:g}", f"{100 * held_out:.1f}", f"{100 * accuracy:.1f}"]
            )
    except ClpromptError as error:
        parser.exit(2, f"clprompt: error: {error}\n")
    print("\n".join(markdown_table(table)))


if __name__ == "__main__":
    main()
