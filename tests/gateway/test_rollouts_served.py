"""Rollouts of a gateway that serves: traffic moves, pins hold, failures leave stable as it is, crashes are resumed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from airi import builtin
from airi.cli import main
from airi.transport.stub import StubEngine, StubOptions

from .conftest import serve_process, stub_engine, wait_until
from .test_explaining import explained

CONFIG = """\
version: 1
server: {port: 0, state: "sqlite:///FOLDER/airi.db"}
models:
  - name: general
    aliases: [chat]
    versions: [{id: g1, source: airi-demo}, {id: g2, source: airi-demo}, {id: g3, source: airi-demo}]
rollouts:
  general:
    candidate: g2
    steps: [{set_weight: 50}, {pause: {}}, {set_weight: 100}, {pause: {}}]
"""
CHAT: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Hi"}],
    "max_tokens": 4,
    "temperature": 0,
}


class Served:
    """A gateway, and what is asked of it."""

    def __init__(self, url: str) -> None:
        self.http = httpx.Client(base_url=url, timeout=30)

    def ask(self, model: str = "general", **headers: str) -> httpx.Response:
        named = {f"x-airi-{name}": value for name, value in headers.items()}
        return self.http.post("/v1/chat/completions", json=CHAT | {"model": model}, headers=named)

    def release(self, model: str = "general", **headers: str) -> str:
        answer = self.ask(model, **headers)
        assert answer.status_code == 200, answer.text
        release = answer.headers["x-airi-release"]
        assert answer.headers["x-airi-model"] == f"general@{release}"
        assert answer.json()["model"] == model
        return release

    def releases(self, count: int = 40) -> Counter[str]:
        return Counter(self.release() for _ in range(count))

    def say(self, verb: str, **body: Any) -> httpx.Response:
        return self.http.post(f"/admin/rollouts/general/{verb}", json=body)

    @property
    def status(self) -> dict[str, Any]:
        (line,) = self.http.get("/admin/rollouts").json()["data"]
        return dict(line)

    @property
    def states(self) -> dict[str, str]:
        found = self.http.get("/admin/versions").json()["data"]
        return {version["version"]: version["state"] for version in found}

    def waits(self, what: str, of: str = "waits_for") -> None:
        wait_until(lambda: self.status[of] == what, f"{self.status}, not {of} {what}")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "airi.yaml"
    path.write_text(CONFIG.replace("FOLDER", str(tmp_path)))
    return path


@contextmanager
def engine(folder: Path, **options: Any) -> Iterator[StubEngine]:
    with stub_engine(
        StubOptions(
            endpoint=f"ipc://{folder}/engine", model_path=str(builtin.path()), name="general@g1", **options
        )
    ) as stub:
        yield stub


@contextmanager
def gateway(
    path: Path, stub: StubEngine, *, linger_ms: int | None = None
) -> Iterator[tuple[Served, subprocess.Popen[str]]]:
    with serve_process(str(path), "--engine", stub.server.endpoint, linger_ms=linger_ms) as (process, url, _):
        served = Served(url)
        with served.http:
            yield served, process


def test_what_gave_a_call_its_release_is_told(path: Path, tmp_path: Path) -> None:
    with engine(tmp_path) as stub, gateway(path, stub) as (served, _):
        before = explained(served.http, served.ask().headers["x-request-id"])["calls"][0]
        assert before["release"] == {"line": "general", "release": "g1", "by": "request"}
        served.say("start")
        served.waits("somebody to promote")
        for by, headers in (
            ("x-airi-release", {"release": "g2"}),
            ("session", {"session": "s"}),
            ("request", {}),
        ):
            answer = served.ask(**headers)
            told = explained(served.http, answer.headers["x-request-id"])["calls"][0]
            release, version = told["release"], answer.headers["x-airi-release"]
            assert (told["model"], told["version"], release["release"]) == ("general", version, version)
            assert release["by"] == by
            assert release["role"] == ("candidate" if version == "g2" else "stable")
            assert (release["step"], release["steps"], release["weight"]) == (2, 4, 50.0)
        answer = served.ask(release="g9")
        told = explained(served.http, answer.headers["x-request-id"])
        assert told["error"] == told["calls"][0]["error"]
        assert (told["error"]["status"], told["error"]["code"]) == (409, "release_not_served")


def test_traffic_moves_by_the_steps_and_the_candidate_becomes_stable(path: Path, tmp_path: Path) -> None:
    with engine(tmp_path) as stub, gateway(path, stub) as (served, _):
        assert served.releases(5) == {"g1": 5}
        assert served.http.get("/v1/models").json()["data"][0]["id"] == "general"
        assert served.say("start").json()["phase"] == "preparing"
        served.waits("somebody to promote")
        assert served.status["weight"] == 50
        both = served.releases(60)
        assert set(both) == {"g1", "g2"}
        assert stub.asked["general@g2"] == both["g2"] + 1  # and the one that warms it
        sessions = {str(i): served.release("chat", session=str(i)) for i in range(20)}
        assert sessions == {key: served.release(session=key) for key in sessions}
        assert served.release(release="g1") == "g1"
        assert served.release(release="g2") == "g2"
        refused = served.ask(release="g3")
        assert refused.status_code == 409
        assert refused.json()["error"]["message"] == (
            "x-airi-release: 'g3' is no release that general is served with now; there are: g1, g2"
        )
        second = served.say("start", candidate="g3")
        assert (second.status_code, second.json()["error"]["code"]) == (400, "lifecycle_error")
        assert served.say("promote").status_code == 200
        wait_until(lambda: served.status["weight"] == 100, "no weight of 100")
        served.waits("somebody to promote")
        assert served.releases(20) == {"g2": 20}
        assert all(served.release(session=key) == "g2" for key in sessions)
        served.say("promote", full=True)
        assert (served.status["stable"], served.status["phase"]) == ("g2", "completed")
        wait_until(lambda: served.states["g1"] == "draining", "stable before is not let go")
        assert served.release(release="g1") == "g1"  # for as long as it is there


def test_an_abort_gives_stable_all_traffic_and_a_candidate_that_fails_never_gets_any(
    path: Path, tmp_path: Path
) -> None:
    with engine(tmp_path, broken=("general@g3",)) as stub, gateway(path, stub) as (served, _):
        served.say("start", candidate="g3")
        served.waits("failed", of="phase")
        assert "general@g3: 'general@g3' cannot be loaded" in served.status["events"][-1]["what"]
        assert served.releases(10) == {"g1": 10}
        served.say("start")
        served.waits("somebody to promote")
        assert served.say("abort").json()["phase"] == "aborted"
        wait_until(lambda: set(served.releases(20)) == {"g1"}, "the candidate has traffic still")
        assert served.ask(release="g2").status_code == 409
        assert served.say("abort").status_code == 400
        # One that has failed is tried again.
        assert served.say("start", candidate="g3").status_code == 200
        served.waits("failed", of="phase")


def test_a_gateway_that_is_killed_goes_on_where_it_stood_and_others_follow(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with engine(tmp_path) as stub:
        with gateway(path, stub) as (first, process), gateway(path, stub) as (second, _):
            assert main(["rollout", "start", "general", "--config", str(path)]) == 0
            assert capsys.readouterr().out.startswith("general: stable g1\n  candidate g2, 0 %: preparing")
            first.waits("somebody to promote")
            process.kill()
            process.wait()
            wait_until(lambda: set(second.releases(20)) == {"g1", "g2"}, "the other does not follow")
            assert main(["rollout", "promote", "general", "--config", str(path)]) == 0
            wait_until(lambda: second.status["weight"] == 100, "nobody leads")
        with gateway(path, stub) as (third, _):
            assert third.release() == "g2"
            assert main(["rollout", "status", "general", "--json", "--config", str(path)]) == 0
            capsys.readouterr()
            third.say("promote", full=True)
            wait_until(lambda: third.releases(10) == {"g2": 10}, "the candidate is not stable")


def test_a_version_is_loaded_and_let_go_by_hand(path: Path, tmp_path: Path) -> None:
    with engine(tmp_path) as stub, gateway(path, stub) as (served, _):
        wait_until(lambda: served.states["g1"] == "serving", "stable does not serve")
        loaded = served.http.post("/admin/versions/general/g3/load", json={})
        assert loaded.json()["is_kept"] is True
        wait_until(lambda: served.states["g3"] == "ready", "it is not loaded")
        served.http.post("/admin/versions/general/g3/unload", json={})
        wait_until(lambda: served.states["g3"] == "registered", "it is not let go")
        assert served.http.post("/admin/versions/general/g9/load", json={}).status_code == 404
        assert served.http.post("/admin/versions/general/g1/unload", json={}).status_code == 200
        assert served.release() == "g1"  # a line needs it


def test_what_a_version_is_cannot_change_under_its_id(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with engine(tmp_path) as stub:
        with gateway(path, stub):
            pass
        other = tmp_path / "other"
        other.mkdir()
        (other / "config.json").write_text("{}")
        path.write_text(path.read_text().replace("{id: g2, source: airi-demo}", "{id: g2, source: ./other}"))
        assert main(["serve", str(path), "--engine", stub.server.endpoint]) == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.startswith("airi: general@g2 is sha256:")
        assert said.endswith("other content needs another id")
        without = CONFIG.replace("{id: g1, source: airi-demo}, ", "").replace(
            "candidate: g2", "candidate: g3"
        )
        path.write_text(without.replace("FOLDER", str(tmp_path)))
        assert main(["serve", str(path), "--engine", stub.server.endpoint]) == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.endswith(
            "models[0].versions is without it; accepted: g1 of general among them: "
            "general is served with release g1"
        )


def test_the_command_says_what_is_wrong(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["rollout", "start", "nothing", "--config", str(path)]
    assert main(command) == 2
    assert capsys.readouterr().err == (
        "airi: line is 'nothing', of which the config's rollouts say no steps; they do of: general\n"
    )
    assert main(["rollout", "start", "general", "--config", str(path)]) == 2
    assert "there are no releases of 'general'; there are of: none" in capsys.readouterr().err
    out = subprocess.run(
        [sys.executable, "-m", "airi", "rollout", "status", "--json", "--config", str(path)],
        capture_output=True,
        check=True,
    ).stdout
    assert json.loads(out) == []


def test_gates_judge_by_what_was_seen(path: Path, tmp_path: Path) -> None:
    text = path.read_text().partition("    steps:")[0]
    text += "    steps: [{shadow: {percent: 100, duration: 1s}}, {set_weight: 50}, {analysis: [errors]}, {pause: {}}]\n"
    text += "    gates:\n      errors: {metric: error_rate, max: 0.5, min_samples: 30}\n"
    text += "      same: {metric: token.nll_delta, max: 0.1}\n"
    path.write_text(text)
    with engine(tmp_path) as stub, gateway(path, stub) as (served, _):
        served.say("start")
        wait_until(
            lambda: served.status["waits_for"].startswith("same: token.nll_delta 0"), "gates do not hold"
        )
        served.releases(120)  # read by both, which find the same
        wait_until(lambda: served.status["step"] == 3, "what was scored is not seen")
        served.releases(100)
        served.waits("somebody to promote")


def test_real_engines_take_a_candidate_beside_stable(path: Path) -> None:
    bounds = "engine: {device: cpu, kv_memory: 64MiB, max_num_seqs: 4, max_model_len: 256}\n"
    path.write_text(path.read_text() + bounds)
    with serve_process(str(path)) as (_, url, said):
        served = Served(url)
        with served.http:
            before = served.ask().json()["choices"][0]["message"]["content"]
            served.say("start")
            served.waits("somebody to promote")
            assert set(served.releases(30)) == {"g1", "g2"}
            after = served.ask(release="g2").json()["choices"][0]["message"]["content"]
            assert after == before  # of the same weights
            served.say("promote", full=True)
            wait_until(lambda: set(served.releases(5)) == {"g2"}, "the candidate is not stable")
        assert not any("ERROR" in line for line in said)


def test_the_version_before_sleeps_in_a_real_engine_and_is_woken_for_the_way_back(path: Path) -> None:
    text = path.read_text().replace("    aliases: [chat]\n", "    resources: {sleepable: true}\n")
    path.write_text(text + "engine: {device: cpu, kv_memory: 64MiB, max_num_seqs: 4, max_model_len: 256}\n")
    with serve_process(str(path), linger_ms=1000) as (_, url, said):
        served = Served(url)
        with served.http:
            before = served.ask().json()["choices"][0]["message"]["content"]
            served.say("start")
            served.waits("somebody to promote")
            served.say("promote", full=True)
            wait_until(lambda: served.states["g1"] == "asleep", "what was stable does not sleep")
            assert served.releases(5) == {"g2": 5}
            assert served.ask(release="g1").status_code == 409
            refused = served.http.post("/admin/models/general/sleep", json={})
            assert refused.status_code == 409
            assert "general has versions, which sleep and wake" in refused.json()["error"]["message"]
            served.say("start", candidate="g1")
            served.waits("somebody to promote")
            assert served.ask(release="g1").json()["choices"][0]["message"]["content"] == before
            served.say("promote", full=True)
            wait_until(
                lambda: served.states == {"g1": "serving", "g2": "asleep", "g3": "registered"}, "no way back"
            )
        assert not any("ERROR" in line for line in said)


def test_a_version_is_retired_by_hand_and_by_command(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["rollout", "retire", "general"]
    with engine(tmp_path) as stub, gateway(path, stub) as (served, _):
        wait_until(lambda: served.states["g1"] == "serving", "stable does not serve")
        for version, status, says in (
            ("g1", 409, "general@g1 is in g1, which general is served with"),
            ("g9", 404, "general has no version 'g9'"),
        ):
            refused = served.http.post(f"/admin/versions/general/{version}/retire", json={})
            assert (refused.status_code, says in refused.text) == (status, True), refused.text
        assert served.http.post("/admin/versions/general/g3/retire", json={}).json()["state"] == "retired"
        refused = served.say("start", candidate="g3")
        assert (refused.status_code, "general@g3 is retired" in refused.text) == (400, True), refused.text
        assert main([*command, "g1", "--config", str(path)]) == 2
        assert "general@g1 is in g1, which general is served with" in capsys.readouterr().err
        assert main([*command, "g2", "--config", str(path)]) == 0
        assert capsys.readouterr().out == "general@g2: retired\n"
        assert served.states == {"g1": "serving", "g2": "retired", "g3": "retired"}
    with engine(tmp_path) as stub, gateway(path, stub) as (served, _):  # the config still has it
        assert served.release() == "g1"
        assert served.states["g3"] == "retired"
