"""The table of sessions: bounded, each tenant's own, and the first answer's model stays."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from airi.gateway.choosing import Chooser, RoutedCall
from airi.gateway.gate import Gate, Government
from airi.gateway.governing import decider_of
from airi.gateway.http import CallRecord
from airi.gateway.sessions import LONGEST_S, SessionTable


def test_a_session_keeps_its_model_until_it_is_told_otherwise() -> None:
    table = SessionTable()
    assert table.find("acme", "auto", "s") is None
    table.keep("acme", "auto", "s", "a", before=None)
    table.keep("acme", "auto", "s", "b", before=None)  # it ran beside the first, and ended later
    assert table.find("acme", "auto", "s") == "a"
    table.keep("acme", "auto", "s", "b", before="a")
    assert table.find("acme", "auto", "s") == "b"


def test_sessions_of_other_tenants_and_routes_are_others() -> None:
    table = SessionTable()
    table.keep("acme", "auto", "s", "a", before=None)
    assert table.find("globex", "auto", "s") is None
    assert table.find("acme", "other", "s") is None


def test_the_one_used_least_lately_makes_way_and_no_other_tenants() -> None:
    table = SessionTable(most=2)
    table.keep("quiet", "auto", "s", "a", before=None)
    for session in ("1", "2"):
        table.keep("busy", "auto", session, "a", before=None)
    assert table.find("busy", "auto", "1") == "a"
    table.keep("busy", "auto", "3", "a", before=None)
    assert [table.find("busy", "auto", session) for session in "123"] == ["a", None, "a"]
    assert table.find("quiet", "auto", "s") == "a"


def test_those_of_who_has_most_make_way_for_others() -> None:
    table = SessionTable(in_all=20)
    table.keep("quiet", "auto", "s", "a", before=None)
    for i in range(100):
        table.keep("busy", "auto", str(i), "a", before=None)
        assert len(table) <= 20
    assert table.find("quiet", "auto", "s") == "a"
    assert table.find("busy", "auto", "99") == "a"
    for i in range(100):
        table.keep(f"tenant {i}", "auto", "s", "a", before=None)
        assert len(table) <= 20
    assert table.find("tenant 99", "auto", "s") == "a"


def test_one_that_nobody_has_used_for_a_day_begins_anew() -> None:
    at = 0.0
    table = SessionTable(clock=lambda: at)
    for session in ("used", "left"):
        table.keep("acme", "auto", session, "a", before=None)
    at += LONGEST_S - 1
    assert table.find("acme", "auto", "used") == "a"
    at += 2
    assert [table.find("acme", "auto", session) for session in ("used", "left")] == ["a", None]
    assert len(table) == 2
    table.keep("acme", "auto", "used", "a", before="a")
    assert len(table) == 1, "what is over is dropped"
    at += 2 * LONGEST_S
    table.keep("acme", "auto", "used", "b", before=None)
    assert table.find("acme", "auto", "used") == "b"


def test_what_no_route_has_any_more_is_dropped() -> None:
    table = SessionTable()
    for route, model in (("auto", "a"), ("auto", "b"), ("gone", "a")):
        table.keep("acme", route, model, model, before=None)
    table.keep("globex", "gone", "s", "a", before=None)
    table.keep_only({"auto": {"a"}})
    assert len(table) == 1
    assert table.find("acme", "auto", "a") == "a"
    table.keep("globex", "auto", "s", "a", before=None)
    assert len(table) == 2


def test_routes_that_were_exchanged_have_their_sessions_looked_through() -> None:
    def routes(*models: str) -> Any:
        return [SimpleNamespace(name="auto", models=set(models), keeps_sessions=True)]

    government = Government(decider_of(None, ()))
    chooser = Chooser(cast(Gate, SimpleNamespace(permits=lambda *_: True)), government, None)
    sent = [(b"x-airi-session", b"s")]
    record = CallRecord(request_id="q", started=0.0, sent=sent)
    call = cast(RoutedCall, SimpleNamespace(record=record, action="chat", context=None))

    def kept() -> str | None:
        (route,) = cast(Any, government.routes)
        return chooser._kept(route, call)

    government.routes = routes("a", "b")
    assert kept() is None
    chooser._sessions.keep("anyone", "auto", "s", "a", before=None)
    assert kept() == "a"
    government.routes = routes("b")
    assert kept() is None
    government.routes = routes("a", "b")
    assert kept() is None, "it begins anew"
