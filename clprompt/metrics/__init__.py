"""How good a model is: measures and their metrics, numpy alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clprompt import lazy_names

if TYPE_CHECKING:
    from clprompt.metrics.accuracy import Evaluation as Evaluation
    from clprompt.metrics.accuracy import accuracy_matrix as accuracy_matrix
    from clprompt.metrics.accuracy import average_accuracy as average_accuracy
    from clprompt.metrics.accuracy import average_incremental_accuracy as average_incremental_accuracy
    from clprompt.metrics.accuracy import (
        average_incremental_accuracy_by_samples as average_incremental_accuracy_by_samples,
    )
    from clprompt.metrics.accuracy import backward_transfer as backward_transfer
    from clprompt.metrics.accuracy import confusion_matrix as confusion_matrix
    from clprompt.metrics.accuracy import forgetting as forgetting
    from clprompt.metrics.accuracy import nonnegative_forgetting as nonnegative_forgetting
    from clprompt.metrics.accuracy import online_metrics as online_metrics
    from clprompt.metrics.accuracy import per_class_accuracy as per_class_accuracy
    from clprompt.metrics.label_sets import LabelSetEvaluation as LabelSetEvaluation
    from clprompt.metrics.label_sets import MultiLabelScores as MultiLabelScores
    from clprompt.metrics.label_sets import average_precision as average_precision
    from clprompt.metrics.label_sets import multi_label_scores as multi_label_scores
    from clprompt.metrics.measure import Accuracy as Accuracy
    from clprompt.metrics.measure import LabelSets as LabelSets
    from clprompt.metrics.measure import Measure as Measure
    from clprompt.metrics.measure import Online as Online
    from clprompt.metrics.measure import measure_behind as measure_behind
    from clprompt.metrics.measure import measure_in as measure_in
    from clprompt.metrics.measure import measure_named as measure_named
    from clprompt.metrics.measure import measure_of as measure_of
    from clprompt.metrics.measure import of_trained_head as of_trained_head
    from clprompt.metrics.measure import summarise as summarise

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Accuracy": "clprompt.metrics.measure",
        "Evaluation": "clprompt.metrics.accuracy",
        "LabelSetEvaluation": "clprompt.metrics.label_sets",
        "LabelSets": "clprompt.metrics.measure",
        "Measure": "clprompt.metrics.measure",
        "MultiLabelScores": "clprompt.metrics.label_sets",
        "Online": "clprompt.metrics.measure",
        "accuracy_matrix": "clprompt.metrics.accuracy",
        "average_accuracy": "clprompt.metrics.accuracy",
        "average_incremental_accuracy": "clprompt.metrics.accuracy",
        "average_incremental_accuracy_by_samples": "clprompt.metrics.accuracy",
        "average_precision": "clprompt.metrics.label_sets",
        "backward_transfer": "clprompt.metrics.accuracy",
        "confusion_matrix": "clprompt.metrics.accuracy",
        "forgetting": "clprompt.metrics.accuracy",
        "measure_behind": "clprompt.metrics.measure",
        "measure_in": "clprompt.metrics.measure",
        "measure_named": "clprompt.metrics.measure",
        "measure_of": "clprompt.metrics.measure",
        "multi_label_scores": "clprompt.metrics.label_sets",
        "nonnegative_forgetting": "clprompt.metrics.accuracy",
        "of_trained_head": "clprompt.metrics.measure",
        "online_metrics": "clprompt.metrics.accuracy",
        "per_class_accuracy": "clprompt.metrics.accuracy",
        "summarise": "clprompt.metrics.measure",
    },
)
