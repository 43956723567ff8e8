"""Keys that are no arguments any more: what a new configuration and the one of an earlier run are told."""

from __future__ import annotations

from typing import Any

import pytest

from clprompt.errors import ConfigError
from clprompt.experiment.config import from_dict


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("l2p", {"batchwise_prompt": False}),
        ("dualprompt", {"batchwise_prompt": False, "top_k": 1}),
        ("mvp", {"top_k": 1}),
    ],
)
def test_the_configuration_of_an_earlier_run_may_hold_the_one_value_of_a_refused_key(
    name: str, kept: dict[str, Any]
) -> None:
    whole = {"data": "digits", "scenario": "split", "backbone": "vit_letters", "strategy": {"name": name}}
    old = {**whole, "strategy": {"name": name, **kept}}
    assert from_dict(old, of_run=True) == from_dict(whole)
    with pytest.raises(ConfigError, match=r"strategy\.(batchwise_prompt|top_k) is no argument"):
        from_dict(old)


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"name": "mvp", "mask": False}, "got false; the former mask is now called logit_mask"),
        ({"name": "tcpa", "loss_mask": None, "mask": "before"}, "strategy.loss_mask is now called mask"),
        (
            {"name": "damvp", "meta_file": None, "init_file": None},
            "strategy.meta_file is now called init_file",
        ),
        ({"name": "dualprompt", "top_k": 2}, "strategy.top_k is no argument: DualPrompt uses one expert"),
    ],
)
@pytest.mark.parametrize("of_run", [False, True])
def test_an_old_key_is_answered_with_the_new_one(section: dict[str, Any], words: str, of_run: bool) -> None:
    whole = {"data": "digits", "scenario": "split", "backbone": "vit_letters", "strategy": section}
    with pytest.raises(ConfigError, match=words):
        from_dict(whole, of_run=of_run)


def test_the_configuration_of_an_earlier_run_may_call_a_key_by_its_former_name() -> None:
    whole = {"data": "digits", "scenario": "split", "backbone": "vit_letters"}
    old, new = ({**whole, "strategy": {"name": "damvp", key: "x"}} for key in ("meta_file", "init_file"))
    assert from_dict(old, of_run=True) == from_dict(new)
    with pytest.raises(ConfigError, match=r"^strategy\.meta_file is now called init_file$"):
        from_dict(old)
