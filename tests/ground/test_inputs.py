"""What images a backbone takes."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from clprompt.inputs import ImageSpec

GREY = ImageSpec((8, 16), 1, "bilinear", False, (0.5,), (0.25,))


def test_the_facts_of_a_specification_are_those_of_model_json() -> None:
    assert json.dumps(GREY.facts()) == (
        '{"image_size": [8, 16], "channels": 1, "interpolation": "bilinear", "antialias": false, '
        '"mean": [0.5], "std": [0.25]}'
    )


def test_a_specification_comes_back_from_its_facts() -> None:
    other = ImageSpec((8, 16), 1, "bicubic", True, (0.1,), (0.9,))
    for spec in (GREY, replace(GREY, test_resize=20, corrupt="edges")):
        assert other.updated(json.loads(json.dumps(spec.facts()))) == spec


def test_size_and_channels_stay_those_of_the_weights() -> None:
    colour = ImageSpec((4, 4), 3, "bicubic", True, (0.0,) * 3, (1.0,) * 3)
    facts = {"image_size": [8, 8], "channels": 1, "interpolation": "nearest"}
    assert colour.updated(facts) == ImageSpec((4, 4), 3, "nearest", True, (0.0,) * 3, (1.0,) * 3)


def test_constants_for_another_number_of_channels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"std must have one value per channel \(3\), got 1"):
        ImageSpec((8, 8), 3, "bicubic", True, (0.5,) * 3, (0.5,))
