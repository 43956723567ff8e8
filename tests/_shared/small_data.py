"""A small data set for each kind of reader."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def _pictures(folder: Path) -> list[str]:
    """Eight 8 x 8 pictures in folders b/ and c/ of two domains; their paths."""
    paths = []
    for number in range(8):
        path = folder / f"{'bc'[number % 2]}" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((8, 8), 25 * number, dtype=np.uint8)).save(path)
        paths.append(str(path))
    return paths


def _imagefolder(folder: Path) -> dict[str, Any]:
    _pictures(folder)
    return {"path": str(folder)}


def _csv(folder: Path) -> dict[str, Any]:
    lines = [f"{path},{'bc'[number % 2]}" for number, path in enumerate(_pictures(folder))]
    (folder / "list.csv").write_text("\n".join(["path,label", *lines]))
    return {"path": str(folder / "list.csv")}


def _label_set_csv(folder: Path) -> dict[str, Any]:
    lines = [f'"{path}","{"b;c" if number % 3 else "b"}"' for number, path in enumerate(_pictures(folder))]
    for name in ("train", "test"):
        (folder / f"{name}.csv").write_text("\n".join(["path,label", *lines]))
    return {"path": str(folder / "train.csv"), "test_path": str(folder / "test.csv")}


def _npz(folder: Path) -> dict[str, Any]:
    images, labels = np.zeros((8, 8, 8), dtype=np.uint8), np.arange(8) % 2
    images += np.arange(8, dtype=np.uint8)[:, None, None]
    np.savez(folder / "a.npz", images=images, labels=labels, names=np.array(["b", "c"]))
    return {"path": str(folder / "a.npz")}


def _label_set_npz(folder: Path) -> dict[str, Any]:
    images, hot = np.zeros((8, 8, 8), dtype=np.uint8), np.eye(2, dtype=np.uint8)[np.arange(8) % 2]
    images += np.arange(8, dtype=np.uint8)[:, None, None]
    parts = {"train_images": images, "train_targets": hot, "test_images": images + 9, "test_targets": hot}
    np.savez(folder / "a.npz", **parts, class_names=np.array(["b", "c"]))
    return {"path": str(folder / "a.npz")}


#: By the name of the data set: what writes it into a folder, and gives its arguments.
READERS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "digits": lambda folder: {},
    "synthetic": lambda folder: {},
    "mosaic": lambda folder: {"train_images": 8, "test_images": 8},
    "imagefolder": _imagefolder,
    "csv": _csv,
    "multi_label_csv": _label_set_csv,
    "npz": _npz,
    "multi_label_npz": _label_set_npz,
}
