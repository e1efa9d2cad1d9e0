"""The table of sessions: bounded, each tenant's own, and the first answer's model stays."""

from __future__ import annotations

from airi.gateway.sessions import SessionTable


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
