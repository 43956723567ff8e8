"""Arguments for tests over every method, of those whose defaults take long."""

from __future__ import annotations

from typing import Any

SMALL: dict[str, dict[str, Any]] = {"ranpac": {"random_features": 48}}
