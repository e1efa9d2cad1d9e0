"""A small client of OpenAI-compatible servers, of the standard library only."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from airi.errors import AiriError, ConfigError

__all__ = ["OpenAIServer", "split_url"]

_TIMEOUT_S = 600.0


def split_url(url: str) -> tuple[bool, str, int, str]:
    """(https, host, port, path up to and with /v1) of a base URL; ConfigError where it is none."""
    parts = urlsplit(url if "//" in url else f"http://{url}")
    try:
        port = parts.port
    except ValueError:
        port = -1
    if parts.scheme not in ("http", "https") or not parts.hostname or port == -1:
        raise ConfigError(f"url is {url!r}; give http://HOST:PORT", field="url")
    secure = parts.scheme == "https"
    path = parts.path.rstrip("/")
    return (
        secure,
        parts.hostname,
        port or (443 if secure else 80),
        path if path.endswith("/v1") else f"{path}/v1",
    )


class OpenAIServer:
    """Asks one question at a time."""

    def __init__(self, url: str, api_key: str | None = None) -> None:
        self.url = url
        secure, host, port, self._base = split_url(url)
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        self._connection = kind(host, port, timeout=_TIMEOUT_S)
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"

    def first_model(self) -> str:
        """Name of the first model that the server has."""
        models = json.loads(self._ask("GET", "/models").read()).get("data") or []
        if not models:
            self.close()
            raise AiriError(f"{self.url} serves no model")
        return str(models[0]["id"])

    def chat(self, model: str, messages: list[dict[str, str]], options: dict[str, Any]) -> Iterator[str]:
        """The answer's text, piece by piece. Leaving early hangs up, which cancels the request."""
        body = {"model": model, "messages": messages, "stream": True, **options}
        response = self._ask("POST", "/chat/completions", body)
        try:
            for event in _events(response):
                if "error" in event:
                    raise AiriError(f"{self.url}: {_message(event)}")
                for choice in event.get("choices", ()):
                    text = choice.get("delta", {}).get("content")
                    if text:
                        yield text
        finally:
            self._connection.close()

    def close(self) -> None:
        """Ends the connection."""
        self._connection.close()

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> http.client.HTTPResponse:
        data = None if body is None else json.dumps(body).encode()
        try:
            self._connection.request(method, self._base + path, data, self._headers)
            response = self._connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise AiriError(f"{self.url} cannot be reached: {error}") from None
        if response.status != 200:
            message = _message(response.read())
            self.close()
            raise AiriError(f"{self.url}: status {response.status}: {message}")
        return response


def _events(response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    for line in response:
        if line.startswith(b"data:"):
            data = line[5:].strip()
            if data == b"[DONE]":
                return
            yield json.loads(data)


def _message(body: bytes | dict[str, Any]) -> str:
    """The message in an OpenAI error body, or the start of whatever came instead."""
    try:
        found = json.loads(body) if isinstance(body, bytes) else body
        return str(found["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return repr(body[:200]) if isinstance(body, bytes) else "an error without a message"
