"""Users of a locust run: short answers, whole and streamed."""

from __future__ import annotations

import os
from typing import Any

from locust import HttpUser, constant, task

KEY = os.environ["AIRI_CLIENTS_KEY"]
ASK: dict[str, Any] = {
    "model": "tiny",
    "max_tokens": 6,
    "messages": [{"role": "user", "content": "Hello!"}],
}


class Customer(HttpUser):  # type: ignore[misc]  # locust is not in the environment that checks types
    """Asks again a tenth of a second after each answer."""

    wait_time = constant(0.1)

    @task  # type: ignore[untyped-decorator]
    def ask(self) -> None:
        self._post(ASK, b'"chat.completion"')

    @task  # type: ignore[untyped-decorator]
    def ask_for_a_stream(self) -> None:
        self._post({**ASK, "stream": True}, b"data: [DONE]")

    def _post(self, body: dict[str, Any], holds: bytes) -> None:
        headers = {"authorization": f"Bearer {KEY}"}
        name = "stream" if body.get("stream") else "whole"
        with self.client.post(
            "/v1/chat/completions", json=body, headers=headers, name=name, catch_response=True
        ) as response:
            if holds not in (response.content or b""):
                response.failure(f"{response.status_code} without {holds!r}")
