"""The audit log: a line of JSON for every decision, call over a limit, match of a content rule and doubt of a route.

Callers that nobody knows share a line a second.

Lines hold names, numbers and ids, the public one of the key that spoke among them; never a key or a text.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from airi.errors import AuditUnavailableError, ConfigError
from airi.policy.decisions import Decision, Resource
from airi.policy.keys import public_id
from airi.policy.principal import Principal

if TYPE_CHECKING:
    from airi.policy.content import ContentEvent

__all__ = ["AuditLog"]

log = logging.getLogger("airi.policy")


class _CallLine(msgspec.Struct, kw_only=True, omit_defaults=True):
    time: str
    request_id: str
    tenant: str
    key_id: str | None = None


class _Line(_CallLine, kw_only=True):
    action: str
    resource: str
    call: str | None = None
    allowed: bool
    policies: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()


class _LimitLine(_CallLine, kw_only=True):
    action: str
    resource: str
    allowed: bool
    limit: str
    scope: str


class _UnknownLine(msgspec.Struct, kw_only=True, omit_defaults=True):
    time: str
    request_id: str | None = None
    key_id: str | None = None
    action: str
    allowed: bool
    more: int = 0


class _FoundLine(_CallLine, kw_only=True):
    model: str
    side: str
    where: str


class _MatchLine(_FoundLine, kw_only=True):
    rule: str
    pattern: str
    action: str
    start: int
    end: int


class _RestLine(_FoundLine, kw_only=True):
    more: int


class _RouteLine(_CallLine, kw_only=True):
    route: str
    failed: tuple[str, ...]


class AuditLog:
    """Appends to a file, a whole line per write: several processes may share it, and a crash cuts none in two.

    A line is with the system once `note` returns; what the system has not written yet is lost only with the machine.
    *Thread safety*: any thread.
    """

    def __init__(self, path: Path, *, now: Callable[[], float] = time.time) -> None:
        """Opens or makes the file, which only its owner may read; raises ConfigError where that is not possible."""
        try:
            self._file = _open(path)
        except OSError as error:
            raise ConfigError(
                f"audit is {path}; it cannot be written: {error.strerror}", field="audit"
            ) from None
        self._path = path
        self._failing = False
        self._is_cut = False
        self._unknown_in, self._unknown = -1, 0
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
        call: str | None = None,
    ) -> None:
        """Writes what was decided about a call; `call`: which one, where the action does not tell.

        Raises AuditUnavailableError where the disk is full or gone; the log says so once.
        """
        line = _Line(
            **self._of(request_id, principal),
            action=action,
            resource=f"{resource.kind}::{resource.id}",
            call=call,
            allowed=decision.allowed,
            policies=decision.policies,
            errors=decision.errors,
        )
        self._write(line)

    def note_limit(
        self, request_id: str, principal: Principal, action: str, resource: Resource, limit: str, scope: str
    ) -> None:
        """Writes that a call was refused, or ended, by a limit, by its name in the config; raises as `note`.

        `scope`: whose limit it is, as its message says.
        """
        line = _LimitLine(
            **self._of(request_id, principal),
            action=action,
            resource=f"{resource.kind}::{resource.id}",
            allowed=False,
            limit=limit,
            scope=scope,
        )
        self._write(line)

    def note_unknown(self, request_id: str, authorization: str | None) -> None:
        """Writes that a caller was not known, with the public id where its key has the form of one; raises as `note`.

        At most one line a second, which counts those before it that have none: guessing must not fill a disk.
        """
        second = int(self._now())
        if second == self._unknown_in:
            self._unknown += 1
            return
        self._unknown_in = second
        self._write_unknown(request_id, public_id((authorization or "").rpartition(" ")[2]))

    def _write_unknown(self, request_id: str | None, key_id: str | None) -> None:
        more, self._unknown = self._unknown, 0
        line = _UnknownLine(
            time=self._time(),
            request_id=request_id,
            key_id=key_id,
            action="authenticate",
            allowed=False,
            more=more,
        )
        self._write(line)

    def note_match(
        self, request_id: str, principal: Principal, model: str, side: str, where: str, event: ContentEvent
    ) -> None:
        """Writes that a content rule found something in the prompt or the answer of a call; raises as `note`.

        `where`: the field of the request or the choice whose bytes the event counts.
        """
        line = _MatchLine(
            **self._of(request_id, principal),
            model=model,
            side=side,
            where=where,
            rule=event.rule,
            pattern=event.pattern,
            action=event.action,
            start=event.start,
            end=event.end,
        )
        self._write(line)

    def note_rest(
        self, request_id: str, principal: Principal, model: str, side: str, where: str, more: int
    ) -> None:
        """Writes how many matches of a text have no line of their own; as `note_match`."""
        line = _RestLine(
            **self._of(request_id, principal),
            model=model,
            side=side,
            where=where,
            more=more,
        )
        self._write(line)

    def note_route(self, request_id: str, principal: Principal, route: str, failed: tuple[str, ...]) -> None:
        """Writes what of a route could not be told of a call, each with why; raises as `note`."""
        self._write(_RouteLine(**self._of(request_id, principal), route=route, failed=failed))

    def _of(self, request_id: str, principal: Principal) -> dict[str, Any]:
        """What every line about a call begins with."""
        return {
            "time": self._time(),
            "request_id": request_id,
            "tenant": principal.tenant,
            "key_id": principal.key_id,
        }

    def _time(self) -> str:
        seconds = self._now()
        whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
        return f"{whole}.{int(seconds % 1 * 1e6):06d}Z"

    def _write(self, line: msgspec.Struct) -> None:
        data = self._encode(line) + b"\n"
        if self._is_cut:
            data = b"\n" + data  # ends the line that was cut short
        try:
            written, reason = os.write(self._file, data), "no room for a whole line"
        except OSError as error:
            written, reason = 0, error.strerror or type(error).__name__
        if written == len(data):
            if self._failing:
                log.warning("the audit log %s is written again", self._path)
            self._failing = self._is_cut = False
            return
        self._is_cut |= written > 0
        if not self._failing:
            log.error("the audit log %s cannot be written, calls are refused: %s", self._path, reason)
        self._failing = True
        raise AuditUnavailableError(f"the audit log {self._path} cannot be written: {reason}")

    def reopen(self) -> None:
        """Goes on in the file that has the path now, as after a rotation; in the one before where none can be had."""
        try:
            file = _open(self._path)
        except OSError as error:
            log.error(
                "the audit log %s cannot be opened again, the file before goes on: %s",
                self._path,
                error.strerror,
            )
            return
        os.dup2(file, self._file, inheritable=False)  # at once, for writers on other threads too
        os.close(file)
        self._is_cut = False

    def close(self) -> None:
        """Closes the file, with the count of unknown callers that is due; nothing may be noted afterwards."""
        if self._unknown:
            self._unknown -= 1  # this line stands for one
            with suppress(AuditUnavailableError):
                self._write_unknown(None, None)
        os.close(self._file)


def _open(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
