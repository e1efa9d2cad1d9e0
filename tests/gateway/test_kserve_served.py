"""Versions of models by the Open Inference Protocol, while a rollout tries one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .conftest import wait_until
from .test_rollouts_served import engine, gateway
from .test_rollouts_served import path as path  # a fixture

BODY = {"text_input": "Hi", "max_tokens": 2}


def test_a_version_in_the_path_is_the_one_that_answers(path: Path, tmp_path: Path) -> None:
    with engine(tmp_path) as stub, gateway(path, stub) as (served, _):

        def generated(version: str) -> Any:
            return served.http.post(f"/v2/models/general/versions/{version}/generate", json=BODY)

        def index(**body: Any) -> dict[str, str]:
            found = served.http.post("/v2/repository/index", json=body).json()
            assert all(entry["name"] == "general" for entry in found)
            return {entry["version"]: entry["state"] for entry in found}

        assert generated("g1").json()["model_version"] == "g1"
        assert generated("g2").json() == {"error": "version: 'g2' of general is not served here; served: g1"}
        assert index() == {"g1": "READY", "g2": "UNAVAILABLE", "g3": "UNAVAILABLE"}
        assert index(ready=True) == {"g1": "READY"}
        served.say("start")
        served.waits("somebody to promote")
        for version in ("g1", "g2"):
            for _ in range(5):
                answer = generated(version)
                assert answer.json()["model_version"] == version
                assert answer.headers["x-airi-release"] == version
        assert served.http.get("/v2/models/general").json()["versions"] == ["g1", "g2"]
        assert served.http.get("/v2/models/general/versions/g2/ready").json()["ready"] is True
        change = served.http.post("/v2/repository/models/general@g3/load", json={})
        assert (change.json()["version"], change.json()["is_kept"]) == ("g3", True)
        wait_until(lambda: index()["g3"] == "READY", "the version is not loaded")
        assert generated("g3").status_code == 404  # no release that is served has it
        served.http.post("/v2/repository/models/general@g3/unload", json={})
        wait_until(lambda: index()["g3"] == "UNAVAILABLE", "the version stays")
        absent = served.http.post("/v2/repository/models/general@g9/load", json={})
        assert (absent.status_code, "g9" in absent.json()["error"]) == (404, True)
