"""Which release a request is given: a pure function of what splits the traffic and of who asks."""

from __future__ import annotations

from hashlib import blake2b

import msgspec

__all__ = ["Split", "bucket"]


class Split(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How the traffic of a line is split while a candidate is tried."""

    stable: str
    candidate: str | None = None
    weight: float = 0.0
    """Percent of requests that the candidate gets, in [0, 100]."""
    salt: str = ""
    """Of the rollout, so that it is not always the same who is first."""

    def draw(self, key: str) -> str:
        """The release of whoever has this key. With a growing weight nobody goes back from the candidate."""
        if self.candidate is not None and bucket(self.salt, key) < self.weight / 100:
            return self.candidate
        return self.stable

    @property
    def releases(self) -> tuple[str, ...]:
        """Those that may be drawn or kept."""
        return (self.stable,) if self.candidate is None else (self.stable, self.candidate)


def bucket(salt: str, key: str) -> float:
    """A number in [0, 1), evenly spread over keys and unrelated between salts."""
    digest = blake2b(key.encode(errors="surrogatepass"), key=blake2b(salt.encode()).digest(), digest_size=8)
    return (int.from_bytes(digest.digest(), "big") >> 11) / 2**53
