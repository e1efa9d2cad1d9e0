"""The audit log: a line of JSON for every decision, which holds names, numbers and ids, never a key or a text."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from airi.errors import ConfigError
from airi.policy.decisions import Decision, Resource
from airi.policy.principal import Principal

__all__ = ["AuditLog"]


class _Line(msgspec.Struct, kw_only=True, omit_defaults=True):
    time: str
    request_id: str
    tenant: str
    key: str | None = None
    action: str
    resource: str
    allowed: bool
    policies: tuple[str, ...] = ()
    limit: str | None = None
    rules: tuple[str, ...] = ()


class AuditLog:
    """Appends to a file, a whole line per write: several processes may share it, and a crash cuts none in two.

    A line is with the system once `note` returns; what the system has not written yet is lost only with the machine.
    *Thread safety*: any thread.
    """

    def __init__(self, path: Path, *, now: Callable[[], float] = time.time) -> None:
        """Opens or makes the file, which only its owner may read; raises ConfigError where that is not possible."""
        try:
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigError(
                f"audit is {path}; it cannot be written: {error.strerror}", field="audit"
            ) from None
        self._now = now
        self._encode = msgspec.json.Encoder().encode

    def note(
        self,
        request_id: str,
        principal: Principal,
        action: str,
        resource: Resource,
        decision: Decision,
        *,
        limit: str | None = None,
        rules: tuple[str, ...] = (),
    ) -> None:
        """Writes what was decided about a call. `limit`: the one that refused it; `rules`: of content, that it broke.

        Raises OSError where the disk is full: who must know of every call cannot serve it then.
        """
        seconds = self._now()
        line = _Line(
            time=f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{int(seconds % 1 * 1e6):06d}Z",
            request_id=request_id,
            tenant=principal.tenant,
            key=principal.key_id,
            action=action,
            resource=f"{resource.kind}::{resource.id}",
            allowed=decision.allowed and limit is None,
            policies=decision.policies,
            limit=limit,
            rules=rules,
        )
        data = self._encode(line) + b"\n"
        if os.write(self._file, data) != len(data):
            raise OSError("a line of the audit log was cut short")

    def close(self) -> None:
        """Closes the file; nothing may be noted afterwards."""
        os.close(self._file)
