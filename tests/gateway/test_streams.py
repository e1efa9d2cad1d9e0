"""Streams as bytes, clients that hang up, engines that die."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from airi.gateway import sse
from airi.gateway.openai.schemas_chat import ChatCompletionChunk
from airi.gateway.openai.schemas_completions import CompletionChunk
from airi.gateway.options import ServerOptions
from airi.text import Tokenizer
from airi.transport.stub import StubEngine

from .conftest import ANSWER, WINDOW, Gateway, StartGateway, events, gateway_thread, wait_until

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "What?"}], "stream": True}


def running(stub: StubEngine) -> int:
    return len(stub._running)


@pytest.mark.parametrize(
    "text", ["plain", 'quote " back \\ slash', "new\nline\t\x00\x1f", "🙂 ünï \u2028", ""]
)
def test_events_built_from_bytes_are_the_json_they_stand_for(text: str) -> None:
    frame = sse.ChunkFrame(
        id='i"d',
        object="chat.completion.chunk",
        created=7,
        model='mo"del\n',
        fingerprint="f",
    )
    chat, plain = sse.ChatChunks(frame, 3), sse.TextChunks(frame, 3)
    for data in (chat.first(), chat.delta(text), chat.delta(text, {"content": []}), chat.last("stop")):
        assert data.startswith(b"data: ")
        assert data.endswith(b"\n\n")
        assert data.count(b"\n") == 2, "a line break inside would end the event"
        chunk = json.loads(data.removeprefix(b"data: "))
        assert chunk["model"] == 'mo"del\n'
        assert chunk["choices"][0]["index"] == 3
    assert json.loads(chat.delta(text)[6:])["choices"][0]["delta"] == {"content": text}
    assert json.loads(plain.delta(text)[6:])["choices"][0]["text"] == text
    assert json.loads(plain.last("length")[6:])["choices"][0]["finish_reason"] == "length"


def test_every_event_fits_the_published_schema(gateway: Gateway) -> None:
    import msgspec

    body = {**CHAT, "max_tokens": 20, "n": 2, "stream_options": {"include_usage": True}}
    for extra in ({}, {"logprobs": True, "top_logprobs": 2}):
        response = gateway.http.post("/v1/chat/completions", json={**body, **extra})
        assert response.headers["content-type"].startswith("text/event-stream")
        for event in events(response.text):
            msgspec.convert(event, ChatCompletionChunk)
    text = {"model": "tiny", "prompt": "a", "stream": True, "max_tokens": 9, "logprobs": 1, "echo": True}
    for event in events(gateway.http.post("/v1/completions", json=text).text):
        msgspec.convert(event, CompletionChunk)


@pytest.mark.parametrize(
    ("path", "prompt"),
    [("chat/completions", {"messages": CHAT["messages"]}), ("completions", {"prompt": "a"})],
)
def test_with_usage_asked_for_only_the_last_event_has_it(
    gateway: Gateway, path: str, prompt: dict[str, Any]
) -> None:
    body = {"model": "tiny", "stream": True, "max_tokens": 5, **prompt}
    counted = {**body, "stream_options": {"include_usage": True}}
    *earlier, last = events(gateway.http.post(f"/v1/{path}", json=counted).text)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 5
    # Left out and not null: the published document of completions has no null there.
    assert not any("usage" in event for event in earlier)
    for plain in (body, {**body, "stream_options": {"include_usage": False}}):
        assert not any(
            "usage" in event for event in events(gateway.http.post(f"/v1/{path}", json=plain).text)
        )


def test_each_token_is_an_event_of_its_own(start_gateway: StartGateway, tokenizer: Tokenizer) -> None:
    gateway = start_gateway(answer="is it for what ")
    response = gateway.http.post("/v1/chat/completions", json={**CHAT, "max_tokens": 50})
    deltas = [e for e in events(response.text) if e["choices"][0]["delta"].get("content")]
    assert len(deltas) == 50


def test_a_character_in_several_tokens_comes_out_whole(start_gateway: StartGateway) -> None:
    gateway = start_gateway(answer="🙂漢字é🚀")
    response = gateway.http.post("/v1/chat/completions", json={**CHAT, "max_tokens": 200})
    pieces = [e["choices"][0]["delta"].get("content", "") for e in events(response.text)]
    assert "\ufffd" not in "".join(pieces[:-2])
    assert "".join(pieces).startswith("🙂漢字é🚀🙂")


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_hangs_up_frees_the_engine(start_gateway: StartGateway, *, stream: bool) -> None:
    gateway = start_gateway(step_us=20_000, max_model_len=4096)
    port = int(gateway.url.rpartition(":")[2])
    body = json.dumps({**CHAT, "stream": stream, "n": 3}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(head + body)
        wait_until(lambda: running(gateway.stub) == 3, "the engine has not started")
        if stream:
            assert client.recv(100).startswith(b"HTTP/1.1 200")
    wait_until(lambda: running(gateway.stub) == 0, "the engine goes on for nobody")
    wait_until(
        lambda: "airi_client_disconnects_total 1.0" in gateway.http.get("/metrics").text, "nobody hung up"
    )


def test_a_found_stop_string_frees_the_engine(start_gateway: StartGateway) -> None:
    gateway = start_gateway(step_us=5_000, max_model_len=4096)
    response = gateway.http.post("/v1/chat/completions", json={**CHAT, "stop": "there"})
    assert events(response.text)[-1]["choices"][0]["finish_reason"] == "stop"
    wait_until(lambda: running(gateway.stub) == 0, "the engine goes on after the end")


@pytest.fixture
def engine_process(model_folder: Path, tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Starts stub engines at one endpoint, in processes that can be killed."""
    started: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "airi.transport.stub", "--endpoint", f"ipc://{tmp_path}/engine"]
        command += ["--model-path", str(model_folder), "--name", "tiny", "--step-us", "20000"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline().startswith("ready")
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def test_an_engine_killed_under_fifty_streams_ends_each_with_an_error(
    engine_process: Callable[[], subprocess.Popen[str]], tmp_path: Path
) -> None:
    engine = engine_process()
    with gateway_thread(f"ipc://{tmp_path}/engine", ServerOptions(port=0)) as (listening, _):
        url = listening.url

        def stream(number: int) -> list[dict[str, Any]]:
            received = 0
            text = ""
            limits = httpx.Timeout(30)
            with httpx.stream("POST", f"{url}/v1/chat/completions", json=CHAT, timeout=limits) as response:
                assert response.status_code == 200
                for piece in response.iter_text():
                    received += 1
                    text += piece
                    if received == 3:
                        begun.append(number)
            return events(text)

        begun: list[int] = []
        with ThreadPoolExecutor(50) as pool:
            streams = [pool.submit(stream, number) for number in range(50)]
            wait_until(lambda: len(begun) == 50, "not every stream began")
            os.kill(engine.pid, signal.SIGKILL)
            ended = [s.result(timeout=30) for s in streams]
        for received in ended:
            assert "choices" in received[0]
            assert received[-1]["error"]["code"] == "engine_unavailable"
        assert httpx.get(f"{url}/health").status_code == 200
        assert httpx.get(f"{url}/ready").status_code == 503
        engine_process()
        wait_until(lambda: httpx.get(f"{url}/ready").status_code == 200, "the engine does not come back")
        body = {**CHAT, "stream": False, "max_tokens": 2}
        assert httpx.post(f"{url}/v1/chat/completions", json=body).status_code == 200


def test_a_request_that_waits_while_the_engine_restarts_is_answered(
    engine_process: Callable[[], subprocess.Popen[str]], tmp_path: Path
) -> None:
    engine = engine_process()
    with gateway_thread(f"ipc://{tmp_path}/engine", ServerOptions(port=0)) as (listening, _):
        os.kill(engine.pid, signal.SIGKILL)
        engine.wait()
        wait_until(lambda: httpx.get(f"{listening.url}/ready").status_code == 503, "the death is not seen")
        with ThreadPoolExecutor(1) as pool:
            body = {**CHAT, "max_tokens": 2}
            waiting = pool.submit(httpx.post, f"{listening.url}/v1/chat/completions", json=body, timeout=30)
            engine_process()
            assert len(events(waiting.result(timeout=30).text)) >= 3


def test_the_rest_of_a_long_answer_is_not_kept_back(gateway: Gateway) -> None:
    response = gateway.http.post("/v1/chat/completions", json=CHAT)
    text = "".join(e["choices"][0]["delta"].get("content", "") for e in events(response.text))
    assert text.startswith(ANSWER * 2)
    assert len(text) > WINDOW
