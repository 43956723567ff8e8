"""Ways through a training step, for the tests of whether one waits for its device."""

from __future__ import annotations

from typing import Any

import pytest
from small_methods import SMALL

from clprompt import registry

#: Forms beside each method's first that take another way through a step.
FURTHER: dict[str, list[dict[str, Any]]] = {
    "coda_prompt": [{"orthogonality": 0.1}],
    "coop": [
        {"boundary_free": True},
        {"class_specific": True, "rows": "live"},
        {"gate": (("a {}.", "the {}."), ("this {}.",)), "length": None},
        {"anchor": ["self_regulation", "consistency", "equal_shifts", "direction"]},
        {"attributes": ("shape",), "residual": False},
    ],
    "damvp": [{"prompt": "token", "layers": (1, 3)}, {"head": "active"}],
    "dualprompt": [
        {"coordinate": True, "statistics": "lda"},
        {"boundary_free": True, "pool_size": 3, "statistics": "ncm"},
    ],
    "flyprompt": [{"boundary_free": True}],
    "l2p": [{"coordinate": True, "mask": "batch"}],
    "multilane": [
        {"head": "task"},
        {"selectors": 0, "merge_to": 6},
    ],
    "prompt_cam": [{"gate_by": "lda"}],
    "semantic_proxies": [{"boundary_free": True}, {"form": "in_batch", "mask": "experience"}],
    "tcpa": [{"mask_position": "after", "select": "task"}],
}


def forms(*, further: bool = True) -> list[Any]:
    """(name, arguments) of every strategy, and what the table adds."""
    found = []
    for name in registry.strategies.names():
        for more in [{}, *(FURTHER.get(name, []) if further else [])]:
            title = name + "".join(f",{key}" for key in more)
            found.append(pytest.param(name, {**SMALL.get(name, {}), **more}, id=title))
    return found
