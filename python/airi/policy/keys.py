"""API keys: made once and shown once, kept as digests, ended by time, by hand or by a successor.

A key reads `PREFIX-ID-SECRET`: the tenant's prefix, which secret scanners know it by; 12 characters that name it in
lists and logs; 43 that nobody else knows, 256 bits of chance. Only a digest of the whole text is kept: it has too
much chance in it to be guessed, so that a slow hash, salted or not, would cost every request and give nothing.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import string
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from airi._units import moment, parse_duration
from airi.errors import ConfigError
from airi.policy.tenants import DEFAULT_PREFIX, check_name, check_prefix
from airi.state import KeyRecord, Store

__all__ = [
    "NewKey",
    "UnknownKeyError",
    "create_key",
    "described",
    "digest_of",
    "key_hider",
    "key_id_of",
    "list_keys",
    "public_id",
    "revoke_key",
    "rotate_key",
    "seconds_of",
]

_ID_LENGTH = 12
_SECRET_LENGTH = 43
_ID_ALPHABET = string.ascii_lowercase + string.digits
_SECRET_ALPHABET = string.ascii_letters + string.digits
"""62 characters, 43 times: 256 bits. No dash, so that the last two dashes of a key part it."""
_ID = re.compile(rf"[a-z0-9]{{{_ID_LENGTH}}}")
_KEY = re.compile(rf"[A-Za-z0-9_-]{{1,32}}-([a-z0-9]{{{_ID_LENGTH}}})-[A-Za-z0-9]{{{_SECRET_LENGTH}}}")
_SHORTEST_KEY = _ID_LENGTH + _SECRET_LENGTH + 3
_LONG = 8
"""Characters of a text of the user's choice that is no part of a word."""
_LONGEST_S = 100 * 366 * 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class NewKey:
    """A key that was just made: the only time that its text is known."""

    record: KeyRecord
    text: str = field(repr=False)


class UnknownKeyError(ConfigError):
    """No key has this id."""


def digest_of(text: bytes) -> bytes:
    """What is kept of a key."""
    return hashlib.sha256(text).digest()


def key_id_of(text: str) -> str:
    """The id that a user names a key by, which may be the key itself. Raises ConfigError, which repeats neither."""
    text = text.strip()
    key_id = public_id(text)
    if key_id is not None:
        return key_id
    if not _ID.fullmatch(text):
        raise ConfigError(
            f"key is named by what is no id: give the {_ID_LENGTH} small letters and digits that "
            "`airi keys list` shows",
            field="key",
        )
    return text


def public_id(text: str) -> str | None:
    """The id in what has the form of a key, known or not; None for any other text."""
    whole = _KEY.fullmatch(text)
    return None if whole is None else whole[1]


def key_hider(given: Mapping[str, str]) -> Callable[[str], str]:
    """What makes of a text one in which no whole key can be read: the id is left, of those `given` what they map to.

    Given ones may be any text. Short ones are only hidden where they stand alone, as they may be parts of words.
    """
    least = min([_SHORTEST_KEY, *map(len, given)])
    parts = [
        re.escape(key) if len(key) >= _LONG else rf"(?<![A-Za-z0-9]){re.escape(key)}(?![A-Za-z0-9])"
        for key in sorted(given, key=len, reverse=True)
    ]
    pattern = re.compile("|".join([_KEY.pattern, *parts]))

    def hide(text: str) -> str:
        return text if len(text) < least else pattern.sub(lambda key: key[1] or given[key[0]], text)

    return hide


def described(record: KeyRecord, now: float) -> dict[str, Any]:
    """All of a key that is no secret, for people and programs."""
    times = {
        name: None if at is None else moment(at)
        for name in ("created", "expires", "revoked", "retires")
        for at in [getattr(record, name)]
    }
    return {
        "id": record.id,
        "tenant": record.tenant,
        "prefix": record.prefix,
        "state": record.state(now),
        **times,
        "replaced_by": record.replaced_by,
    }


def seconds_of(field: str, text: str) -> int:
    """A duration such as 90d, or 0s, in seconds. Raises ConfigError."""
    seconds = parse_duration(text)
    if seconds is None:
        raise ConfigError(
            f"{field} is {text[:100]!r}; give a whole number and a unit, one of s, m, h, d, w, such as 90d",
            field=field,
        )
    return seconds


async def create_key(
    store: Store,
    tenant: str,
    *,
    prefix: str = DEFAULT_PREFIX,
    lifetime_s: int | None = None,
    now: float | None = None,
) -> NewKey:
    """A new key of a tenant. Raises ConfigError for names and lifetimes that cannot be, StateError."""
    check_name(tenant)
    check_prefix(prefix)
    created, expires = _times(lifetime_s, now)
    key_id, text = _make(prefix)
    record = await store.add_key(
        id=key_id,
        tenant=tenant,
        prefix=prefix,
        digest=digest_of(text.encode()).hex(),
        created=created,
        expires=expires,
    )
    return NewKey(record=record, text=text)


async def rotate_key(
    store: Store, key_id: str, *, overlap_s: int, lifetime_s: int | None = None, now: float | None = None
) -> NewKey:
    """A successor of a key, which itself goes on for `overlap_s` seconds.

    Without a lifetime of its own the successor gets as long a one as the key had. Raises ConfigError for a key that
    is not known or has ended already, StateError.
    """
    if not 0 <= overlap_s <= _LONGEST_S:
        raise ConfigError(f"overlap is {overlap_s} s; it must be 0 s or more", field="overlap")
    old = await _known(store, key_id)
    if lifetime_s is None and old.expires is not None:
        lifetime_s = old.expires - old.created
    created, expires = _times(lifetime_s, now)
    new_id, text = _make(old.prefix)
    record = await store.replace_key(
        old,
        id=new_id,
        digest=digest_of(text.encode()).hex(),
        created=created,
        expires=expires,
        retires=created + overlap_s,
    )
    if record is None:
        state = (await _known(store, key_id)).state(created)
        raise ConfigError(f"key {key_id} is {state}; only an active key can be rotated", field="key")
    return NewKey(record=record, text=text)


async def revoke_key(store: Store, key_id: str, *, now: float | None = None) -> KeyRecord:
    """Ends a key for good. Raises ConfigError for one that is not known, StateError."""
    record = await store.revoke_key(key_id, at=int(time.time() if now is None else now))
    if record is None:
        raise _unknown(key_id)
    return record


async def list_keys(store: Store, *, tenant: str | None = None) -> list[KeyRecord]:
    """All keys, or those of one tenant, the oldest first."""
    keys, _ = await store.keys()
    return [key for key in keys if tenant is None or key.tenant == tenant]


async def _known(store: Store, key_id: str) -> KeyRecord:
    record = await store.key(key_id)
    if record is None:
        raise _unknown(key_id)
    return record


def _unknown(key_id: str) -> UnknownKeyError:
    return UnknownKeyError(f"key {key_id} is not known; `airi keys list` shows all", field="key")


def _times(lifetime_s: int | None, now: float | None) -> tuple[int, int | None]:
    created = int(time.time() if now is None else now)
    if lifetime_s is None:
        return created, None
    if not 0 < lifetime_s <= _LONGEST_S:
        raise ConfigError(
            f"expires is {lifetime_s} s from now; it must be more than 0 s and less than 100 years",
            field="expires",
        )
    return created, created + lifetime_s


def _make(prefix: str) -> tuple[str, str]:
    key_id = "".join(secrets.choice(_ID_ALPHABET) for _ in range(_ID_LENGTH))
    secret = "".join(secrets.choice(_SECRET_ALPHABET) for _ in range(_SECRET_LENGTH))
    return key_id, f"{prefix}-{key_id}-{secret}"
