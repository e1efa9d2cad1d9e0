"""Which release a call is given, and that all of its inner calls keep it.

A line (a model, or an alias with releases of its own) is served with its stable release and, while one is tried, its
candidate. Who asks for a release by header has it; else who brings one along in W3C baggage; else it is drawn by
`x-airi-session`, or anew for each request. The draw is a pure function of the split and the key, which needs no table
and is the same in every gateway. While a candidate's weight grows, a session moves to it once, and never back; one that
is to stay where it began sends the `x-airi-release` of its first answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import NamedTuple
from urllib.parse import unquote

from airi.gateway.errors import ApiError
from airi.lifecycle.draw import Split
from airi.lifecycle.releases import ReleaseBook
from airi.lifecycle.rollouts import Line, Phase

__all__ = ["Draw", "Drawn", "ServedLine", "baggage_release", "draw_of", "served_line", "session_of"]

_MAX_KEY = 512
_MAX_SHOWN = 100
_SESSION = "session "
_ASKED = ("x-airi-release", "path", "baggage")

IsServed = Callable[[str, str], bool]
"""Whether a version of a model can be asked: model, version."""


class ServedLine(NamedTuple):
    """What requests of one name are served with now."""

    name: str
    split: Split
    releases: Mapping[str, Mapping[str, str]]
    """By id, those that a request may have: by model, the version's id."""
    ending: Mapping[str, Mapping[str, str]] = MappingProxyType({})
    """The same of those that only inner calls of calls that began with them may have."""
    known: frozenset[str] = frozenset()
    """All that it has ever had, by id."""


class Drawn(NamedTuple):
    """The release that a call has of a line."""

    line: str
    release: str
    members: Mapping[str, str]
    """By model, the version's id."""
    by: str = ""
    """What gave the call this one: x-airi-release, path, baggage, session or request; or why it is another."""
    is_preview: bool = False
    """Whether it is a candidate that nobody is given who does not ask for it."""

    @property
    def is_asked(self) -> bool:
        """Whether the call, or the one around it, asked for it: what becomes of such calls is no fair sample."""
        return self.by in _ASKED

    def headers(self, served: str) -> tuple[tuple[bytes, bytes], ...]:
        """What a response says of it; `served`: the version that answers."""
        return ((b"x-airi-release", self.release.encode()), (b"x-airi-model", served.encode()))

    @property
    def context(self) -> dict[str, object]:
        """What policies may ask of it."""
        return {"release": self.release, "release_asked": self.is_asked}


@dataclass(slots=True)
class Draw:
    """What decides the releases of one call, and those that it has been given."""

    key: str
    """A session, or the request."""
    asked: str | None = None
    """The release that it is to have, or be refused."""
    asked_by: str = "x-airi-release"
    """Where it asks."""
    carried: str | None = None
    """The release that an outer call has, which need not be of this line."""
    given: list[Drawn] = field(default_factory=list)

    def copy(self) -> Draw:
        """The same, which goes on by itself."""
        return replace(self, given=list(self.given))

    def release_of(self, model: str) -> Drawn | None:
        """What the call was given that has a version of a model."""
        return next((drawn for drawn in self.given if model in drawn.members), None)

    def version(self, model: str) -> str | None:
        """The version of a model in what the call was given already."""
        drawn = self.release_of(model)
        return None if drawn is None else drawn.members[model]

    def release_for(self, model: str) -> str | None:
        """The release that a call to a model elsewhere is to have, as a part of this call; None: any."""
        drawn = self.release_of(model) or next(iter(self.given), None)
        return (self.asked or self.carried) if drawn is None else drawn.release

    def take(self, line: ServedLine, is_served: IsServed) -> Drawn:
        """The line's release for this call. Raises a 409 for one that is asked for and is not served."""

        carried = {**line.ending, **line.releases}

        def can_have(release: str | None, among: Mapping[str, Mapping[str, str]] = line.releases) -> bool:
            members = among.get(release or "")
            return members is not None and all(is_served(*member) for member in members.items())

        split = line.split
        release, by = split.draw(self.key), "session" if self.key.startswith(_SESSION) else "request"
        if can_have(self.asked):
            release, by = self.asked or release, self.asked_by
        elif self.asked is not None and not self.given:  # inner calls may be of other lines
            raise _not_served("x-airi-release", self.asked, line.name, filter(can_have, line.releases))
        elif can_have(self.carried, carried):
            release, by = self.carried or release, "baggage"
        elif self.carried in line.known:  # another one would be mixed with what the outer call has seen
            raise _not_served("baggage", self.carried or "", line.name, filter(can_have, line.releases))
        elif not can_have(release):
            by = f"{release}, drawn by {by}, is not served"
            before = (other for other in line.releases if other not in split.releases and can_have(other))
            release = split.stable if can_have(split.stable) else next(before, split.stable)
        is_preview = release == split.candidate and split.weight <= 0
        drawn = Drawn(line.name, release, carried[release], by, is_preview)
        self.given.append(drawn)
        return drawn


def draw_of(headers: Iterable[tuple[bytes, bytes]], key: str) -> Draw:
    """What a request's headers say of its releases; without a session `key` decides.

    Raises a 400 for a session's name that is empty or too long.
    """
    draw = Draw(key)
    for name, value in headers:
        if name == b"x-airi-session":
            draw.key = f"{_SESSION}{_session(value.decode('latin-1'))}"
        elif name == b"x-airi-release":
            draw.asked = value.decode("latin-1").strip() or None
        elif name == b"baggage":
            draw.carried = baggage_release(value.decode("latin-1")) or draw.carried
    return draw


def session_of(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """What a request calls its session; None where it names none. Raises as `draw_of`."""
    named = [value for name, value in headers if name == b"x-airi-session"]
    return _session(named[-1].decode("latin-1")) if named else None


def _session(value: str) -> str:
    if not 0 < len(value) <= _MAX_KEY:
        raise ApiError(
            400,
            f"x-airi-session: has {len(value)} characters; accepted: 1 to {_MAX_KEY}",
            param="x-airi-session",
            code="invalid_session",
        )
    return value


def baggage_release(baggage: str) -> str | None:
    """The value of `airi-release` in a W3C baggage header; None without one."""
    for member in baggage.split(","):
        key, _, value = member.partition(";")[0].partition("=")
        if key.strip() == "airi-release":
            return unquote(value.strip())
    return None


def served_line(line: Line, book: ReleaseBook) -> ServedLine:
    """What requests of a line may have, as its document says. Raises ReleaseError."""
    releases = list(line.split.releases)
    rollout = line.rollout
    if rollout is not None and rollout.phase is Phase.COMPLETED:
        releases.append(rollout.stable)  # while it is there: calls that were told of it may go on
    ending = []
    # One that never had traffic was had by who may preview alone, and is nobody else's now.
    if rollout is not None and rollout.phase is Phase.ABORTED and rollout.stage:
        ending.append(rollout.candidate)  # while it is there: what began with it ends with it
    given, left = (
        {release: book.find(line.name, release).members for release in each} for each in (releases, ending)
    )
    return ServedLine(line.name, line.split, given, left, frozenset(one.id for one in book.of(line.name)))


def _not_served(where: str, asked: str, line: str, served: Iterable[str]) -> ApiError:
    known = ", ".join(served) or "none"
    return ApiError(
        409,
        f"{where}: {asked[:_MAX_SHOWN]!r} is no release that {line} is served with now; there are: {known}",
        param=where,
        code="release_not_served",
    )
