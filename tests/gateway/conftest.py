"""A real server in a thread of its own, in front of a stub engine whose every answer is known."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import openai as openai_client
import pytest
import uvloop
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers

from airi.gateway.access import open_access
from airi.gateway.gate import Government
from airi.gateway.governing import decider_of
from airi.gateway.launch import open_grpc
from airi.gateway.lifecycle import Listening, Stop, bind
from airi.gateway.options import AppOptions, ServerOptions
from airi.gateway.server import serve
from airi.text import Tokenizer
from airi.transport import EngineClient, EngineHandle
from airi.transport.absent import NoEngine
from airi.transport.stub import StubEngine, StubOptions
from tests.logs import logging_as_before

ANSWER = "Hello there! Ünïcode 🙂 and more. "
TEMPLATE = (
    "{%- if tools %}<|im_start|>tools\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{%- for m in messages %}{% if m.role == 'function' %}{{ raise_exception('no functions here') }}{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n{% if style %}{{ style }}{% endif %}{% endif %}"
)
WINDOW = 512
VOCAB = 600


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    with logging_as_before():
        yield


def write_text_side(folder: Path, vocab_size: int) -> Path:
    """A byte-level tokenizer of at most this many tokens and a chat template."""
    backend = RustTokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    backend.train_from_iterator(
        [ANSWER, "user assistant system the of and to in is it for what"] * 3, trainer
    )
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": "<|im_end|>", "chat_template": TEMPLATE})
    )
    return folder


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the gateway reads of a checkpoint: tokenizer, chat template, sizes."""
    folder = write_text_side(tmp_path_factory.mktemp("model"), VOCAB)
    (folder / "config.json").write_text(json.dumps({"vocab_size": VOCAB, "eos_token_id": 1}))
    return folder


@pytest.fixture(scope="session")
def tokenizer(model_folder: Path) -> Tokenizer:
    """The tokenizer the gateway uses."""
    return Tokenizer.load(model_folder)


@dataclass(kw_only=True)
class Gateway:
    """A running gateway and the stub behind it."""

    url: str
    stub: StubEngine
    api_key: str = "none"
    listening: Listening
    loop: asyncio.AbstractEventLoop
    http: httpx.Client = field(init=False)
    openai: openai_client.OpenAI = field(init=False)

    def __post_init__(self) -> None:
        self.http = httpx.Client(base_url=self.url, timeout=20)
        self.openai = openai_client.OpenAI(
            base_url=f"{self.url}/v1", api_key=self.api_key, max_retries=0, timeout=20
        )

    def close(self) -> None:
        """Closes the clients."""
        self.http.close()
        self.openai.close()

    @property
    def async_openai(self) -> openai_client.AsyncOpenAI:
        """The official client's asyncio form; the test closes it."""
        return openai_client.AsyncOpenAI(
            base_url=f"{self.url}/v1", api_key=self.api_key, max_retries=0, timeout=20
        )


def events(text: str) -> list[dict[str, Any]]:
    """The JSON payloads of a whole event stream, which must end with [DONE]."""
    blocks = text.split("\n\n")
    assert blocks[-2:] == ["data: [DONE]", ""]
    assert all(block.startswith("data: ") for block in blocks[:-1])
    return [json.loads(block.removeprefix("data: ")) for block in blocks[:-2]]


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Polls without a gate on speed: only a hang fails."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def children(pid: int) -> list[int]:
    """Child processes, as Linux tells."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


@contextmanager
def stub_engine(options: StubOptions) -> Iterator[StubEngine]:
    """A stub serving from a thread."""
    engine = StubEngine(options)
    thread = threading.Thread(target=engine.run)
    thread.start()
    try:
        yield engine
    finally:
        engine.stop()
        thread.join()


Govern = Callable[[], Awaitable[Government]]
"""Called in the gateway's loop."""


async def _ungoverned() -> Government:
    return Government(decider_of(None, ()))


@asynccontextmanager
async def _connected(endpoint: str | None) -> AsyncIterator[EngineHandle]:
    client = NoEngine() if endpoint is None else await EngineClient.connect(endpoint, timeout_s=10)
    with closing(client):
        yield client


@contextmanager
def gateway_thread(
    endpoint: str | None, options: ServerOptions, govern: Govern = _ungoverned
) -> Iterator[tuple[Listening, asyncio.AbstractEventLoop]]:
    """A gateway serving from a thread until the block ends; `endpoint` None: without an engine."""
    ready = threading.Event()
    told: list[Listening] = []
    stops: list[tuple[asyncio.AbstractEventLoop, Stop]] = []

    def on_listening(listening: Listening) -> None:
        told.append(listening)
        ready.set()

    async def main() -> None:
        with Stop().installed() as stop:
            stops.append((asyncio.get_running_loop(), stop))
            async with (
                open_grpc(options) as grpc,
                open_access(options.app) as access,
                _connected(endpoint) as client,
            ):
                sock = bind(options.host, options.port)
                await serve(
                    client,
                    options,
                    sock,
                    stop=stop,
                    access=access,
                    government=await govern(),
                    grpc=grpc,
                    on_listening=on_listening,
                )

    thread = threading.Thread(target=lambda: uvloop.run(main()))
    thread.start()
    try:
        assert ready.wait(20), "the gateway does not listen"
        yield told[0], stops[0][0]
    finally:
        loop, stop = stops[0]
        loop.call_soon_threadsafe(stop)
        thread.join()


_LINGERING = """
import sys
from airi.cli import main
from airi.gateway import rollouts
rollouts._LINGER_MS = {linger_ms}
sys.exit(main(sys.argv[1:]))
"""


@contextmanager
def serve_process(
    *options: str, linger_ms: int | None = None
) -> Iterator[tuple[subprocess.Popen[str], str, list[str]]]:
    """`airi serve` as a process on a free port: itself, its URL and what it has said so far.

    `linger_ms`: how long a version stays that gets no more calls, where that is not to be half a minute.
    """
    port = () if options[0].endswith(".yaml") else ("--port", "0")  # a config says itself
    program = ["-m", "airi"] if linger_ms is None else ["-c", _LINGERING.format(linger_ms=linger_ms)]
    command = [sys.executable, *program, "serve", *port, *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stderr is not None
    said: list[str] = []
    url = None
    for line in process.stderr:
        said.append(line)
        match = re.search(r"Serving .* at (http://[^ ]+)/v1", line)
        if match:
            url = match[1]
            break
    stderr = process.stderr
    if url is None:
        process.wait()
        stderr.close()
        pytest.fail("".join(said))
    reader = threading.Thread(target=lambda: said.extend(stderr))
    reader.start()
    try:
        yield process, url, said
    finally:
        process.kill()
        process.wait()
        reader.join()
        stderr.close()


StartGateway = Callable[..., Gateway]


@pytest.fixture
def start_gateway(model_folder: Path, tokenizer: Tokenizer, tmp_path: Path) -> Iterator[StartGateway]:
    """Starts gateways with stubs of their own: keywords of StubOptions, `app` for AppOptions."""
    with starter(model_folder, tokenizer, tmp_path) as start:
        yield start


@pytest.fixture(scope="module")
def gateway(
    model_folder: Path, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gateway]:
    """One gateway for all tests of a module that only ask."""
    with starter(model_folder, tokenizer, tmp_path_factory.mktemp("gateway")) as start:
        yield start()


@contextmanager
def starter(model_folder: Path, tokenizer: Tokenizer, folder: Path) -> Iterator[StartGateway]:
    with ExitStack() as stack:
        count = 0

        def start(
            *,
            answer: str = ANSWER,
            app: AppOptions | None = None,
            govern: Govern = _ungoverned,
            grpc_port: int | None = None,
            **stub: object,
        ) -> Gateway:
            nonlocal count
            count += 1
            settings = {
                "endpoint": f"ipc://{folder}/engine{count}",
                "model_path": str(model_folder),
                "name": "tiny",
                "aliases": ("tiny-alias",),
                "reply": tuple(tokenizer.encode(answer, add_special_tokens=False)),
                "max_model_len": WINDOW,
                **stub,
            }
            engine = stack.enter_context(stub_engine(StubOptions(**settings)))  # type: ignore[arg-type]
            options = ServerOptions(port=0, grpc_port=grpc_port, app=app or AppOptions())
            listening, loop = stack.enter_context(gateway_thread(str(settings["endpoint"]), options, govern))
            gateway = Gateway(url=listening.url, stub=engine, listening=listening, loop=loop)
            stack.callback(gateway.close)
            return gateway

        yield start
