"""Documents of the state as records of their kind: what cannot be read stops nothing else from being read."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from airi.state import DocumentRecord

__all__ = ["read_each"]

log = logging.getLogger("airi.lifecycle")


def read_each(
    records: Iterable[DocumentRecord], keep: Callable[[DocumentRecord], object], unread: dict[str, str]
) -> None:
    """Keeps each record. `unread` has the names of those that cannot be read, with why.

    Another version of AIRI may have written what this one does not know.
    """
    for record in records:
        try:
            keep(record)
        except msgspec.MsgspecError as error:
            unread[record.name] = str(error)
            log.error(
                "%s %s of the state cannot be read, what is known of it stays: %s",
                record.kind,
                record.name,
                error,
            )
        else:
            unread.pop(record.name, None)
