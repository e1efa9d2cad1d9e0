"""Where a version of a model can stand, and where it may go from there."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

__all__ = ["LIVE", "MOVES", "VersionState"]


class VersionState(StrEnum):
    """Where a version stands, as far as the control process knows."""

    REGISTERED = "registered"
    """Known by its content; loaded nowhere."""
    LOADING = "loading"
    """Its weights are on their way to a device, or it warms up."""
    READY = "ready"
    """Warm; no traffic is sent to it."""
    SERVING = "serving"
    """In a release that requests are given."""
    DRAINING = "draining"
    """No new requests; those that run may end. Stays for a while, and then it is let go."""
    ASLEEP = "asleep"
    """Its memory is lent to others; comes back faster than it loads."""
    FAILED = "failed"
    """Could not be loaded, or died; says why."""
    RETIRED = "retired"
    """Never loaded again. Its record stays, as releases of the past name it."""


_REGISTERED, _LOADING, _READY, _SERVING, _DRAINING, _ASLEEP, _FAILED, _RETIRED = VersionState

MOVES: Mapping[VersionState, frozenset[VersionState]] = {
    # Asleep: found so in an engine, behind a process that ended before it had said so.
    _REGISTERED: frozenset({_LOADING, _ASLEEP, _RETIRED}),
    _LOADING: frozenset({_READY, _FAILED, _REGISTERED}),
    _READY: frozenset({_SERVING, _DRAINING, _ASLEEP, _REGISTERED, _FAILED}),
    # Never straight to sleep or away: what runs would be lost.
    _SERVING: frozenset({_DRAINING, _FAILED}),
    # Ready again where somebody needs it before it went.
    _DRAINING: frozenset({_READY, _ASLEEP, _REGISTERED, _FAILED}),
    _ASLEEP: frozenset({_LOADING, _REGISTERED, _FAILED, _RETIRED}),
    _FAILED: frozenset({_LOADING, _REGISTERED, _RETIRED}),
    _RETIRED: frozenset(),
}
"""Everything that may follow each state."""

LIVE = frozenset({_LOADING, _READY, _SERVING, _DRAINING, _ASLEEP})
"""States that end with the process that holds the version: they are not believed after it."""
