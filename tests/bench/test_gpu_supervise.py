"""Workers of the GPU benches: what crashes or hangs costs its case only, and time is kept."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benches.gpu.budget import Budget
from benches.gpu.supervise import NoDevice, Outcome, Reply, Suite, Worker

_SCRIPT = """
import json, os, sys, time
def say(what):
    sys.stdout.write(json.dumps(what) + "\\n"); sys.stdout.flush()
say(HELLO)
for line in sys.stdin:
    name = line.strip()
    if name == "crash":
        print("something broke", file=sys.stderr); sys.stderr.flush(); os._exit(3)
    if name == "hang":
        time.sleep(60)
    if name == "fatal":
        say({"case": name, "failed": "the device is gone", "fatal": True}); break
    say({"case": name, "rows": [{"pid": os.getpid()}]})
"""


def a_suite(
    tmp_path: Path,
    names: list[str],
    *,
    seconds: float = 30.0,
    estimate: float = 0.0,
    workers: int = 1,
    only: tuple[str, ...] = (),
    hello: object = None,
    replies: list[Reply] | None = None,
    patience_s: float = 60.0,
) -> Suite:
    hello = hello or {"hardware": {"gpu": "none"}, "cases": [[name, estimate] for name in names]}
    script = tmp_path / "worker.py"
    script.write_text(_SCRIPT.replace("HELLO", repr(hello)))
    return Suite(
        lambda: Worker([sys.executable, str(script)]),
        Budget(seconds),
        workers=workers,
        only=only,
        on_reply=lambda reply, _done, _total: (replies if replies is not None else []).append(reply),
        patience_s=patience_s,
    )


def run(suite: Suite) -> Outcome:
    outcome = Outcome()
    suite.run(outcome)
    return outcome


def test_all_cases_run_in_order_in_one_process(tmp_path: Path) -> None:
    replies: list[Reply] = []
    outcome = run(a_suite(tmp_path, ["a", "b", "c"], replies=replies))
    assert [r["case"] for r in outcome.replies] == ["a", "b", "c"]
    assert outcome.replies == replies
    assert len({r["rows"][0]["pid"] for r in outcome.replies}) == 1
    assert outcome.hardware == {"gpu": "none"}


def test_a_case_that_kills_its_process_is_named_and_the_others_still_run(tmp_path: Path) -> None:
    outcome = run(a_suite(tmp_path, ["a", "crash", "b"]))
    assert outcome.failures == [("crash", "the process ended with 3: something broke")]
    assert [r["case"] for r in outcome.replies if "rows" in r] == ["a", "b"]


def test_a_case_that_breaks_the_device_is_followed_by_a_new_process(tmp_path: Path) -> None:
    outcome = run(a_suite(tmp_path, ["a", "fatal", "b"]))
    assert outcome.failures == [("fatal", "the device is gone")]
    pids = [r["rows"][0]["pid"] for r in outcome.replies if "rows" in r]
    assert len(set(pids)) == 2


def test_a_case_that_hangs_ends_with_the_time(tmp_path: Path) -> None:
    outcome = run(a_suite(tmp_path, ["hang", "b"], seconds=2.0, estimate=0.5))
    [(name, why)] = outcome.failures
    assert name == "hang"
    assert why.startswith("no answer within")
    assert outcome.skipped == ["b"]


def test_a_case_that_hangs_leaves_the_others_their_time(tmp_path: Path) -> None:
    outcome = run(a_suite(tmp_path, ["a", "hang", "b"], patience_s=1.0))
    assert outcome.failures == [("hang", "no answer within 1 s")]
    assert [r["case"] for r in outcome.replies if "rows" in r] == ["a", "b"]
    assert outcome.skipped == []


def test_a_case_whose_process_does_not_start_is_named(tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(_SCRIPT.replace("HELLO", repr({"hardware": {}, "cases": [["crash", 0], ["b", 0]]})))
    starts = iter([str(script), "/nowhere"])
    outcome = run(Suite(lambda: Worker([sys.executable, next(starts)]), Budget(30)))
    assert [name for name, _ in outcome.failures] == ["crash", "b"]
    assert "a worker did not start" in outcome.failures[1][1]


def test_what_no_longer_fits_is_left_out_and_named(tmp_path: Path) -> None:
    outcome = run(a_suite(tmp_path, ["a", "b"], seconds=20.0, estimate=1000.0))
    assert outcome.skipped == ["a", "b"]
    assert outcome.replies == []


def test_cases_are_shared_out_to_several_processes(tmp_path: Path) -> None:
    outcome = run(a_suite(tmp_path, [str(i) for i in range(8)], workers=3))
    assert sorted(r["case"] for r in outcome.replies) == [str(i) for i in range(8)]


def test_only_takes_cases_by_a_part_of_their_name(tmp_path: Path) -> None:
    outcome = run(a_suite(tmp_path, ["decode a", "prefill", "decode b"], only=("decode",)))
    assert [r["case"] for r in outcome.replies] == ["decode a", "decode b"]


def test_what_others_are_held_against_runs_whatever_is_chosen(tmp_path: Path) -> None:
    outcome = run(a_suite(tmp_path, ["ceilings", "decode", "prefill"], only=("prefill",)))
    assert [r["case"] for r in outcome.replies] == ["ceilings", "prefill"]


def test_an_only_that_matches_nothing_says_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--only matches none of decode, prefill"):
        run(a_suite(tmp_path, ["decode", "prefill"], only=("x",)))


def test_a_worker_without_a_device_ends_the_suite(tmp_path: Path) -> None:
    with pytest.raises(NoDevice, match="no GPU"):
        run(a_suite(tmp_path, [], hello={"no_device": "no GPU here"}))


def test_a_worker_that_does_not_start_says_why(tmp_path: Path) -> None:
    suite = Suite(lambda: Worker([sys.executable, "-c", "raise SystemExit('no torch')"]), Budget(30))
    with pytest.raises(RuntimeError, match="did not start: the process ended with 1: no torch"):
        run(suite)
