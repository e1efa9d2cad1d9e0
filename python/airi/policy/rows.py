"""Which rows of a collection a caller may read: a filter that the policies which permit the call carry.

    @rows("{team: {$in: '${principal.groups}'}}")
    permit (principal, action == Action::"retrieve", resource == Collection::"kb");

Every policy that permits a call adds the rows of its filter, one without a filter all rows. So a caller with several
reads what any of them gives, as a call that any of them permits is permitted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from airi.errors import ConfigError
from airi.policy.principal import Principal

__all__ = ["RowFilter", "all_of", "any_of", "row_filters"]

_ONE = "${principal.name}"
_MANY = "${principal.groups}"
_MOST_TEXT = 16_384
_MOST_DEPTH = 16


class RowFilter:
    """A filter with places for what is known of the caller."""

    def __init__(self, text: str) -> None:
        """`text`: JSON or YAML, as searches have it. ConfigError for what is no filter, or has another place."""
        import yaml

        if len(text) > _MOST_TEXT:
            raise ConfigError(f"@rows has {len(text)} characters; accepted: {_MOST_TEXT} at most")
        try:
            self._filter = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError, RecursionError):
            raise ConfigError(
                "@rows is neither JSON nor YAML; accepted: a filter such as {team: red}"
            ) from None
        if not isinstance(self._filter, dict) or not self._filter:
            raise ConfigError("@rows is no filter; accepted: one such as {team: red}")
        _check(self._filter, under="", depth=0)

    def of(self, principal: Principal) -> Mapping[str, Any]:
        """The filter of a caller."""
        filled: Mapping[str, Any] = _fill(self._filter, principal)
        return filled


def row_filters(policies: Mapping[str, Mapping[str, Any]]) -> dict[str, RowFilter]:
    """By id, of those policies, in Cedar's JSON, that have one. ConfigError for one that is none, or of a `forbid`."""
    found = {}
    for given, policy in policies.items():
        text = policy.get("annotations", {}).get("rows")
        if text is None:
            continue
        if policy["effect"] != "permit":
            raise ConfigError("@rows is at a forbid; accepted: at a permit", field="policies")
        found[given] = RowFilter(text)
    return found


def any_of(filters: Sequence[RowFilter], principal: Principal) -> Mapping[str, Any] | None:
    """The rows that a caller reads by any of these; None, all rows, where there are none."""
    found = [each.of(principal) for each in filters]
    return {"$or": found} if len(found) > 1 else next(iter(found), None)


def all_of(*filters: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The rows that pass every filter; None is one that all rows pass."""
    found = [each for each in filters if each]
    return {"$and": found} if len(found) > 1 else next(iter(found), None)


def _check(value: Any, *, under: str, depth: int) -> None:
    if depth > _MOST_DEPTH:
        raise ConfigError(f"@rows is nested too deep; accepted: {_MOST_DEPTH} levels at most")
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str) or "${" in key:
                raise ConfigError(f"@rows has the key {key!r}; accepted: names of fields and operators")
            _check(inner, under=key, depth=depth + 1)
    elif isinstance(value, list):
        for inner in value:
            _check(inner, under="", depth=depth + 1)
    elif value == _MANY and under not in ("$in", "$nin"):
        raise ConfigError(f"@rows has {_MANY}, which are several; accepted: it alone under $in or $nin")
    elif isinstance(value, str) and "${" in value and value not in (_ONE, _MANY):
        raise ConfigError(f"@rows has {value!r}; accepted: '{_ONE}', and '{_MANY}' under $in")


def _fill(value: Any, principal: Principal) -> Any:
    if isinstance(value, dict):
        return {key: _fill(inner, principal) for key, inner in value.items()}
    if isinstance(value, list):
        return [_fill(inner, principal) for inner in value]
    if value == _ONE:
        return principal.tenant
    return list(principal.groups) if value == _MANY else value
