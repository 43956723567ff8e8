"""A file that takes long to make: what there is of it so far stands beside it, and the same call goes on."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from clprompt.errors import CheckpointError, ConfigError
from clprompt.system import checkpoint, overlay
from clprompt.system.files import FolderLock


class Unfinished:
    """A file that is being made.

    Args:
        out: the file.
        settings: it is made by, plain values.

    Attributes:
        folder: beside the file, where checkpoints are written.
        saved: the checkpoint in it; None where there is none.

    Raises:
        ConfigError: the file exists, or its folder does not.
        CheckpointError: what is there to go on from is of other settings.
    """

    def __init__(self, out: Path, settings: Mapping[str, Any]) -> None:
        if out.exists():
            raise ConfigError(f"{out} exists; remove it, or give another file with out=FILE")
        if not out.parent.is_dir():
            raise ConfigError(f"out={out}: there is no folder {out.parent}")
        self.folder = out.with_name(out.name + ".partial")
        self.settings = settings
        self.saved = checkpoint.load_checkpoint(self.folder)
        if self.saved is not None:
            different = overlay.difference(self.saved["settings"], settings)
            if different:
                raise CheckpointError(
                    f"{self.folder} is of other settings ({', '.join(different)}); remove it, "
                    "or give another file"
                )

    @contextmanager
    def work(self) -> Iterator[None]:
        """Around the work: the folder is there, locked, and removed when the file is written."""
        self.folder.mkdir(exist_ok=True)
        with FolderLock(self.folder):
            yield
        shutil.rmtree(self.folder)

    def save(self, state: Mapping[str, Any]) -> None:
        """Write a checkpoint."""
        checkpoint.save_checkpoint(self.folder, {**state, "settings": self.settings})
