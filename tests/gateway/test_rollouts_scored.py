"""A served rollout whose candidate has a fault that only its tokens tell of: it is rolled back before any traffic."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from airi import builtin
from benches.faulty import write_candidate

from .conftest import serve_process, wait_until
from .test_rollouts_served import CHAT, Served

CONFIG = """\
version: 1
server: {port: 0, state: "sqlite:///FOLDER/airi.db"}
models:
  - name: general
    versions: [{id: g1, source: STABLE}, {id: g2, source: CANDIDATE}]
engine: {device: cpu, kv_memory: 64MiB, max_num_seqs: 16, max_model_len: 256}
rollouts:
  general:
    stable: g1
    candidate: g2
    steps: [{shadow: {percent: 100, duration: 1s}}, {set_weight: 5}, {pause: {}}]
    gates:
      latency: {metric: error_rate, max: 0.5, min_samples: 5}
      tokens:
        - {metric: token.nll_delta, max: auto, min_samples: 20}
        - {metric: token.top1_agreement, min: auto, min_samples: 20}
"""


def ask(served: Served, text: str) -> str:
    body = CHAT | {"model": "general", "messages": [{"role": "user", "content": text}], "max_tokens": 24}
    answer = served.http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    return answer.headers["x-airi-release"]


@pytest.mark.parametrize("candidate", ["identical", "template", "tokenizer"])
def test_a_candidate_is_judged_by_what_it_says_of_stable_s_answers(tmp_path: Path, candidate: str) -> None:
    path = tmp_path / "airi.yaml"
    made = str(write_candidate(candidate, tmp_path))
    text = CONFIG.replace("FOLDER", str(tmp_path)).replace("CANDIDATE", made)
    path.write_text(text.replace("STABLE", str(builtin.path())))
    with serve_process(str(path)) as (_, url, said):
        served = Served(url)
        with served.http, ThreadPoolExecutor(4) as pool:
            served.say("start")
            wait_until(lambda: served.status["phase"] == "running", "the candidate is not loaded")
            questions = [
                f"Classify: I lost my {place} card" for place in ("first", "second", "third", "other")
            ]
            if candidate == "tokenizer":  # nobody can say what its tokens should be
                for _ in range(4):
                    assert set(pool.map(lambda text: ask(served, text), questions * 4)) == {"g1"}
                wait_until(lambda: "auto promises nothing" in served.status["waits_for"], "no gate holds")
                assert (served.status["step"], served.status["phase"]) == (1, "running")
                return
            while served.status["step"] == 1 and served.status["phase"] == "running":
                assert set(pool.map(lambda text: ask(served, text), questions * 4)) == {"g1"}
            if candidate == "identical":
                served.waits("somebody to promote")
                return
            assert served.status["phase"] == "aborted"
            said_why = served.status["events"][-1]["what"]
            assert "tokens: token.nll_delta" in said_why
            assert "auto for same-weights" in said_why
            assert ask(served, questions[0]) == "g1"
        assert not any("ERROR" in line for line in said)
