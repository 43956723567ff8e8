"""What TensorBoard's own plugins read from our event files: the HPARAMS tab and the text tab."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups
from tensorboard.plugins.hparams.metadata import parse_session_start_info_plugin_data
from tensorboard.plugins.text.metadata import PLUGIN_NAME as TEXT

from clprompt.tracking.tensorboard import hyperparameters
from clprompt.tracking.tracker import RunTracker

pytestmark = pytest.mark.usefixtures("same_picture")

NAMES = ["zero", "o|ne", "t\nwo"]


def a_run(folder: Path, accuracy: float, settings: dict[str, Any]) -> None:
    """The event files of a finished run of one experience."""
    folder.mkdir(parents=True)
    tracker = RunTracker(folder, NAMES, [[0, 1, 2]])
    tracker.record(
        {
            "kind": "evaluation",
            "when": "experience",
            "experience": 0,
            "step": 1,
            "samples": 8,
            "accuracy": accuracy,
            "groups": [accuracy],
            "confusion": [[0, 0, 3], [0, 1, 1], [1, 1, 2]],
        }
    )
    tracker.settings(settings)
    tracker.finish()
    tracker.close()


def provider(folder: Path) -> MultiplexerDataProvider:
    """What `tensorboard --logdir folder` reads."""
    multiplexer = EventMultiplexer(tensor_size_guidance={TEXT: 0})
    multiplexer.AddRunsFromDirectory(str(folder))
    multiplexer.Reload()
    return MultiplexerDataProvider(multiplexer, str(folder))


def test_the_hparams_tab_shows_unlike_strategies_together(
    tmp_path: Path,
) -> None:
    a_run(
        tmp_path / "one" / "20260101-120000-seed0-a",
        0.25,
        {"seed": 0, "strategy.name": "alpha", "training.lr": 0.5, "shuffle": True},
    )
    a_run(
        tmp_path / "one" / "b",
        0.75,
        {"seed": 1, "strategy.name": "beta", "layers": [1, 2], "checkpoint": None},
    )
    context = backend_context.Context(TBContext(data_provider=provider(tmp_path)))
    request, found = RequestContext(), {}
    metadata = context.hparams_metadata(request, "")
    experiment = context.experiment_from_metadata(
        request, "", True, metadata, context.hparams_from_data_provider(request, "", 0)
    )
    assert {info.name for info in experiment.hparam_infos} == {
        *("seed", "strategy.name", "training.lr", "shuffle", "layers"),
    }
    assert {"final/average_accuracy", "accuracy/average"} <= {
        info.name.tag for info in experiment.metric_infos
    }
    asked = api_pb2.ListSessionGroupsRequest(
        start_index=0, slice_size=10, allowed_statuses=[api_pb2.STATUS_SUCCESS]
    )
    for info in experiment.metric_infos:
        asked.col_params.add(metric=info.name)
    handler = list_session_groups.Handler(request, context, "", asked)
    for group in handler.run().session_groups:
        values = {value.name.tag: value.value for value in group.metric_values}
        found[group.name] = (group.hparams["strategy.name"].string_value, values["final/average_accuracy"])
        assert group.hparams["layers"].string_value in ("", "[1, 2]")
    assert found == {"seed0-a-20260101-120000, one": ("alpha", 0.25), "b, one": ("beta", 0.75)}


def test_the_text_tab_shows_the_accuracy_of_each_class(tmp_path: Path) -> None:
    a_run(tmp_path / "a", 0.5, {})
    tensors = provider(tmp_path).read_tensors(
        RequestContext(), experiment_id="", plugin_name=TEXT, downsample=10
    )
    ((datum,),) = (tags["per_class_accuracy"] for tags in tensors.values())
    assert datum.step == 1
    lines = datum.numpy.item().decode().splitlines()
    assert lines[0] == "| class | name | group | samples | correct | accuracy |"
    assert lines[2:] == ["| 0 | zero | 1 | 4 | 3 | 0.750 |", "| 1 | o\\|ne | 1 | 2 | 2 | 1.000 |"]


@pytest.mark.parametrize("number", [3, 2.5])
def test_numbers_stay_numbers_and_booleans_booleans(number: float, tmp_path: Path) -> None:
    start, end = hyperparameters({"a": number, "b": False, "c": "x"}, "name")
    content = start.value[0].metadata.plugin_data.content
    values = parse_session_start_info_plugin_data(content).hparams
    assert values["a"].number_value == number
    assert values["b"].WhichOneof("kind") == "bool_value"
    assert values["c"].string_value == "x"
    assert end.value[0].tag == "_hparams_/session_end_info"
