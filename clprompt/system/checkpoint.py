"""Checkpoints: written atomically, read without pickled code."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from clprompt.errors import CheckpointError
from clprompt.system.files import atomic_write

FORMAT = 1
CHECKPOINT = Path("checkpoint") / "state.pt"


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
        CheckpointError: the file is damaged, holds pickled code, or is of another format.
    """
    path = folder / CHECKPOINT
    if not path.exists():
        return None
    try:
        with zipfile.ZipFile(path) as archive:  # torch does not look at the checksums of tensors
            damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"{damaged} is damaged")
        payload = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path} is not a clprompt checkpoint (it holds more than tensors)") from error
    except Exception as error:  # a damaged file fails in many ways
        raise CheckpointError(f"{path} cannot be read: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(payload, dict) or payload.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a clprompt checkpoint of format {FORMAT}")
    return payload
