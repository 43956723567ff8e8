"""After which experiences a run draws.

By their number alone: of two equal runs, one of them killed and resumed, both have the same pictures.
"""

from __future__ import annotations

#: How often a run of known length draws, its end among them.
PICTURES = 20


def draws(experience: int, experiences: int | None) -> bool:
    """Whether pictures are drawn after an experience, online after a session.

    After each where there are at most :data:`PICTURES`; else so many times, evenly spread and the last time
    at the end. Of a stream whose length nobody knows after numbers with one digit that is not zero: 1, 2,
    ..., 10, 20, ..., 100, 200, ...

    Args:
        experience: its number, from 1.
        experiences: how many there are; None where nobody knows.
    """
    if experiences is None:
        return len(str(experience).rstrip("0")) == 1
    return experience * PICTURES // experiences > (experience - 1) * PICTURES // experiences
