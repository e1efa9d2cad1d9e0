"""What an engine says about its decisions, and about the blocks that it holds."""

from __future__ import annotations

from pathlib import Path

from airi._core import KvEventKind
from tests.engine.engine_helpers import GREEDY, add, make_engine, run

PROMPT = list(range(40, 80))


def test_an_engine_tells_why_a_request_waited_and_how_it_ended(tiny_llama: Path) -> None:
    engine = make_engine(tiny_llama, max_num_seqs=1)
    add(engine, 1, PROMPT, max_tokens=3, **GREEDY)
    add(engine, 2, PROMPT, max_tokens=2, **GREEDY)
    run(engine)
    said = [line.split("  ", 1)[1] for line in engine.explain(2)]
    assert said[0] == "submitted: a prompt of 40 tokens, at most 2 to generate"
    assert said[1] == "queued: not its turn, request 1 stands first; 2 wait"
    assert said[2] == "queued: every slot is taken, 1 requests run"
    assert said[3].startswith("admitted: 32 tokens hit, ")
    assert said[4:] == ["finished: the limit of 2 tokens"]
    assert engine.explain(3) == []


def test_readers_of_events_find_the_blocks_that_a_snapshot_lists(tiny_llama: Path) -> None:
    engine = make_engine(tiny_llama)
    add(engine, 1, PROMPT, max_tokens=2, **GREEDY)
    run(engine)
    events, cursor, missed = engine.read_kv_events(0)
    stored, after = engine.kv_snapshot(0)
    assert missed == 0
    assert after == cursor == len(events) == 2
    assert events.tolist() == stored.tolist()
    assert set(events["kind"].tolist()) == {KvEventKind.STORED}
    assert engine.read_kv_events(cursor)[1:] == (cursor, 0)
    decisions, cursor, _ = engine.read_decisions(0, 1)
    assert (len(decisions), cursor) == (1, 1)
