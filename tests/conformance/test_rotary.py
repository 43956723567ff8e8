"""Every registered strategy over a backbone of rotary positions: it trains, grows, is saved, and predicts.

What a strategy promises whatever the backbone, ``test_conformance.py`` tries on another; that it learns on
this one, ``check_kinds_of_backbone`` does.
"""

from __future__ import annotations

import pytest
import torch
from devices import DEVICE, as_in_a_run
from small_methods import SMALL

from clprompt import registry
from clprompt.testing.asserts import chunked, finite_losses, near, same_bits, steady
from clprompt.testing.bench import CLASSES, Workbench, through_file

KIND = "rotary positions and inner norms"


@pytest.mark.parametrize("name", registry.strategies.names())
def test_over_rotary_positions_a_strategy_trains_grows_is_saved_and_predicts(name: str) -> None:
    bench = Workbench(registry.strategies.get(name).target, device=DEVICE, **SMALL.get(name, {}))
    with as_in_a_run():
        model = bench.make(KIND)
        before = model.backbone.fingerprint()
        finite_losses(bench.run(model, experiences=2, train=bench.few), "")
        assert model.backbone.fingerprint() == before
        images = bench.test.images[::4]
        with torch.no_grad():
            logits = model.eval()(images)
            loaded = bench.make(KIND)
            loaded.load_state_dict(through_file(model.method_state()))
            assert same_bits(loaded.eval()(images), logits)
        assert logits.isfinite().all(0).nonzero().flatten().tolist() == sorted(CLASSES[0] + CLASSES[1])
        alone = chunked(model, images, 1)
        near(logits, alone, steady(model, images, alone), "alone and in a batch")
