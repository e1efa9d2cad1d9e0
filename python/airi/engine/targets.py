"""Latency targets: how users say them, and what the core takes."""

from __future__ import annotations

import math

from airi.errors import ConfigError
from airi.sampling_params import MAX_PRIORITY

__all__ = ["TargetMs", "check_target", "target_of", "targets_by_band"]

TargetMs = float | tuple[tuple[int, float], ...] | None
"""Milliseconds for requests of every priority, or (priority, milliseconds) for those that have a target."""

_MOST_MS = 9e12


def check_target(field: str, value: object) -> None:
    """Raises ConfigError for what is no TargetMs."""
    if value is None or _is_time(value):
        return
    if not isinstance(value, tuple):
        raise ConfigError(
            f"{field} is {value!r}; it must be a number of milliseconds from 0 to {_MOST_MS:g}, or such a number "
            "for each of some priorities",
            field=field,
        )
    seen: set[object] = set()
    for pair in value:
        if not (isinstance(pair, tuple) and len(pair) == 2 and _is_priority(pair[0]) and _is_time(pair[1])):
            raise ConfigError(
                f"{field} holds {pair!r}; each must be a priority from {-MAX_PRIORITY} to {MAX_PRIORITY} and "
                f"milliseconds from 0 to {_MOST_MS:g}",
                field=field,
            )
        if pair[0] in seen:
            raise ConfigError(f"{field} names priority {pair[0]} twice", field=field)
        seen.add(pair[0])


def target_of(target: TargetMs, priority: int) -> int | None:
    """Microseconds that requests of a priority are promised; None: nothing."""
    millis = dict(target).get(priority) if isinstance(target, tuple) else target
    return None if millis is None or math.isinf(millis) else round(millis * 1000)


def targets_by_band(ttft_ms: TargetMs, itl_ms: TargetMs) -> list[tuple[int | None, int | None]]:
    """What `_core.ModelConfig` takes as targets; empty where nothing is promised."""
    targets = [
        (target_of(ttft_ms, priority), target_of(itl_ms, priority))
        for priority in range(MAX_PRIORITY, -MAX_PRIORITY - 1, -1)
    ]
    return targets if any(target != (None, None) for target in targets) else []


def _is_time(value: object) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and (0 <= value <= _MOST_MS or value == math.inf)  # type: ignore[operator]


def _is_priority(value: object) -> bool:
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    return is_whole and -MAX_PRIORITY <= value <= MAX_PRIORITY  # type: ignore[operator]
