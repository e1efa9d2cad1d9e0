"""One small document over HTTP, bounded in size and time.

With the standard library: keys are fetched a few times an hour, beside requests, which is no reason for every
installation to carry an HTTP client.
"""

from __future__ import annotations

import http.client
import time
import urllib.error
import urllib.request
from urllib.parse import urlsplit

from airi.errors import AiriError
from airi.policy.oidc import is_fetchable

__all__ = ["FETCH_S", "FetchError", "fetch"]

FETCH_S = 5.0
MOST_BYTES = 256 * 1024
_CHUNK = 16 * 1024


class FetchError(AiriError):
    """A document could not be fetched; one line, without what came."""

    code = "fetch_failed"


def fetch(url: str, *, timeout_s: float = FETCH_S, limit: int = MOST_BYTES) -> bytes:
    """The body at `url`. Raises FetchError, also for a redirect: keys come from where the configuration says."""
    if not is_fetchable(url):
        raise FetchError(f"{url[:200]!r} is no URL that keys may come from")
    give_up = time.monotonic() + timeout_s
    request = urllib.request.Request(url, headers={"accept": "application/json", "user-agent": "airi"})
    try:
        with _opener(url).open(request, timeout=timeout_s) as response:
            return _body(response, url, give_up, limit)
    except urllib.error.HTTPError as error:
        error.close()
        raise FetchError(f"{url} answers with status {error.code}") from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        text = str(getattr(reason, "strerror", None) or type(reason).__name__)
        raise FetchError(f"{url} cannot be fetched: {text}") from None


def _opener(url: str) -> urllib.request.OpenerDirector:
    """Speaks HTTP and HTTPS and nothing else; a redirect is a status like another."""
    # http is this machine; None: as the environment says.
    proxies: dict[str, str] | None = {} if urlsplit(url).scheme == "http" else None
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(proxies),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPDefaultErrorHandler(),
    ):
        opener.add_handler(handler)
    return opener


def _body(response: http.client.HTTPResponse, url: str, give_up: float, limit: int) -> bytes:
    """Read as it comes: a server that sends a byte now and then does not hold the thread for longer."""
    parts: list[bytes] = []
    size = 0
    while chunk := response.read1(_CHUNK):
        parts.append(chunk)
        size += len(chunk)
        if size > limit:
            raise FetchError(f"{url} sends more than {limit} bytes")
        if time.monotonic() > give_up:
            raise FetchError(f"{url} cannot be fetched: TimeoutError")
    return b"".join(parts)
