"""The fixture that opens golden files."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from golden_files import Golden


@pytest.fixture
def golden() -> Callable[..., Golden]:
    """``golden(name, dtype=torch.float64)`` opens one golden file."""

    def open_golden(name: str, dtype: torch.dtype = torch.float64) -> Golden:
        return Golden(name, dtype)

    return open_golden
