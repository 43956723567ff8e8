"""What makes no lane is refused in one line."""

import pytest

from clprompt.errors import ConfigError, ProtocolError
from clprompt.strategies.multilane import MultiLaneModel
from clprompt.testing.bench import tiny_vit


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"selectors": 0}, "selectors must be at least 1"),
        ({"merge_to": 4}, "merge_to takes the place of selectors"),
        ({"prompt_blocks": 6}, "prompt_blocks must be 0..5"),
        ({"prompt_blocks": -1}, "prompt_blocks must be at least 0, got -1"),
        ({"selectors": 0, "merge_to": 1}, "merge_to must be at least 2, got 1"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"lane_chunk": 0}, "lane_chunk must be at least 1"),
    ],
)
def test_arguments_that_make_no_lane_are_refused(arguments, text):
    with pytest.raises(ConfigError, match=text):
        MultiLaneModel(tiny_vit(), **arguments)


def test_a_backbone_without_a_class_token_is_refused():
    with pytest.raises(ConfigError, match="class token"):
        MultiLaneModel(tiny_vit("average pooling and q/k norm"))


def test_a_class_in_two_experiences_is_refused():
    model = MultiLaneModel(tiny_vit())
    model.begin_experience([0, 1])
    with pytest.raises(ProtocolError, match="class 1 is in two experiences"):
        model.begin_experience([1, 2])
