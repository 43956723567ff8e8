"""Figures of merit, numpy alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clprompt import lazy_names

if TYPE_CHECKING:
    from clprompt.metrics.accuracy import accuracy_matrix as accuracy_matrix
    from clprompt.metrics.accuracy import average_accuracy as average_accuracy
    from clprompt.metrics.accuracy import average_incremental_accuracy as average_incremental_accuracy
    from clprompt.metrics.accuracy import backward_transfer as backward_transfer
    from clprompt.metrics.accuracy import confusion_matrix as confusion_matrix
    from clprompt.metrics.accuracy import forgetting as forgetting
    from clprompt.metrics.accuracy import online_figures as online_figures
    from clprompt.metrics.label_sets import average_precision as average_precision
    from clprompt.metrics.label_sets import multi_label_scores as multi_label_scores

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "accuracy_matrix": "clprompt.metrics.accuracy",
        "average_accuracy": "clprompt.metrics.accuracy",
        "average_incremental_accuracy": "clprompt.metrics.accuracy",
        "average_precision": "clprompt.metrics.label_sets",
        "backward_transfer": "clprompt.metrics.accuracy",
        "confusion_matrix": "clprompt.metrics.accuracy",
        "forgetting": "clprompt.metrics.accuracy",
        "multi_label_scores": "clprompt.metrics.label_sets",
        "online_figures": "clprompt.metrics.accuracy",
    },
)
