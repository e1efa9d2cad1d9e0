"""Several engines with the same models behind the calls of one: which of them gets a request, and what if it dies."""

from __future__ import annotations

from airi.routing.choosing import Decision
from airi.routing.replica_set import Replica, ReplicaSet

__all__ = ["Decision", "Replica", "ReplicaSet"]
