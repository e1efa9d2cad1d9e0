"""A small client of OpenAI-compatible servers, of the standard library only."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote, urlsplit

from airi.errors import AiriError, ConfigError, ContextLengthError, RequestError

__all__ = ["OpenAIServer", "split_url"]

_TIMEOUT_S = 600.0
_SUFFIX = "/v1"


def split_url(url: str) -> tuple[bool, str, int, str]:
    """(https, host, port, path up to and with /v1) of a base URL; ConfigError where it is none."""
    try:
        parts = urlsplit(url if "//" in url else f"http://{url}")
        host, port = parts.hostname, parts.port
    except ValueError:
        parts, host, port = urlsplit(""), None, None
    if parts.scheme not in ("http", "https") or not host:
        raise ConfigError(f"url is {url!r}; give http://HOST:PORT", field="url")
    secure = parts.scheme == "https"
    path = parts.path.rstrip("/")
    return secure, host, port or (443 if secure else 80), path.removesuffix(_SUFFIX) + _SUFFIX


class OpenAIServer:
    """Asks one question at a time."""

    def __init__(self, url: str, api_key: str | None = None, *, timeout_s: float = _TIMEOUT_S) -> None:
        self.url = url
        secure, host, port, self._base = split_url(url)
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        self._connection = kind(host, port, timeout=timeout_s)
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"

    def first_model(self) -> str:
        """Name of the first model that the server has."""
        with self._talking():
            names = [str(model["id"]) for model in json.loads(self._ask("GET", "/models").read())["data"]]
        if not names:
            self.close()
            raise AiriError(f"{self.url} serves no model")
        return names[0]

    def chat(self, model: str, messages: list[dict[str, str]], options: dict[str, Any]) -> Iterator[str]:
        """The answer's text, piece by piece. Leaving early hangs up, which cancels the request."""
        body = {"model": model, "messages": messages, "stream": True, **options}
        try:
            with self._talking():
                for event in _events(self._ask("POST", "/chat/completions", body)):
                    if "error" in event:
                        raise AiriError(f"{self.url}: {_message(event)}")
                    for choice in event.get("choices", ()):
                        text = choice.get("delta", {}).get("content")
                        if text:
                            yield text
        finally:
            self.close()

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """What an endpoint below /v1 answers; RequestError where it says that the request is at fault."""
        with self._talking():
            return json.loads(self._ask(method, path, body).read())

    def show(self, *places: str) -> bytes:
        """What stands at a path beside /v1, which is AIRI's own."""
        path = "".join(f"/{quote(place, safe='')}" for place in places)
        with self._talking():
            return self._ask("GET", path, base=self._base.removesuffix(_SUFFIX)).read()

    def close(self) -> None:
        """Ends the connection."""
        self._connection.close()

    def _ask(
        self, method: str, path: str, body: dict[str, Any] | None = None, *, base: str | None = None
    ) -> http.client.HTTPResponse:
        data = None if body is None else json.dumps(body).encode()
        self._connection.request(method, (self._base if base is None else base) + path, data, self._headers)
        response = self._connection.getresponse()
        if response.status != 200:
            answer = response.read()
            self.close()
            raise _kind(response.status, answer)(f"{self.url}: status {response.status}: {_message(answer)}")
        return response

    @contextmanager
    def _talking(self) -> Iterator[None]:
        """Turns whatever goes wrong between here and the server into one line."""
        try:
            yield
        except AiriError:
            raise  # says it already; some are ValueErrors, too
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise AiriError(f"{self.url} cannot be reached: {error or type(error).__name__}") from None
        except (ValueError, LookupError, TypeError, AttributeError):
            self.close()
            raise AiriError(f"{self.url} does not answer as an OpenAI server does") from None


def _events(response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    for line in response:
        if line.startswith(b"data:"):
            data = line[5:].strip()
            if data == b"[DONE]":
                return
            yield json.loads(data)
    raise ConnectionError("the answer broke off")


def _kind(status: int, body: bytes) -> type[AiriError]:
    """By an OpenAI error body, what kind of error it tells of."""
    if status != 400:
        return AiriError
    try:
        code = json.loads(body)["error"]["code"]
    except (ValueError, KeyError, TypeError):
        code = None
    return ContextLengthError if code == ContextLengthError.code else RequestError


def _message(body: bytes | dict[str, Any]) -> str:
    """The message in an OpenAI error body, or the start of whatever came instead."""
    try:
        found = json.loads(body) if isinstance(body, bytes) else body
        return str(found["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return repr(body[:200]) if isinstance(body, bytes) else "an error without a message"
