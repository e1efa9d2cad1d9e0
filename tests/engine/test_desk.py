"""Requests that wait for their rules: whose turn comes, and what those are told whose does not."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from airi.engine import desk
from airi.engine.constraints import compiler
from airi.engine.constraints.grammars import grammar_of
from airi.engine.constraints.threads import RuleThreads
from airi.errors import EngineError, RequestError, error_from_code
from airi.structured_output import StructuredOutput
from tests.engine.engine_helpers import GREEDY, add, make_engine, run
from tests.engine.structured_models import make_structured

PROMPT = [5, 6, 7, 8, 9, 10]
FORM = StructuredOutput.json_schema({"type": "array", "items": {"type": "integer"}, "minItems": 9})


@pytest.fixture(scope="module")
def one_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_structured(tmp_path_factory.mktemp("m") / "one", "byte_level")


def test_one_caller_has_one_thread_and_others_go_on() -> None:
    began, release = threading.Event(), threading.Event()

    def slow() -> None:
        began.set()
        release.wait(60)

    with RuleThreads(2) as threads:
        mine: list[Future[Any]] = [
            threads.submit_for(1, slow),
            threads.submit_for(1, slow),
            threads.submit_for(1, int, "7"),
        ]
        assert began.wait(60)
        assert threads.submit_for(2, int, "5").result(60) == 5
        assert threads.submit_for(2, int, "6").result(60) == 6
        assert [each.running() for each in mine] == [True, False, False]
        assert mine[1].cancel()
        broken = threads.submit_for(1, int, "x")
        release.set()
        assert mine[2].result(60) == 7
        with pytest.raises(ValueError, match="x"):
            broken.result(60)


def test_a_cancelled_or_late_request_ends_before_its_grammar_is_there(
    one_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(one_model)
    _stall(monkeypatch, seconds=0.3)
    add(engine, 1, PROMPT, structured=FORM)
    add(engine, 2, PROMPT, structured=FORM, deadline_us=1)
    add(engine, 3, PROMPT, structured=FORM, max_tokens=3)
    add(engine, 4, PROMPT, max_tokens=3, **GREEDY)
    assert sorted(engine.request_ids) == [1, 2, 3, 4]
    engine.cancel(1)
    outputs = run(engine)
    assert [outputs[i].finish_reason for i in (1, 2, 3, 4)] == ["cancelled", "deadline", "length", "length"]


def test_a_request_whose_turn_did_not_come_is_told_so_and_no_mistake_of_its_own(
    one_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(one_model)
    release = _stall(monkeypatch)
    monkeypatch.setattr(desk, "COMPILE_LIMIT_S", 0.3)
    for request_id, tenant in enumerate((1, 1, 2, 3)):  # of two threads, tenants 1 and 2 take one each
        add(engine, request_id, PROMPT, structured=FORM, tenant=tenant)
    outputs = run(engine)
    release()
    for request_id, kind in enumerate((RequestError, EngineError, RequestError, EngineError)):
        told = outputs[request_id].error
        assert told is not None
        error = error_from_code(told.code, told.message, told.field)
        assert isinstance(error, kind), error
        assert "within 0.3 s" in str(error)


def test_others_go_on_while_a_grammar_is_compiled(one_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine(one_model)
    release = _stall(monkeypatch)
    add(engine, 1, PROMPT, structured=FORM, max_tokens=4)
    add(engine, 2, PROMPT, max_tokens=20, **GREEDY)
    ended: set[int] = set()
    while 2 not in ended:
        ended |= {each.request_id for each in engine.step() if each.finish_reason}
    assert ended == {2}
    release()
    assert run(engine)[1].finish_reason == "length"


def _stall(monkeypatch: pytest.MonkeyPatch, *, seconds: float | None = None) -> Callable[[], None]:
    """Has grammars wait until what is returned is called, or so long."""
    go_on = threading.Event()

    def late(form: StructuredOutput) -> str:
        go_on.wait(seconds)
        return grammar_of(form)

    monkeypatch.setattr(compiler, "grammar_of", late)
    return go_on.set
