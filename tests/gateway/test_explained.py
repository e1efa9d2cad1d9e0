"""What a gateway tells of calls whose clients give them ids, and of those that end with errors."""

from __future__ import annotations

from .conftest import Gateway
from .test_explaining import CHAT, explained


def test_requests_with_one_id_are_told_apart_by_the_gateways_own(gateway: Gateway) -> None:
    same = {"x-request-id": "again"}
    answers = [
        gateway.http.post("/v1/chat/completions", json=CHAT | changes, headers=same)
        for changes in ({}, {"model": "nix"}, {"max_tokens": 9999})
    ]
    own = [answer.headers["x-airi-request-id"] for answer in answers]
    assert [answer.headers["x-request-id"] for answer in answers] == ["again"] * 3
    assert len(set(own)) == 3
    found = explained(gateway.http, "again")
    assert (found["own_id"], found["error"]["code"]) == (own[2], "context_length_exceeded")
    assert (found["same_id"], found["num_same_id"]) == ([own[1], own[0]], 2)
    for name, status in zip(own, (200, 404, 400), strict=True):
        found = explained(gateway.http, name)
        assert (found["id"], found["status"]) == ("again", status)
        assert "same_id" not in found
    unnamed = gateway.http.post("/v1/chat/completions", json=CHAT)
    assert "x-airi-request-id" not in unnamed.headers
    assert (
        explained(gateway.http, unnamed.headers["x-request-id"])["own_id"] == unnamed.headers["x-request-id"]
    )
