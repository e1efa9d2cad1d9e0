"""What comes and goes with a rollout: under streams that run, and in engines of gateways that do not lead."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from .conftest import events, serve_process, wait_until
from .test_rollouts_served import CHAT, CONFIG, Served, engine, gateway

LINGER_MS = 300
STEP_US = 20_000
TOKENS = 200
FORBIDDEN = re.compile("[eE]")
OWN_ENGINES = """\
content: {forbid: [{name: letters, regexes: ['[eE]']}]}
engine: {device: cpu, threads: 1, kv_memory: 64MiB, max_num_seqs: 4, max_model_len: 256}
"""


def config(folder: Path, more: str = "") -> Path:
    path = folder / "airi.yaml"
    path.write_text(CONFIG.replace("FOLDER", str(folder)) + more)
    return path


def stream(served: Served, release: str, begun: Callable[[], Any]) -> list[dict[str, Any]]:
    """The events of a stream that a release gives."""
    body = CHAT | {"model": "general", "max_tokens": TOKENS, "stream": True}
    headers = {"x-airi-release": release}
    with served.http.stream("POST", "/v1/chat/completions", json=body, headers=headers) as response:
        assert response.status_code == 200
        pieces = response.iter_text()
        text = next(pieces)
        begun()
        return events(text + "".join(pieces))


@pytest.mark.parametrize("how", ["abort", "promote"])
def test_streams_of_what_is_let_go_end_as_they_would(tmp_path: Path, how: str) -> None:
    with (
        engine(tmp_path, step_us=STEP_US) as stub,
        gateway(config(tmp_path), stub, linger_ms=LINGER_MS) as (served, _),
        ThreadPoolExecutor(6) as pool,
    ):
        served.say("start")
        served.waits("somebody to promote")
        begun: list[str] = []
        given = ["g2", "g2", "g2", "g1", "g1"]
        streams = [pool.submit(stream, served, name, partial(begun.append, name)) for name in given]
        wait_until(lambda: len(begun) == len(given), "a stream does not begin")
        stays, goes = ("g1", "g2") if how == "abort" else ("g2", "g1")
        said = served.say("abort") if how == "abort" else served.say("promote", full=True)
        assert said.status_code == 200
        wait_until(lambda: served.ask(release=goes).status_code == 409, "who asks is given what goes")
        wait_until(lambda: served.releases(5) == {stays: 5}, "what goes has traffic still")
        for found in [each.result(60) for each in streams]:
            assert not [each for each in found if "error" in each]
            assert found[-1]["choices"][0]["finish_reason"] == "length"
        wait_until(lambda: served.states[goes] == "registered", "it is not let go")
        assert served.releases(5) == {stays: 5}
        assert stub.num_running == 0


def test_what_lingers_goes_and_comes_again(tmp_path: Path) -> None:
    with (
        engine(tmp_path) as stub,
        gateway(config(tmp_path), stub, linger_ms=LINGER_MS) as (served, _),
    ):
        for stable, candidate in (("g1", "g2"), ("g2", "g1"), ("g1", "g2")):
            served.say("start", candidate=candidate)
            served.waits("somebody to promote")
            served.say("promote", full=True)
            wait_until(lambda gone=stable: served.states[gone] == "registered", "stable before does not go")  # type: ignore[misc]
            refused = served.ask(release=stable)
            assert refused.status_code == 409
            assert refused.json()["error"]["message"].endswith(f"there are: {candidate}")
            assert served.releases(5) == {candidate: 5}


def test_engines_of_gateways_that_do_not_lead_hold_what_the_leader_s_does(tmp_path: Path) -> None:
    path = config(tmp_path, OWN_ENGINES)

    def complete(served: Served, release: str) -> str:
        body = {"model": "general", "prompt": "The quick brown fox", "max_tokens": 16, "temperature": 4}
        answer = served.http.post("/v1/completions", json=body, headers={"x-airi-release": release})
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-airi-model"] == f"general@{release}"
        return str(answer.json()["choices"][0]["text"])

    def has(served: Served, *releases: str) -> None:
        wait_until(
            lambda: (
                {r for r in ("g1", "g2", "g3") if served.ask(release=r).status_code == 200} == set(releases)
            ),
            f"it has not {releases}",
        )

    with ExitStack() as stack:
        gateways = []
        for _ in range(2):
            process, url, said = stack.enter_context(serve_process(str(path), linger_ms=LINGER_MS))
            served = Served(url)
            stack.enter_context(served.http)
            gateways.append((served, process, said))
        (first, leader, _), (second, _, _) = gateways
        first.say("start")
        for served, _, _ in gateways:
            has(served, "g1", "g2")
            # What may not be said holds for what has come since.
            assert not FORBIDDEN.search(complete(served, "g2"))
        second.say("promote", full=True)
        for served, _, _ in gateways:
            has(served, "g2")
        leader.kill()
        leader.wait()
        assert second.releases(5) == {"g2": 5}
        assert second.say("start", candidate="g3").status_code == 200
        has(second, "g2", "g3")
        second.waits("somebody to promote")
        assert not FORBIDDEN.search(complete(second, "g3"))
        assert not any("ERROR" in line for _, _, said in gateways for line in said)


def test_what_was_seen_of_rollouts_that_are_over_is_dropped(tmp_path: Path) -> None:
    def seen() -> list[dict[str, Any]]:
        with closing(sqlite3.connect(tmp_path / "airi.db")) as state:
            rows = state.execute("SELECT body FROM airi_documents WHERE kind = 'seen'").fetchall()
        return [json.loads(body) for (body,) in rows]

    path = config(tmp_path)
    with engine(tmp_path) as stub:
        with gateway(path, stub) as (served, process):
            served.say("start")
            served.waits("somebody to promote")
            served.releases(5)
            wait_until(lambda: any(seen()), "nothing is written")
            process.kill()
            process.wait()
        assert len(seen()) == 1
        with gateway(path, stub) as (served, _):
            assert served.say("abort").status_code == 200
            wait_until(lambda: seen() == [], "what was seen stays for ever")
