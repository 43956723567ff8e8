"""Every strategy on the toy stream in two processes and, to compare, in one; called in each of the two."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.append(str(Path(__file__).parents[1] / "_shared"))

from small_methods import SMALL

from clprompt import registry
from clprompt.backbones import FrozenViT
from clprompt.prompting import PromptModel
from clprompt.testing.bench import Log, Workbench, tiny_backbone
from clprompt.testing.label_sets import ToyScenes
from clprompt.training import Evaluator, Training
from clprompt.training.processes import Processes, together

#: Beside the strategies as they are: what compares images, draws for each, or counts; and how it is tried.
VARIANTS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "mask: batch": ("l2p", {"mask": "batch"}, {}),
    "released focal weights": ("mvp", {"focal_weighting": "batch", "count_pairing": "cross"}, {}),
    "coordination": ("dualprompt", {"coordinate": True}, {}),
    "random epochs and dropout": ("tcpa", {"random_epochs": 1, "prompt_dropout": 0.2}, {}),
    "statistics": ("l2p", {"statistics": "lda"}, {}),
    "self-regulation, second views": ("maple", {"anchor": ["self_regulation", "consistency"]}, {}),
    "mixup": ("vpt_deep", {}, {"mixup": 0.4}),
    "retrieval": ("linear_probe", {}, {"retrieval": True}),
    "label sets": ("l2p", {}, {"scenes": True}),
}
#: In float64 a sum that is not the batch's cannot hide in rounding.
DTYPE = torch.float64
_backbones: dict[bool, FrozenViT] = {}  # by whether texts are needed


class Bench(Workbench):
    """17 of 18 images, and one, in a batch: parts of two sizes, and one process without an image.

    Args:
        model_class: the method.
        mixup: of the training section.
        retrieval: whether evaluations search, too.
        scenes: images with several labels.
        **arguments: the method's.
    """

    def __init__(
        self,
        model_class: type[PromptModel],
        *,
        mixup: float = 0.0,
        retrieval: bool = False,
        scenes: bool = False,
        **arguments: Any,
    ) -> None:
        self.mixup, self.retrieval, self.scenes = mixup, retrieval, scenes
        super().__init__(model_class, **arguments)
        if model_class.needs_text not in _backbones:
            _backbones[model_class.needs_text] = tiny_backbone(model_class).to(DTYPE)
        self.backbones = {"class token": _backbones[model_class.needs_text]}

    def images(self, per_class: int, part: str = "train") -> Any:
        return ToyScenes(per_class, part) if self.scenes else super().images(per_class, part)

    def evaluator(self) -> Evaluator:
        groups = () if self.scenes else self.test.groups()
        return Evaluator(self.test, self.test.targets, groups, batch_size=5, retrieval=self.retrieval)

    def training(self, epochs: int = 1) -> Training:
        return Training(
            train_mb_size=17, train_epochs=epochs, lr=0.02, eval_mb_size=5, log_every=1, mixup=self.mixup
        )

    def trained(self, processes: Processes | None) -> tuple[PromptModel, list[dict[str, Any]]]:
        """A model after two experiences, and the records."""
        model, log = self.make().to(DTYPE), Log()
        engine = self.engine(model, experiences=2, train=self.few, log=log, processes=processes)
        assert engine.evaluator is not None
        engine.evaluator.processes = processes
        engine.run()
        return model, log.records


def largest(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """The largest difference between the tensors of two states."""
    assert a.keys() == b.keys()
    pairs = [(value.double().nan_to_num(), b[name].double().nan_to_num()) for name, value in a.items()]
    return max((float((x - y).abs().max()) for x, y in pairs if x.numel()), default=0.0)


def compared(name: str, processes: Processes) -> dict[str, Any]:
    """How far two processes are from one."""
    strategy, arguments, how = VARIANTS.get(name, (name, SMALL.get(name, {}), {}))
    bench = Bench(registry.strategies.get(strategy).target, **how, **arguments)  # type: ignore[arg-type]
    model, records = bench.trained(processes)
    together = processes.on_main(dict(model.method_state()))
    if together is None:
        return {}
    alone, expected = bench.trained(None)
    trained = [record["terms"] for record in records if record["kind"] == "train"]
    terms = [record["terms"] for record in expected if record["kind"] == "train"]
    assert [a.keys() for a in trained] == [b.keys() for b in terms]
    floating = {k for k, v in alone.method_state().items() if v.is_floating_point()}
    counted = {k: v for k, v in alone.method_state().items() if k not in floating}
    return {
        "terms": max((abs(a[k] - b[k]) for a, b in zip(trained, terms, strict=True) for k in a), default=0),
        "evaluations": [r for r in records if r["kind"] != "train"]
        == [r for r in expected if r["kind"] != "train"],
        "counts": largest({k: together[0][k] for k in counted}, counted),
        "state": largest(together[0], alone.method_state()),
        "processes": largest(*together),
    }


def main(out: str) -> None:
    """Compare all of them and write what was found, by name."""
    registry.load_builtin()
    found: dict[str, Any] = {}
    with together() as processes:
        assert processes is not None
        for name in [*registry.strategies.names(), *VARIANTS]:
            if name.startswith("crash_"):
                continue
            print(name, flush=True)
            found[name] = compared(name, processes)
        if processes.is_main:
            Path(out).write_text(json.dumps(found))
