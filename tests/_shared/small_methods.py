"""Arguments for tests over every method, of those whose defaults take long."""

from __future__ import annotations

from typing import Any

SMALL: dict[str, dict[str, Any]] = {
    "flyprompt": {"layers": (0, 2), "length": 2, "random_features": 48, "samples_per_expert": 40},
    "ranpac": {"random_features": 48},
}
