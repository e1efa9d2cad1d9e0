"""A config that changes while it is served: the difference is validated and applied whole, or refused whole.

changed = diff(old, new)                       # pure: what would change, and what cannot
reloader = Reloader(file, [keys, ledger, ...])  # parts that hold something of the config
outcome = await reloader.reload()              # reads the file again; never raises for a user's mistake
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from airi.config.document import Path
from airi.config.load import ConfigFile, load
from airi.config.mistakes import Mistake, dotted
from airi.config.values import Part as Mapped
from airi.errors import AiriError, ConfigFileError

__all__ = ["Diff", "Outcome", "Part", "Prepared", "Refusal", "Reloader", "apply", "diff"]

logger = logging.getLogger("airi.config")

_CHANGEABLE = ("tenants", "policies", "content", "rollouts", "routes")
_CHANGEABLE_OF_MODELS = ("price",)
_RESTART = "accepted while serving: what it was; it changes by a restart"


@dataclass(frozen=True, slots=True, kw_only=True)
class Diff:
    """What lies between two configs."""

    changes: tuple[str, ...]
    """Keys that would change, with names in place of numbers: `tenants.acme.weight`."""
    refusals: tuple[Mistake, ...]
    """What cannot change while it is served. With any, nothing may change."""


async def _nothing() -> None:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A part's next state, ready to be put in place."""

    commit: Callable[[], None]
    """Puts it in place. It cannot fail, and waits for nothing: no call meets parts of two configs."""
    undo: Callable[[], Awaitable[None]] = _nothing
    """In place of `commit`: takes back what others were told by `prepare`."""


class Part(Protocol):
    """Something that holds a piece of the config: keys, limits, policies, weights."""

    @property
    def name(self) -> str:
        """For the log."""
        ...

    async def prepare(self, new: ConfigFile) -> Prepared:
        """All that takes time or can fail of going on to a config. Raises AiriError: nothing has changed."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one reload."""

    changes: tuple[str, ...] = ()
    """What has changed."""
    refusals: tuple[str, ...] = ()
    """Why nothing has; empty where it was applied."""

    @property
    def is_applied(self) -> bool:
        """Whether the file now holds."""
        return not self.refusals


def diff(old: ConfigFile, new: ConfigFile) -> Diff:
    """What lies between two configs, and what of it cannot change while it is served."""
    before, after = dict(_leaves(old)), dict(_leaves(new))
    refusals = _fleet_refusals(old, new)
    served = {model.name for model in old.config.models} & {model.name for model in new.config.models}
    changes: list[str] = []
    for key in dict.fromkeys((*before, *after)):
        was, now = before.get(key), after.get(key)
        if was is not None and now is not None and was.value == now.value:
            continue
        if _is_changeable(key):
            changes.append(dotted(key))
        elif key[0] != "models" or key[1] in served:
            line = new.document.line(key[:1] if now is None else now.path)
            refusals.append(Mistake(new.document.name, line, key, "is other than what is served", _RESTART))
    if bool(old.config.tenants) != bool(new.config.tenants):
        what = "has its first entry" if new.config.tenants else "has no entry any more"
        line = new.document.line(("tenants",))
        refusals.append(Mistake(new.document.name, line, ("tenants",), what, _RESTART))
    return Diff(
        changes=tuple(sorted(changes)), refusals=tuple(sorted(refusals, key=lambda refusal: refusal.line))
    )


def _fleet_refusals(old: ConfigFile, new: ConfigFile) -> list[Mistake]:
    """Models that came, went or changed places: the first one is that of requests which name none."""
    before, after = ([model.name for model in file.config.models] for file in (old, new))
    if before == after:
        return []
    name, line = new.document.name, new.document.line(("models",))
    came = [(("models", model), "is new") for model in after if model not in before]
    went = [(("models", model), "is gone") for model in before if model not in after]
    moved = [] if came or went else [(("models",), "are in another order")]
    return [Mistake(name, line, path, what, _RESTART) for path, what in (*came, *went, *moved)]


@dataclass(frozen=True, slots=True)
class _Leaf:
    value: Any
    path: Path
    """In the document."""


def _is_changeable(key: Path) -> bool:
    return key[0] in _CHANGEABLE or (key[0] == "models" and len(key) > 2 and key[2] in _CHANGEABLE_OF_MODELS)


def _leaves(file: ConfigFile) -> Iterator[tuple[Path, _Leaf]]:
    """Every value of a config by its key, in which items that have names are called by them."""
    pending: list[tuple[Path, Path, Any]] = [((), (), file.config)]
    while pending:
        key, path, value = pending.pop()
        if isinstance(value, Mapped):
            pending += [
                ((*key, name), (*path, name), getattr(value, name)) for name in type(value).model_fields
            ]
        elif isinstance(value, dict):
            pending += [((*key, name), (*path, name), item) for name, item in value.items()]
        elif isinstance(value, tuple) and value and isinstance(value[0], Mapped):
            for i, item in enumerate(value):
                pending.append(((*key, getattr(item, "name", i)), (*path, i), item))
        elif value is not None and value != ():
            yield key, _Leaf(value, path)
    for name, text in file.texts.items():
        side = (
            "policies"
            if file.config.policies is not None and name == file.config.policies.file
            else "content"
        )
        yield (side, name), _Leaf(text, (side,))


async def apply(new: ConfigFile, parts: Sequence[Part]) -> None:
    """Takes all parts on to a config, or none: raises what made it impossible, with all undone."""
    prepared: list[tuple[Part, Prepared]] = []
    try:
        for part in parts:
            ready = await part.prepare(new)
            prepared.append((part, ready))
    except BaseException:
        for part, ready in reversed(prepared):
            try:
                await ready.undo()
            except Exception:
                logger.exception("%s could not be set back to what it was before the reload", part.name)
        raise
    for _, ready in prepared:  # without a wait in between: all calls see all of it, or none
        ready.commit()


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A reload that changed nothing."""

    at: float
    """Seconds since 1970."""
    mistakes: tuple[str, ...]


class Reloader:
    """The config that holds now, and the way to the next one.

    *Thread safety*: none; event loop only. Reloads that are asked for meanwhile follow one another.
    *Invariant*: `file` is what every part holds.
    """

    def __init__(
        self, file: ConfigFile, parts: Sequence[Part], *, check: Callable[[ConfigFile], None] | None = None
    ) -> None:
        """`check`: raises AiriError for what is wrong with a file beside its shape; called from a thread."""
        self.file = file
        self.loaded_at = time.time()
        """When that file was read, seconds since 1970."""
        self.last_refusal: Refusal | None = None
        self._parts = tuple(parts)
        self._check = check
        self._lock = asyncio.Lock()

    async def reload(self) -> Outcome:
        """Reads the file again. One line in the log says what became of it."""
        async with self._lock:
            outcome = await self._reload()
        path = self.file.path
        if not outcome.is_applied:
            self.last_refusal = Refusal(at=time.time(), mistakes=outcome.refusals)
            logger.error("%s was not reloaded, nothing has changed: %s", path, " | ".join(outcome.refusals))
        elif outcome.changes:
            logger.info("%s was reloaded: %s", path, ", ".join(outcome.changes))
        else:
            logger.info("%s was reloaded: nothing is other than before", path)
        return outcome

    async def _reload(self) -> Outcome:
        try:
            new = await asyncio.to_thread(self._read)
            found = diff(self.file, new)
            if found.refusals:
                return Outcome(refusals=tuple(map(str, found.refusals)))
            await apply(new, self._parts)
        except ConfigFileError as error:
            return Outcome(refusals=error.lines)
        except AiriError as error:
            return Outcome(refusals=(str(error),))
        except Exception as error:  # a part's own mistake must not end what is served
            logger.exception("a reload failed")
            return Outcome(refusals=(f"a part failed: {type(error).__name__}",))
        self.file, self.loaded_at = new, time.time()
        return Outcome(changes=found.changes)

    def _read(self) -> ConfigFile:
        new = load(self.file.path)
        if self._check is not None:
            self._check(new)
        return new
