"""Several engines with the same models behind the calls of one: which of them gets a request, and what if it dies."""

from __future__ import annotations

from airi.routing.choosing import Decision
from airi.routing.replica import Replica
from airi.routing.replica_set import ReplicaSet

__all__ = ["Decision", "Replica", "ReplicaSet"]
