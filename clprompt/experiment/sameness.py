"""Whether a run goes on, or predicts, with what it had: weights, texts, classes, images, stream.

Names say little: a weight file or a folder of images may have been replaced under its name, and the figures
would then be of two worlds. A checkpoint holds fingerprints of all of them; those that it lacks, as an older
version wrote it, are not compared.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clprompt.data import fingerprint
from clprompt.errors import CheckpointError
from clprompt.experiment.config import Config
from clprompt.prompting.model import PromptModel
from clprompt.system.documents import read_json

if TYPE_CHECKING:  # it imports timm and torchvision
    from clprompt.experiment.build import Parts

#: The key of the files that a strategy's keys name.
_FILES = "files of the strategy"
#: The parts of a data set and what is covered of each, as messages call it.
_COVERED = {
    "number": "number",
    "labels": "labels",
    "domains": "domains",
    "names": "file names",
    "sizes": "file sizes",
    "contents": "contents",
}


def fingerprints(parts: Parts, weights: str, then: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What a checkpoint holds of the parts of its run.

    Args:
        parts: of the run.
        weights: the fingerprint of the backbone.
        then: what the checkpoint holds that the run goes on from; None where it begins.
    """
    files = _now(parts.model, (then or {}).get(_FILES) or {})
    transform = sorted(parts.backbone.inputs.facts().items())
    return {
        "backbone weights": weights,
        "image transform": fingerprint.checksum([repr(transform).encode()]),
        "stream": parts.plan.fingerprint(),
        **({_FILES: files} if files else {}),
        **parts.bundle.fingerprints,
    }


def of_files(model: PromptModel) -> dict[str, str]:
    """Checksums of what files gave a method and its plug-ins, by the key of the strategy that names each."""
    return {key: fingerprint.checksum([repr(value).encode()]) for key, value in model.files_read().items()}


def _now(model: PromptModel, then: Mapping[str, str]) -> dict[str, str]:
    """:func:`of_files`, and of what is in the state that will be loaded, what it was then."""
    return {key: then[key] for key in model.files_in_state() if key in then} | of_files(model)


def check_files(
    then: Mapping[str, str], model: PromptModel, strategy: Mapping[str, Any], folder: Path
) -> None:
    """Refuse to predict with other contents of files than a run had.

    Args:
        then: what :func:`of_files` gave of the run's model.
        model: built again.
        strategy: the section that it was built from.
        folder: of the run.

    Raises:
        CheckpointError: naming all that differ.
    """
    now = _now(model, then)
    different = _other_files(then, {key: now.get(key, "") for key in then}, strategy)
    if different:
        raise CheckpointError(f"{folder}: {different}; put back what they were in the run")


def known_by(images: Mapping[str, Any]) -> np.ndarray:
    """The checksum of a fingerprint of images, uint8 [32]."""
    text = json.dumps(images, sort_keys=True)
    return np.frombuffer(bytes.fromhex(fingerprint.checksum([text.encode()])), dtype=np.uint8)


def of_older(folder: Path) -> dict[str, Any]:
    """What is known of the parts of a run whose checkpoint holds no fingerprints: the backbone's weights.

    Args:
        folder: of the run; its environment.json had them from the first version on.
    """
    try:
        return {"backbone weights": read_json(folder / "environment.json")["backbone"]["sha256"]}
    except (CheckpointError, LookupError, TypeError):
        return {}


def places(then: Mapping[str, Any]) -> set[str]:
    """The keys of a configuration that may lead elsewhere, as what stands there is compared itself.

    Args:
        then: what the checkpoint holds.
    """
    keys = {"backbone.checkpoint", "backbone.pretrained"} if "backbone weights" in then else set()
    if "stream" in then:
        keys.add("scenario.class_order")
    if "synonyms" in then:
        keys.add("data.class_names")
    keys |= {f"strategy.{key}" for key in then.get(_FILES) or ()}
    if all("contents" in (then.get(part) or ()) for part in ("training images", "test images")):
        names = ("path", "test_path", "root", "lists", "class_list")
        keys |= {f"data{source}.{name}" for source in ("", ".source") for name in names}
    return keys


def check(then: Mapping[str, Any], now: Mapping[str, Any], config: Config, folder: Path) -> None:
    """Refuse to go on with anything else than before.

    Args:
        then: what the checkpoint holds.
        now: the fingerprints of the parts that are there.
        config: of the run, for the keys that lead to what differs.
        folder: of the run.

    Raises:
        CheckpointError: something differs; the message names all that does.
    """
    different = [
        text for key in now if key in then for text in _differences(key, then[key], now[key], config)
    ]
    if different:
        raise CheckpointError(
            f"{folder}: something is not what it was when the run stopped: {'; '.join(different)}; "
            "put it back, or start a new run"
        )


def _differences(key: str, then: Any, now: Any, config: Config) -> list[str]:
    if then == now:
        return []
    if key == "backbone weights":
        file = config.backbone["checkpoint"]
        source = f"backbone.checkpoint={file}" if file else f"backbone.name={config.backbone['name']}"
        return [f"other backbone weights ({source})"]
    if key == _FILES:
        return [_other_files(then, now, config.strategy)]
    if key in ("class names", "domain names") and isinstance(then, list):
        return [_names(key.removesuffix(" names"), then, now)]
    if isinstance(now, dict) and isinstance(then, dict):
        kinds = [kind for kind in now if kind in then and then[kind] != now[kind]]
        texts = [_COVERED.get(kind, kind) for kind in kinds]
        if "number" in kinds:
            texts[kinds.index("number")] = f"number ({now['number']}, not {then['number']})"
        return [f"other {key} (data.name={config.data['name']}): {', '.join(texts)}"] if kinds else []
    if key == "synonyms":
        return ["other synonyms of class names (data.class_names)"]
    if key == "stream" and isinstance(order := config.scenario.get("class_order"), str):
        return [f"another stream (scenario.class_order={order})"]
    return [f"another {key}"]


def _other_files(then: Mapping[str, str], now: Mapping[str, str], strategy: Mapping[str, Any]) -> str:
    """Which files of a strategy's keys hold something else; "" for none."""
    keys = [key for key in {**then, **now} if then.get(key) != now.get(key)]
    named = ", ".join(f"strategy.{key}={strategy.get(key)}" for key in keys)
    return f"other contents of files ({named})" if keys else ""


def _names(kind: str, then: list[Any], now: list[str]) -> str:
    if len(then) != len(now):
        return f"other {kind} names ({len(now)}, not {len(then)})"
    number = next(number for number, pair in enumerate(zip(then, now, strict=True)) if pair[0] != pair[1])
    return f'other {kind} names ({kind} {number} is "{now[number]}", not "{then[number]}")'
