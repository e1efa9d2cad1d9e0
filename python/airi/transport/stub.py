"""An engine without a model: speaks the real protocol and answers with canned tokens at full speed.

    python -m airi.transport.stub --endpoint ipc:///tmp/stub --model-path MODEL_FOLDER

For tests and measurements of what stands above the engine. It prints a line "ready ENDPOINT" when it
serves.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from airi.errors import AiriError, ContextLengthError, ModelNotFoundError, QueueFullError, RequestError
from airi.outputs import FinishReason, Output, Task, TokenLogprobs
from airi.sampling_params import MAX_PRIORITY
from airi.transport.messages import (
    MAX_REQUEST_ID,
    Cancel,
    ControlMessage,
    EngineStats,
    Explain,
    Forbid,
    GenerateRequest,
    Load,
    ModelInfo,
    ModelStats,
    SetTenant,
    Sleep,
    Unload,
    WatchKv,
    error_info,
)
from airi.transport.server import CLIENT_SHIFT, EngineServer

__all__ = ["StubEngine", "StubOptions", "main"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StubOptions:
    """What the stub pretends."""

    endpoint: str
    model_path: str = "stub"
    name: str = "stub"
    aliases: tuple[str, ...] = ()
    reply: tuple[int, ...] = ()
    """Token ids of every answer, repeated as needed; empty means ids from 5 upwards."""
    stop_after: int | None = None
    """Tokens after which a request ends with reason "stop", unless it ignores the end of sequence."""
    max_model_len: int = 4096
    max_queued: int | None = None
    """Requests that may run before further ones are refused as a full queue refuses them."""
    step_us: int = 0
    """Time that a step takes at least; 0 is as fast as it goes."""
    chunk: int | None = None
    """Tokens of one prompt that a step takes at most; None means all."""
    device_us: int = 0
    """Device time that a token is said to take, of prompts and answers."""
    task: Task = "generate"
    labels: tuple[str, ...] = ()
    """Of a classifier."""
    vector: tuple[float, ...] = ()
    """Of every text, where it does not generate."""
    broken: tuple[str, ...] = ()
    """Names of models that cannot be loaded beside it."""


class _Running:
    __slots__ = (
        "device_us",
        "left",
        "made",
        "metered",
        "model",
        "params",
        "prompt",
        "prompt_logprobs_from",
        "request_id",
        "stops",
        "unread",
    )

    def __init__(self, request: GenerateRequest, left: int, *, stops: bool) -> None:
        self.request_id = request.request_id
        self.model = request.model
        self.params = request.params
        self.prompt = request.num_tokens
        self.prompt_logprobs_from = max(1, request.prompt_logprobs_from)
        self.left = left
        self.stops = stops
        self.metered = request.metered
        self.unread = request.num_tokens
        self.made = 0
        self.device_us = 0


class StubEngine:
    """Gives every running request one canned token per step."""

    def __init__(self, options: StubOptions) -> None:
        self._options = options
        self._info = _model_info(options)
        self._infos = [self._info]
        self._leaving: list[tuple[int, str]] = []
        last = min(self._info.vocab_size, 1000)
        self._reply = options.reply or tuple(range(min(5, last - 1), last))
        self._running: dict[int, _Running] = {}
        self._generated = 0
        self._prompted = 0
        self._steps = 0
        self._stats_at = 0.0
        self._stopping = False
        self.num_requests = 0
        """That came, refused ones too."""
        self.tenants: dict[int, float] = {}
        """Weights that clients have set."""
        self.forbidden: set[bytes] = set()
        """Digests of sets of forbidden texts that clients have told of; its canned tokens mind none of them."""
        self.asked: Counter[str] = Counter()
        """Requests by the model that they named."""
        self.asleep = False
        """Whether a client has sent the model to sleep; its requests run all the same."""
        self.server = EngineServer(options.endpoint, device="stub")

    def run(self) -> None:
        """Serves until `stop`, then finishes what runs."""
        self.server.ready(self._infos)
        draining = False
        while not self._stopping or self._running:
            if self._stopping and not draining:
                draining = True
                self.server.goodbye("terminated")
            begin = time.monotonic()
            for message in self.server.poll(0 if self._running else 100):
                if isinstance(message, Cancel):
                    self._cancel(message)
                elif isinstance(message, GenerateRequest):
                    self._add(message)
                else:
                    self._control(message)
            for number in self.server.take_gone():
                for request_id in [i for i in self._running if i >> CLIENT_SHIFT == number]:
                    del self._running[request_id]
            if self._running:
                self._step()
                rest = self._options.step_us / 1e6 - (time.monotonic() - begin)
                if rest > 0:
                    time.sleep(rest)
            self._answer_left()
            self._push_stats(begin)
        self.server.close()

    @property
    def num_running(self) -> int:
        """Requests that have not ended."""
        return len(self._running)

    def stop(self) -> None:
        """Makes `run` return once the running requests have ended."""
        self._stopping = True

    def _add(self, request: GenerateRequest) -> None:
        self.num_requests += 1
        self.asked[request.model] += 1
        options = self._options
        room = self._info.max_model_len - request.num_tokens
        error: AiriError | None = None
        if not any(request.model in (info.name, *info.aliases) for info in self._infos):
            error = ModelNotFoundError(f"model {request.model!r} is not loaded", field="model")
        elif request.pools != (self._info.task != "generate"):
            error = RequestError("the model is for another task", field="model")
        elif abs(request.priority) > MAX_PRIORITY:
            error = RequestError(
                f"priority must be in [{-MAX_PRIORITY}, {MAX_PRIORITY}], got {request.priority}",
                field="priority",
            )
        elif request.forbidden is not None and request.forbidden not in self.forbidden:
            error = RequestError("forbidden: the engine was told of no such set", field="forbidden")
        elif room < 1:
            error = ContextLengthError(
                f"prompt has {request.num_tokens} tokens; at most {self._info.max_model_len - 1} fit",
                field="prompt",
            )
        elif options.max_queued is not None and len(self._running) >= options.max_queued:
            error = QueueFullError(f"{len(self._running)} requests wait; at most {options.max_queued}")
        if error is not None:
            output = Output(request.request_id, [], "error", error=error_info(error))
            self.server.send_outputs(np.empty(0, np.int64), np.empty(0, np.int32), [output])
            return
        left = min(request.params.max_tokens or room, room)
        stops = options.stop_after is not None and not request.params.ignore_eos
        if options.stop_after is not None and stops:
            left, stops = min(left, options.stop_after), options.stop_after <= left
        self._running[request.request_id] = _Running(request, left, stops=stops)
        self._prompted += request.num_tokens

    def _control(self, message: ControlMessage) -> None:
        lines: list[str] = []
        if isinstance(message, SetTenant):
            self.tenants[message.tenant] = message.weight
        elif isinstance(message, Forbid):
            self.forbidden = {each.forbidden.digest for each in message.sets}
        elif isinstance(message, Explain):
            lines = [f"request {message.request_id & MAX_REQUEST_ID} is the stub's"]
        elif isinstance(message, Load):
            self._load(message)
            return
        elif isinstance(message, Unload):
            self._unload(message)
            return
        elif not isinstance(message, WatchKv):  # it has no blocks
            self.asleep = isinstance(message, Sleep)
        self.server.reply(message.call, lines=lines)

    def _load(self, message: Load) -> None:
        name, path = map(json.loads(message.options).__getitem__, ("name", "path"))
        if name in self._options.broken or any(info.name == name for info in self._infos):
            error = RequestError(f"{name!r} cannot be loaded", field="models")
            self.server.reply(message.call, error=error)
            return
        self._infos.append(msgspec.structs.replace(self._info, name=name, aliases=(), path=path))
        self.server.serves(self._infos)
        self.server.reply(message.call)

    def _unload(self, message: Unload) -> None:
        left = [info for info in self._infos if info.name != message.model]
        if len(left) == len(self._infos):
            error = ModelNotFoundError(f"model {message.model!r} is not loaded", field="model")
            self.server.reply(message.call, error=error)
            return
        self._infos = left
        self.server.serves(left)
        self._leaving.append((message.call, message.model))

    def _answer_left(self) -> None:
        """Answers calls whose models have gone: the last request of each has ended."""
        running = {row.model for row in self._running.values()}
        for call, model in self._leaving:
            if model not in running:
                self.server.reply(call)
        self._leaving = [each for each in self._leaving if each[1] in running]

    def _cancel(self, message: Cancel) -> None:
        ended = [self._running.pop(i) for i in message.request_ids if i in self._running]
        outputs = [Output(row.request_id, [], "cancelled", device_us=row.device_us) for row in ended]
        self.server.send_outputs(np.empty(0, np.int64), np.empty(0, np.int32), outputs)

    def _step(self) -> None:
        reply = self._reply
        size = len(reply)
        plain_ids: list[int] = []
        plain_tokens: list[int] = []
        others: list[Output] = []
        for row in self._running.values():
            if not self._reads(row):
                if row.metered:
                    others.append(Output(row.request_id, [], device_us=_taken(row)))
                continue
            token = reply[row.made % size]
            row.made += 1
            row.left -= 1
            if row.made > 1 and row.left and row.params.logprobs is None and not row.metered:
                plain_ids.append(row.request_id)
                plain_tokens.append(token)
            else:
                others.append(self._full_output(row, token))
        for output in others:
            if output.finish_reason is not None:
                del self._running[output.request_id]
        self._generated += len(plain_ids) + sum(len(output.tokens) for output in others)
        self._steps += 1
        self.server.send_outputs(np.array(plain_ids, np.int64), np.array(plain_tokens, np.int32), others)

    def _reads(self, row: _Running) -> bool:
        """Takes a step of a request; whether it gets a token."""
        count = min(row.unread, self._options.chunk or row.unread) or 1
        row.unread = max(0, row.unread - count)
        row.device_us += count * self._options.device_us
        return not row.unread

    def _full_output(self, row: _Running, token: int) -> Output:
        reason: FinishReason | None = None
        if not row.left:
            reason = "stop" if row.stops else "length"
        if reason == "stop" and self._info.eos_token_ids:
            token = self._info.eos_token_ids[0]
        first = row.made == 1
        if self._options.vector:
            return Output(
                request_id=row.request_id,
                tokens=[],
                finish_reason="stop",
                num_prompt_tokens=row.prompt,
                device_us=_taken(row),
                vector=np.array(self._options.vector, "<f4").tobytes(),
            )
        want_prompt = first and row.params.prompt_logprobs is not None
        return Output(
            request_id=row.request_id,
            tokens=[token],
            finish_reason=reason,
            stop_token=token if reason == "stop" else None,
            logprobs=None if row.params.logprobs is None else [self._logprobs(token, row.params.logprobs)],
            prompt_logprobs=self._prompt_logprobs(row) if want_prompt else None,
            num_prompt_tokens=row.prompt,
            num_generated_tokens=row.made if reason else 0,
            device_us=_taken(row),
        )

    def _logprobs(self, token: int, count: int) -> TokenLogprobs:
        others = [t for t in self._reply[:count] if t != token]
        top = [token, *others][:count]
        return TokenLogprobs(token, -0.5, 1, top, [-0.5 - i for i in range(len(top))])

    def _prompt_logprobs(self, row: _Running) -> list[TokenLogprobs | None]:
        count = row.params.prompt_logprobs or 0
        size = len(self._reply)
        first = min(row.prompt_logprobs_from, row.prompt)
        rest = [self._logprobs(self._reply[i % size], count) for i in range(first, row.prompt)]
        return [None] * first + rest

    def _push_stats(self, now: float) -> None:
        if now - self._stats_at < 1.0:
            return
        self._stats_at = now
        model = ModelStats(
            name=self._info.name,
            running=len(self._running),
            kv_blocks_total=self._info.num_kv_blocks,
            kv_blocks_active=len(self._running),
            prompt_tokens=self._prompted,
            prefix_query_tokens=self._prompted,
            generated_tokens=self._generated,
            steps=self._steps,
        )
        self.server.send_stats(EngineStats([model]))


def _taken(row: _Running) -> int:
    """Device time since it was last said."""
    taken, row.device_us = row.device_us, 0
    return taken


def _model_info(options: StubOptions) -> ModelInfo:
    """Vocabulary size and end of sequence from the folder's config.json, where there is one."""
    config: dict[str, object] = {}
    path = Path(options.model_path) / "config.json"
    if path.is_file():
        config = json.loads(path.read_text())
    eos = config.get("eos_token_id")
    eos_ids = eos if isinstance(eos, list) else [eos]
    vocab_size = config.get("vocab_size")
    return ModelInfo(
        name=options.name,
        aliases=options.aliases,
        path=options.model_path,
        architecture="stub",
        max_model_len=options.max_model_len,
        vocab_size=vocab_size if isinstance(vocab_size, int) else 32000,
        eos_token_ids=tuple(i for i in eos_ids if isinstance(i, int)),
        task=options.task,
        labels=options.labels,
        vector_size=len(options.vector),
        num_kv_blocks=1024,
        max_num_seqs=1024,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a stub engine until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="python -m airi.transport.stub", description="A stub engine.")
    parser.add_argument("--endpoint", required=True, help="ipc://PATH or tcp://127.0.0.1:PORT")
    parser.add_argument("--model-path", default="stub", help="folder whose tokenizer the gateway loads")
    parser.add_argument("--name", default="stub")
    parser.add_argument("--alias", action="append", default=[])
    parser.add_argument("--reply", default="", help="comma-separated token ids of every answer")
    parser.add_argument("--stop-after", type=int, default=None)
    parser.add_argument("--max-model-len", type=int, default=4096)
    parser.add_argument("--max-queued", type=int, default=None)
    parser.add_argument("--step-us", type=int, default=0)
    parser.add_argument("--chunk", type=int, default=None, help="prompt tokens of a request in one step")
    parser.add_argument("--device-us", type=int, default=0, help="device time of a token")
    given = parser.parse_args(arguments)
    options = StubOptions(
        endpoint=given.endpoint,
        model_path=given.model_path,
        name=given.name,
        aliases=tuple(given.alias),
        reply=tuple(int(item) for item in given.reply.split(",") if item),
        stop_after=given.stop_after,
        max_model_len=given.max_model_len,
        max_queued=given.max_queued,
        step_us=given.step_us,
        chunk=given.chunk,
        device_us=given.device_us,
    )
    engine = StubEngine(options)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: engine.stop())
    sys.stdout.write(f"ready {engine.server.endpoint}\n")
    sys.stdout.flush()
    engine.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
