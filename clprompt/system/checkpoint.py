"""Checkpoints: written atomically, read without pickled code."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch

from clprompt import schema
from clprompt.errors import CheckpointError, ConfigError
from clprompt.schema import at_least
from clprompt.system.files import atomic_write, read_bytes

FORMAT = 1
CHECKPOINT = Path("checkpoint") / "state.pt"


@dataclass(frozen=True)
class Payload:
    """What the checkpoint of a run folder holds; what was added since the first version may be missing.

    Attributes:
        config: the configuration of the run.
        sizes: bytes of each file that only grows, by its path in the folder.
        seconds: that the run has taken.
        experience_seconds: those of each experience.
        engine: its state; the engine checks it.
        checksums: of the files in ``sizes``.
        fingerprints: of backbone, data and stream.
        rng: the global random states of each process, where several made the run together.
    """

    config: dict[str, Any]
    sizes: dict[str, Annotated[int, at_least(0)]]
    seconds: Annotated[float, at_least(0)]
    experience_seconds: list[float]
    engine: dict[str, Any]
    checksums: dict[str, str] | None = None
    fingerprints: dict[str, str | list[str | list[str]] | dict[str, Any]] | None = None
    rng: list[dict[str, Any]] | None = None


def save_checkpoint(folder: Path, payload: Mapping[str, Any]) -> None:
    """Replace the run folder's checkpoint; at every moment the old or the new one is there, whole.

    Args:
        folder: the run folder.
        payload: tensors and plain values, nested.
    """
    path = folder / CHECKPOINT
    path.parent.mkdir(exist_ok=True)
    data = io.BytesIO()  # written at once: torch makes something of its own out of a full disk
    torch.save({"format": FORMAT, **payload}, data)
    atomic_write(path, data.getvalue())


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The last checkpoint of a run folder; None where there is none yet.

    Raises:
        CheckpointError: the file is damaged, holds pickled code, or is of another format or content.
    """
    path = folder / CHECKPOINT
    if not os.path.lexists(path):
        return None
    try:
        data = io.BytesIO(read_bytes(path))
        with zipfile.ZipFile(data) as archive:  # torch does not look at the checksums of tensors
            damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"{damaged} is damaged")
        data.seek(0)
        payload = torch.load(data, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path} is not a clprompt checkpoint (it holds more than tensors)") from error
    except Exception as error:  # a damaged file fails in many ways
        text = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path} cannot be read: {text}") from error
    if not isinstance(payload, dict) or payload.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a clprompt checkpoint of format {FORMAT}")
    return payload


def check_payload(folder: Path, payload: Mapping[str, Any]) -> None:
    """Refuse a checkpoint of a run folder that does not hold what :class:`Payload` says.

    Raises:
        CheckpointError: something is missing, or of another kind.
    """
    try:
        schema.held(Payload, payload, "")
    except ConfigError as error:
        raise CheckpointError(f"{folder / CHECKPOINT} is not the checkpoint of a run: {error}") from error
