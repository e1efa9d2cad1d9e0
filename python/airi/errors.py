"""Every error that AIRI raises, in one tree.

    AiriError
    ├── ConfigError            an option of the engine, the server or a model cannot be accepted
    │   ├── MemoryBudgetError  the KV arena does not fit the memory that was given or found
    │   └── ConfigFileError    a config file has mistakes: one line each
    ├── CheckpointError        a model folder is missing, incomplete or of an unknown architecture
    ├── StateError             what must survive (keys, budgets) cannot be read or kept
    ├── LifecycleError         a version, a release or a rollout cannot be what it was told to be
    │   ├── VersionError         no such version, or not from where it stands
    │   ├── ReleaseError         its members are not there, or do not fit together
    │   └── ConflictError        somebody else has changed it meanwhile
    ├── RequestError           one request cannot be accepted; the engine itself is fine
    │   ├── ContextLengthError   prompt (and what was asked for) exceed the window or the arena
    │   ├── ModelNotFoundError   no model of that name is loaded
    │   └── QueueFullError       too many requests wait; try again a little later
    ├── LedgerUnavailableError the limits cannot be counted now, so nothing is admitted
    ├── AuditUnavailableError  decisions cannot be recorded now, so nothing is admitted
    └── EngineError            the engine process cannot serve
        ├── EngineStartError     it ended, or reported an error, before it was ready
        ├── EngineDeadError      it died, or was given up, while it owed this request tokens
        └── ExecutionError       a step failed for this request (not-a-number logits, a broken kernel)

Messages are one line that names the field, the value found and what is accepted; a ConfigFileError's has such a line
for each mistake. They never contain prompts, completions or keys.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = [
    "AiriError",
    "AuditUnavailableError",
    "CheckpointError",
    "ConfigError",
    "ConfigFileError",
    "ConflictError",
    "ContextLengthError",
    "EngineDeadError",
    "EngineError",
    "EngineStartError",
    "ExecutionError",
    "LedgerUnavailableError",
    "LifecycleError",
    "MemoryBudgetError",
    "ModelNotFoundError",
    "QueueFullError",
    "ReleaseError",
    "RequestError",
    "StateError",
    "VersionError",
    "error_from_code",
]


class AiriError(Exception):
    """Root of every error that AIRI raises on purpose.

    `code` is the stable name that travels over the wire and in HTTP error bodies.
    """

    code = "internal_error"


class ConfigError(AiriError, ValueError):
    """An option cannot be accepted. `field` names it."""

    code = "invalid_config"

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class MemoryBudgetError(ConfigError):
    """The KV arena does not fit; the message names the amounts."""

    code = "memory_budget"


class ConfigFileError(ConfigError):
    """A config file has mistakes. The message is one line for each: file, line, key, value, what is accepted."""

    def __init__(self, mistakes: Iterable[object]) -> None:
        self.lines = tuple(str(mistake) for mistake in mistakes)
        super().__init__("\n".join(self.lines))


class CheckpointError(AiriError):
    """A model folder is missing, incomplete, truncated or of an unknown architecture."""

    code = "invalid_checkpoint"


class StateError(AiriError):
    """The database of keys and budgets cannot be opened, does not answer, or has tables of another version."""

    code = "state_error"


class LifecycleError(AiriError, ValueError):
    """A version, release or rollout cannot be what it was told to be. `field` names what is at fault, where one is."""

    code = "lifecycle_error"

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class VersionError(LifecycleError):
    """There is no such version, or it cannot come from where it stands to where it was sent."""

    code = "invalid_version"


class ReleaseError(LifecycleError):
    """Members of a release are not there, or do not fit together."""

    code = "invalid_release"


class ConflictError(LifecycleError):
    """Somebody else has changed the same thing meanwhile; nothing was done."""

    code = "conflict"


class RequestError(AiriError, ValueError):
    """One request cannot be accepted. `field` names the parameter at fault, where there is one."""

    code = "invalid_request"

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class ContextLengthError(RequestError):
    """The prompt (and the tokens asked for) exceed the model's window or the arena."""

    code = "context_length_exceeded"


class ModelNotFoundError(RequestError):
    """No model of that name is loaded."""

    code = "model_not_found"


class QueueFullError(RequestError):
    """Too many requests wait already; worth a retry a little later."""

    code = "queue_full"


class LedgerUnavailableError(AiriError):
    """Limits cannot be counted: their store does not answer, so no request is admitted."""

    code = "ledger_unavailable"


class AuditUnavailableError(AiriError):
    """Decisions cannot be recorded, so no request is admitted: who must know of every call cannot serve one unseen."""

    code = "audit_unavailable"


class EngineError(AiriError):
    """The engine process cannot serve."""

    code = "engine_error"


class EngineStartError(EngineError):
    """The engine ended, or reported an error, before it was ready."""

    code = "engine_start_failed"


class EngineDeadError(EngineError):
    """The engine died, or was given up, while it still owed this request tokens."""

    code = "engine_dead"


class ExecutionError(EngineError):
    """A step failed for this request: not-a-number logits or a failed kernel."""

    code = "execution_failed"


_FIELD_ERRORS: dict[str, type[ConfigError] | type[RequestError] | type[LifecycleError]] = {
    cls.code: cls
    for cls in (
        ConfigError,
        MemoryBudgetError,
        RequestError,
        ContextLengthError,
        ModelNotFoundError,
        QueueFullError,
        LifecycleError,
        VersionError,
        ReleaseError,
        ConflictError,
    )
}
_PLAIN_ERRORS: dict[str, type[AiriError]] = {
    cls.code: cls
    for cls in (
        CheckpointError,
        StateError,
        LedgerUnavailableError,
        AuditUnavailableError,
        EngineError,
        EngineStartError,
        EngineDeadError,
        ExecutionError,
    )
}


def error_from_code(code: str, message: str, field: str | None = None) -> AiriError:
    """The exception that `code` names, for errors that crossed a process boundary.

    An unknown code (a newer engine) gives a plain AiriError, never a KeyError.
    """
    with_field = _FIELD_ERRORS.get(code)
    if with_field is not None:
        return with_field(message, field=field)
    return _PLAIN_ERRORS.get(code, AiriError)(message)
