"""What a method promises, as checks that an outsider can run: :func:`check_strategy`, or one by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clprompt import lazy_names

if TYPE_CHECKING:
    from clprompt.testing.bench import Workbench as Workbench
    from clprompt.testing.bench import tiny_backbone as tiny_backbone
    from clprompt.testing.bench import tiny_model as tiny_model
    from clprompt.testing.bench import tiny_vit as tiny_vit
    from clprompt.testing.contract import CHECKS as CHECKS
    from clprompt.testing.contract import MULTI_LABEL_CHECKS as MULTI_LABEL_CHECKS
    from clprompt.testing.contract import check_strategy as check_strategy
    from clprompt.testing.label_sets import ScenesBench as ScenesBench
    from clprompt.testing.learning import check_boundaries as check_boundaries
    from clprompt.testing.learning import check_declarations as check_declarations
    from clprompt.testing.learning import check_declared_parameters as check_declared_parameters
    from clprompt.testing.learning import check_encoded as check_encoded
    from clprompt.testing.learning import check_everything_is_in_the_state as check_everything_is_in_the_state
    from clprompt.testing.learning import check_frozen_backbone as check_frozen_backbone
    from clprompt.testing.learning import check_kinds_of_backbone as check_kinds_of_backbone
    from clprompt.testing.learning import check_learning as check_learning
    from clprompt.testing.learning import check_refusals as check_refusals
    from clprompt.testing.learning import check_repeated_classes as check_repeated_classes
    from clprompt.testing.learning import check_soft_labels as check_soft_labels
    from clprompt.testing.prediction import check_autocast as check_autocast
    from clprompt.testing.prediction import check_batch_companions as check_batch_companions
    from clprompt.testing.prediction import check_batch_size as check_batch_size
    from clprompt.testing.prediction import check_cache as check_cache
    from clprompt.testing.prediction import check_exportable as check_exportable
    from clprompt.testing.prediction import check_forward_changes_nothing as check_forward_changes_nothing
    from clprompt.testing.prediction import check_number_formats as check_number_formats
    from clprompt.testing.prediction import check_savings as check_savings
    from clprompt.testing.prediction import check_unseen_classes as check_unseen_classes

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "CHECKS": "clprompt.testing.contract",
        "MULTI_LABEL_CHECKS": "clprompt.testing.contract",
        "ScenesBench": "clprompt.testing.label_sets",
        "Workbench": "clprompt.testing.bench",
        "check_autocast": "clprompt.testing.prediction",
        "check_batch_companions": "clprompt.testing.prediction",
        "check_batch_size": "clprompt.testing.prediction",
        "check_boundaries": "clprompt.testing.learning",
        "check_cache": "clprompt.testing.prediction",
        "check_declarations": "clprompt.testing.learning",
        "check_declared_parameters": "clprompt.testing.learning",
        "check_encoded": "clprompt.testing.learning",
        "check_everything_is_in_the_state": "clprompt.testing.learning",
        "check_exportable": "clprompt.testing.prediction",
        "check_forward_changes_nothing": "clprompt.testing.prediction",
        "check_frozen_backbone": "clprompt.testing.learning",
        "check_kinds_of_backbone": "clprompt.testing.learning",
        "check_learning": "clprompt.testing.learning",
        "check_number_formats": "clprompt.testing.prediction",
        "check_refusals": "clprompt.testing.learning",
        "check_repeated_classes": "clprompt.testing.learning",
        "check_savings": "clprompt.testing.prediction",
        "check_soft_labels": "clprompt.testing.learning",
        "check_strategy": "clprompt.testing.contract",
        "check_unseen_classes": "clprompt.testing.prediction",
        "tiny_backbone": "clprompt.testing.bench",
        "tiny_model": "clprompt.testing.bench",
        "tiny_vit": "clprompt.testing.bench",
    },
)
