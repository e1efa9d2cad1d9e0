"""What another server is told beside a call: what it is part of, where that is trusted; whose cache it may use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import httpx
import pytest

from airi.gateway.http import CallRecord
from airi.gateway.models import ServedModel
from airi.gateway.options import AppOptions
from airi.gateway.releases import Draw, ServedLine
from airi.gateway.upstreams.context import context_headers
from airi.lifecycle.draw import Split

from .test_rollouts_served import CONFIG, Served, engine, gateway
from .upstream import CHAT, GOOD, content, far, front, hostile

SENT = {
    "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "tracestate": "vendor=1",
    "x-airi-session": "thread-7",
    "baggage": "user=eve;p=1,airi-release=r1, order=9",
    "cookie": "secret=1",
    "x-request-id": "mine",
}
ALONG = ("traceparent", "tracestate", "x-airi-session", "baggage")


def sent(head: str) -> dict[str, str]:
    """The headers that came, by their names."""
    lines = head.split("\r\n")[1:]
    return {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}


@pytest.mark.parametrize("trusted", [False, True])
def test_headers_of_callers_go_along_to_who_is_trusted_alone(trusted: bool) -> None:  # noqa: FBT001
    with hostile(GOOD) as server, front(far(server.url, trusted=trusted)) as http:
        assert content(http.post("/v1/chat/completions", json=CHAT, headers=SENT)) == "Hello there"
        (asked,) = server.asked
    came = sent(asked.head)
    assert {"cookie", "x-request-id"}.isdisjoint(came)
    if not trusted:
        assert set(ALONG).isdisjoint(came)
        return
    assert [came[name] for name in ALONG[:3]] == [SENT[name] for name in ALONG[:3]]
    assert came["baggage"] == "airi-release=r1,user=eve;p=1, order=9"


def context_of(draw: Draw | None, *sent: tuple[bytes, bytes]) -> dict[str, str]:
    """What goes along with a call to `judge`."""
    trusted = SimpleNamespace(options=SimpleNamespace(trusted=True))
    model = cast(ServedModel, SimpleNamespace(name="judge", upstream=trusted))
    return dict(context_headers(CallRecord(request_id="q", started=0.0, sent=sent, draw=draw), model))


def test_what_goes_along_is_the_release_that_the_call_was_given() -> None:
    line = ServedLine("general", Split(stable="r 1"), {"r 1": {"general": "g1"}})
    draw = Draw("q", carried="r9")
    draw.take(line, lambda *_: True)
    assert context_of(draw, (b"baggage", b"airi-release=r9,a=1")) == {"baggage": "airi-release=r%201,a=1"}
    assert context_of(Draw("q", asked="r2", carried="r9")) == {"baggage": "airi-release=r2"}
    assert context_of(None, (b"baggage", b"airi-release=r9")) == {"baggage": "airi-release=r9"}
    assert context_of(None) == {}


def test_headers_that_cannot_be_sent_on_as_they_came_are_left_out() -> None:
    assert context_of(
        None, (b"tracestate", b"a=\xff"), (b"baggage", b"a=\xc3\xa4"), (b"baggage", b"b=1")
    ) == {"baggage": "a=ä,b=1"}
    assert context_of(None, (b"traceparent", b"00-\x1b-01")) == {}


@pytest.fixture
def behind(tmp_path: Path) -> Iterator[tuple[Served, Counter[str]]]:
    """An AIRI whose model `general` is in a rollout at 50 %, and what its engine was asked."""
    path = tmp_path / "airi.yaml"
    path.write_text(CONFIG.replace("FOLDER", str(tmp_path)))
    with engine(tmp_path) as stub, gateway(path, stub) as (served, _):
        served.say("start")
        served.waits("somebody to promote")
        yield served, stub.asked


def asked(http: httpx.Client, counts: Counter[str], **headers: str) -> set[str]:
    """The versions that eight calls were answered by."""
    before = Counter(counts)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    for _ in range(8):
        assert content(http.post("/v1/chat/completions", json=CHAT, headers=named))
    return set(counts - before)


def test_calls_keep_their_release_and_session_at_an_airi_behind_this_one(
    behind: tuple[Served, Counter[str]],
) -> None:
    served, counts = behind
    url = str(served.http.base_url.join("/v1"))
    with front(far(url, model="general", trusted=True)) as http:
        for release in ("g1", "g2"):
            assert asked(http, counts, baggage=f"airi-release={release}") == {f"general@{release}"}
            assert asked(http, counts, x_airi_release=release) == {f"general@{release}"}
        for session in ("a", "b", "c", "d"):
            kept = served.release(session=session)
            assert asked(http, counts, x_airi_session=session) == {f"general@{kept}"}
    with front(far(url, model="general")) as http:
        found = set().union(*(asked(http, counts, baggage="airi-release=g2") for _ in range(5)))
    assert found == {"general@g1", "general@g2"}


def salt_of(key: str | None, tenant: str, salt: str) -> str | None:
    """What another server is sent of a tenant's salt."""
    app = AppOptions(api_keys=("key-of-acme", "key-of-globex"))
    with hostile(GOOD) as server, front(far(server.url, cache_salt_key=key), app=app) as http:
        headers = {"authorization": f"Bearer key-of-{tenant}"}
        assert content(http.post("/v1/chat/completions", json=CHAT | {"cache_salt": salt}, headers=headers))
        found: str | None = server.asked[0].body.get("cache_salt")
        return found


def test_salts_of_two_tenants_differ_and_stay_the_same_in_every_gateway() -> None:
    sent = salt_of("secret", "acme", "mine")
    assert sent is not None
    assert "mine" not in sent
    assert len(sent) == 64
    assert sent == salt_of("secret", "acme", "mine")
    others = [
        salt_of("secret", "globex", "mine"),
        salt_of("other", "acme", "mine"),
        salt_of("secret", "acme", "m"),
    ]
    assert len({sent, *others}) == 4


def test_no_salt_goes_to_a_server_that_may_not_know_it() -> None:
    assert salt_of(None, "acme", "mine") is None
