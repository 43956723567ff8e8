"""DAM-VP's meta-prompt against the reference: two meta-steps over two sources, in all forms."""

from __future__ import annotations

import pytest
import torch
from devices import DEVICE
from torch import Tensor, nn

from clprompt.strategies.damvp.clustering import cluster, clusters_of
from clprompt.strategies.damvp.frames import frame_places
from clprompt.strategies.damvp.meta import Batch, Source, adapt, inner_rate, meta_update

from .test_damvp import same_partition


@pytest.mark.parametrize("source", ["a", "b"])
def test_sources_are_clustered_as_the_reference_clusters_them(golden, source):
    damvp = golden("damvp")
    features = damvp.backbone().features(damvp[f"meta.{source}.images"])
    labels = cluster(features, float(damvp["meta.threshold"]))
    assert same_partition(labels, damvp[f"meta.{source}.cluster_labels"].cpu().numpy())
    expected = damvp[f"meta.{source}.cluster_labels"]
    damvp.check(clusters_of(features, expected).prototypes, f"meta.{source}.prototypes")


def sources(damvp, kind: str, clusters: str) -> list[Source]:
    found = []
    for name, classes in (("a", 5), ("b", 7)):
        prototypes = damvp[f"meta.{name}.prototypes"]
        if clusters == "generic":
            prototypes = prototypes[:1]
        if kind == "hf":
            columns = damvp["active.order"][:classes].sort().values
            found.append(Source(name, prototypes, columns=columns))
            continue
        head = nn.Linear(32, classes).to(DEVICE, damvp.dtype)
        head.load_state_dict({part: damvp[f"meta.head_{name}.{part}"] for part in ("weight", "bias")})
        found.append(Source(name, prototypes, head))
    return found


@pytest.mark.parametrize("clusters", ["clusters", "generic"])
@pytest.mark.parametrize("kind", ["hf", "ht"])
def test_two_meta_steps_of_both_modes(golden, kind, clusters):
    damvp = golden("damvp")
    backbone, places, prefix = damvp.backbone(), frame_places(3, 32, 4).to(DEVICE), f"meta.{kind}.{clusters}"
    lr, decay, step_size, steps, total = damvp[f"meta.{kind}.args"].tolist()
    frame: Tensor = damvp["meta.init"]
    every = sources(damvp, kind, clusters)
    for step in range(2):
        rate = inner_rate(lr, step + 1, int(total))
        assert rate == pytest.approx(float(damvp[f"{prefix}.inner_lr"][step]), rel=1e-12)
        batches, moved, rows, curves = [], [], [], []
        for source in every:
            where = (
                slice(0, {"a": 4, "b": 3}[source.name])
                if step == 0
                else slice({"a": 4, "b": 3}[source.name], None)
            )
            images = damvp[f"meta.{source.name}.images"][where]
            labels = damvp[f"meta.{source.name}.labels"][where]
            batch = Batch(backbone, places, source, images, labels)
            curve = []
            inner = adapt(
                batch,
                frame,
                steps=int(steps),
                lr=rate,
                optimizer="adam" if kind == "hf" else "sgd",
                weight_decay=0.0 if kind == "hf" else decay,
            )
            for number, (_, fast) in enumerate(inner):
                with torch.no_grad():
                    if number == 0:  # the reference measures the meta-prompt after the head has moved
                        curve.append(batch.loss(frame[None]))
                    curve.append(batch.loss(fast))
            batches.append(batch)
            moved.append(fast)
            curves.append(curve)
            everyone = frame.expand(len(source.prototypes), -1).clone()
            everyone[batch.used] = fast
            rows.append(everyone)
        if step == 0:
            damvp.check(torch.cat(rows), f"{prefix}.fast0", scaled=1e-6)
        frame = meta_update(frame, moved, [len(s.prototypes) for s in every], step_size=step_size)
        damvp.check(frame, f"{prefix}.after{step}", scaled=1e-6)
        with torch.no_grad():
            final = torch.stack([batch.loss(frame[None]) for batch in batches]).mean()
        curve = [*torch.tensor(curves, dtype=damvp.dtype, device=DEVICE).mean(0), final]
        damvp.check(torch.stack(curve), f"{prefix}.loss_curve{step}")
    if kind == "ht":
        for source in every:
            damvp.check(source.head.weight, f"{prefix}.head_{source.name}.weight")
            damvp.check(source.head.bias, f"{prefix}.head_{source.name}.bias")
