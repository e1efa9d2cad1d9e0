"""What does the gateway itself cost: CPU per request that does not stream, and streamed tokens per core?

    python -m benches.bench_gateway [--model-path CHECKPOINT] [--json]
    python -m benches.bench_gateway --peer-base-url http://127.0.0.1:4000/v1 --peer-pid PID

An engine without a model answers, so all that is measured is HTTP, JSON, templates, tokenising, detokenising and
events. Streams are measured twice: the engine at full speed, where tokens that wait leave in one write, and with a
step every few milliseconds, where each token is a write of its own (the harder case, as real engines pace).
CPU is what the gateway's process (and, for a peer, its children) used, user and system, while this process, the
client, ran the load. A peer is measured the same way at its own URL: a LiteLLM proxy in front of any server, or a
server with an engine of its own, whose work in the same process is then included.

Checked first: every answer has the tokens asked for, else no figure is printed. Does not mean: latency under load,
or what an engine on the same cores leaves over.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from airi import builtin
from airi.bench.rows import percentile
from airi.bench.server import free_port, server_process, wait_until_ready
from airi.policy.keys import create_key
from airi.state import open_store
from benches.common import plain_parser, print_rows

TARGET_MS = 0.5
TARGET_TOKENS = 30_000
_MESSAGES = [
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": "What is the capital of France, and since when?"},
]


@dataclass(frozen=True)
class Target:
    """A server to measure: where it answers, the model's name there, and the process whose CPU counts."""

    name: str
    url: str
    model: str
    pid: int
    children: bool = True
    """Whether the process's children count, too."""
    keys: tuple[str, ...] = ("x",)
    """What callers send as their keys, connection by connection."""

    def cpu_seconds(self) -> float:
        """User and system time used so far."""
        return cpu_seconds(self.pid, children=self.children)


def cpu_seconds(pid: int, *, children: bool) -> float:
    """User and system time of a process, and of its children, so far (Linux; steps of 10 ms)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    own = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    if not children:
        return own
    tasks = Path(f"/proc/{pid}/task").iterdir()
    below = " ".join((task / "children").read_text() for task in tasks).split()
    return own + sum(cpu_seconds(int(child), children=True) for child in below)


class Connection:
    """One keep-alive HTTP/1.1 connection that only does what the bench needs."""

    def __init__(self, target: Target, number: int) -> None:
        parts = urlsplit(target.url)
        self._key = target.keys[number % len(target.keys)]
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80
        self._prefix = parts.path.rstrip("/")

    async def open(self) -> None:
        self._reader, self._writer = await asyncio.open_connection(self._host, self._port, limit=2**20)

    async def post(self, path: str, body: dict[str, object]) -> bytes:
        """The body of the answer; RuntimeError for any status but 200."""
        status, content = await self.ask(path, body)
        if status != 200:
            raise RuntimeError(f"status {status}: {content[:500]!r}")
        return content

    async def ask(self, path: str, body: dict[str, object]) -> tuple[int, bytes]:
        """The status and the body of the answer."""
        data = json.dumps(body).encode()
        head = (
            f"POST {self._prefix}{path} HTTP/1.1\r\nhost: {self._host}\r\nauthorization: Bearer {self._key}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
        )
        self._writer.write(head.encode() + data)
        response = await self._reader.readuntil(b"\r\n\r\n")
        return int(response.split(b" ", 2)[1]), await self._body(response.lower())

    async def _body(self, head: bytes) -> bytes:
        length = re.search(rb"content-length: (\d+)", head)
        if length is not None:
            return await self._reader.readexactly(int(length[1]))
        parts: list[bytes] = []
        while True:
            size = int(await self._reader.readline(), 16)
            parts.append((await self._reader.readexactly(size + 2))[:-2])
            if size == 0:
                return b"".join(parts)

    def close(self) -> None:
        self._writer.close()


async def whole_requests(target: Target, *, requests: int, connections: int, tokens: int) -> dict[str, float]:
    """`requests` chats that do not stream, over a few connections: CPU ms each, requests/s, latency."""
    pool = [Connection(target, number) for number in range(connections)]
    for connection in pool:
        await connection.open()
    body: dict[str, object] = {
        "model": target.model,
        "messages": _MESSAGES,
        "max_tokens": tokens,
        "temperature": 0,
    }
    latencies: list[float] = []

    async def worker(connection: Connection, count: int) -> None:
        for _ in range(count):
            begin = time.perf_counter()
            answer = json.loads(await connection.post("/chat/completions", body))
            latencies.append(time.perf_counter() - begin)
            if answer["usage"]["completion_tokens"] != tokens:
                raise RuntimeError(f"asked for {tokens} tokens, got {answer['usage']}")

    await asyncio.gather(*(worker(c, 10) for c in pool))
    latencies.clear()
    cpu, begin = target.cpu_seconds(), time.perf_counter()
    await asyncio.gather(*(worker(c, requests // connections) for c in pool))
    cpu, wall = target.cpu_seconds() - cpu, time.perf_counter() - begin
    for connection in pool:
        connection.close()
    done = len(latencies)
    return {
        "cpu_ms": cpu / done * 1e3,
        "per_s": done / wall,
        "p50_ms": percentile(latencies, 50) * 1e3,
        "p99_ms": percentile(latencies, 99) * 1e3,
    }


async def streams(target: Target, *, connections: int, tokens: int, rounds: int) -> dict[str, float]:
    """Streamed chats on all connections at once: tokens per CPU second of the server, and per second."""
    body: dict[str, object] = {
        "model": target.model,
        "messages": _MESSAGES,
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }

    async def worker(number: int, count: int) -> int:
        events = 0
        for _ in range(count):
            connection = Connection(target, number)  # a new one: a slow server's may idle away between rounds
            await connection.open()
            content = await connection.post("/chat/completions", body)
            connection.close()
            if f'"completion_tokens":{tokens}'.encode() not in content.replace(b": ", b":"):
                raise RuntimeError("a stream has not the tokens asked for")
            if not content.endswith(b"data: [DONE]\n\n"):
                raise RuntimeError("a stream has no end")
            events += content.count(b"\ndata: ") + 1
        return events

    await asyncio.gather(*(worker(number, 1) for number in range(connections)))
    cpu, begin = target.cpu_seconds(), time.perf_counter()
    events = sum(await asyncio.gather(*(worker(number, rounds) for number in range(connections))))
    cpu, wall = target.cpu_seconds() - cpu, time.perf_counter() - begin
    total = connections * tokens * rounds
    return {"tokens_per_cpu_s": total / cpu, "tokens_per_s": total / wall, "events_per_token": events / total}


async def make_keys(state: str, count: int) -> str:
    """One of so many keys in a new state."""
    async with await open_store(state) as store:
        keys = [await create_key(store, f"tenant-{i % 100}") for i in range(count)]
    return keys[count // 2].text


@contextmanager
def our_gateway(model_path: Path, *, step_us: int, keys: int = 0) -> Iterator[Target]:
    """A stub engine and the gateway in front of it, each in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        endpoint, port = f"ipc://{folder}/engine", free_port()
        stub = [sys.executable, "-m", "airi.transport.stub", "--endpoint", endpoint]
        stub += ["--model-path", str(model_path), "--name", "bench", "--max-model-len", "8192"]
        stub += ["--step-us", str(step_us)]
        command = [sys.executable, "-m", "airi", "serve", "--engine", endpoint, "--port", str(port)]
        key = "x"
        if keys:
            state = f"sqlite:///{folder}/airi.db"
            key = asyncio.run(make_keys(state, keys))
            command += ["--state", state]
        with (
            (Path(folder) / "log").open("w+b") as log,
            server_process(stub, log),
            server_process(command, log) as gateway,
        ):
            wait_until_ready(gateway, f"http://127.0.0.1:{port}/ready", log)
            name = f"airi, one of {keys} keys" if keys else "airi"
            yield Target(name, f"http://127.0.0.1:{port}/v1", "bench", gateway.pid, keys=(key,))


def measure_whole(target: Target, arguments: argparse.Namespace) -> dict[str, Any]:
    """The first question for one server."""
    run = whole_requests(target, requests=arguments.requests, connections=8, tokens=arguments.short)
    figures = asyncio.run(run)
    return {
        "question": "gateway CPU per request, not streamed",
        "server": target.name,
        **{key: round(value, 3) for key, value in figures.items()},
        "target": f"<= {TARGET_MS} ms",
        "reached": figures["cpu_ms"] <= TARGET_MS,
    }


def measure_streams(target: Target, arguments: argparse.Namespace, engine: str) -> dict[str, Any]:
    """The second question for one server; `engine` says at which pace tokens came."""
    figures = asyncio.run(streams(target, connections=64, tokens=arguments.tokens, rounds=arguments.rounds))
    return {
        "question": "streamed tokens per gateway core, 64 streams",
        "server": target.name,
        "engine": engine,
        **{key: round(value, 3) for key, value in figures.items()},
        "target": f">= {TARGET_TOKENS}",
        "reached": figures["tokens_per_cpu_s"] >= TARGET_TOKENS,
    }


def compared(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The peer's rows, without our targets, and our figures as a ratio to them (streams: the paced ones)."""
    for row in theirs:
        del row["target"], row["reached"]
    ratios = {
        "question": "ours to the peer's",
        "cpu_ms": round(ours[0]["cpu_ms"] / theirs[0]["cpu_ms"], 4),
        "tokens_per_cpu_s": round(ours[2]["tokens_per_cpu_s"] / theirs[1]["tokens_per_cpu_s"], 2),
    }
    return [*theirs, ratios]


def main() -> None:
    """Measures ours and, where one is named, a peer after it in the same run."""
    parser = plain_parser(__doc__)
    parser.add_argument(
        "--model-path",
        type=Path,
        default=builtin.path(),
        help="folder with a tokenizer and a chat template; left out, the built-in model's",
    )
    parser.add_argument("--requests", type=int, default=4000)
    parser.add_argument("--short", type=int, default=8, help="tokens of an answer that does not stream")
    parser.add_argument("--tokens", type=int, default=512, help="tokens of a streamed answer")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument(
        "--step-us", type=int, default=5000, help="pace of the engine in the second measurement"
    )
    parser.add_argument(
        "--keys", type=int, default=0, help="also with so many keys in a state, one of them sent"
    )
    parser.add_argument("--peer-base-url", help="OpenAI base URL of a running peer")
    parser.add_argument("--peer-pid", type=int, help="process of the peer; its children count, too")
    parser.add_argument(
        "--peer-alone",
        action="store_true",
        help="leave the children out: vLLM's engine is one, its HTTP side is not",
    )
    parser.add_argument("--peer-model", default="bench")
    parser.add_argument("--peer-name", default="peer")
    arguments = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with our_gateway(arguments.model_path, step_us=0) as ours:
        rows = [measure_whole(ours, arguments), measure_streams(ours, arguments, "full speed")]
    with our_gateway(arguments.model_path, step_us=arguments.step_us) as ours:
        rows.append(measure_streams(ours, arguments, f"a step every {arguments.step_us} us"))
    if arguments.keys:
        with our_gateway(arguments.model_path, step_us=0, keys=arguments.keys) as ours:
            rows.append(measure_whole(ours, arguments))
    if arguments.peer_base_url is not None:
        if arguments.peer_pid is None:
            parser.error("--peer-base-url needs --peer-pid")
        peer = Target(
            arguments.peer_name,
            arguments.peer_base_url,
            arguments.peer_model,
            arguments.peer_pid,
            children=not arguments.peer_alone,
        )
        rows += compared(rows, [measure_whole(peer, arguments), measure_streams(peer, arguments, "its own")])
    print_rows(rows, as_json=arguments.json)


if __name__ == "__main__":
    main()
