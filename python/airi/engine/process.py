"""The engine in a process of its own: loads models, then turns messages into steps and steps into messages.

    python -m airi.engine.process --endpoint ipc:///run/airi/engine --options '{"models": [{"path": "..."}]}'

Started by `airi.transport.EngineSupervisor`. SIGTERM drains: what was accepted is finished, at most for
`--drain-s` seconds, then the process exits with 0. While models still load it exits at once.
"""

from __future__ import annotations

import argparse
import gc
import logging
import math
import os
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from airi import _core
from airi.engine.control import Control
from airi.engine.engine import Engine, StepOutputs, now_us
from airi.engine.loading import HostedModel
from airi.engine.options import EngineOptions, SettledOptions
from airi.errors import AiriError, ConfigError, EngineDeadError, RequestError
from airi.outputs import Output, error_info
from airi.sampling_params import SamplingParams
from airi.transport.messages import (
    Cancel,
    EngineStats,
    GenerateRequest,
    ModelInfo,
    ModelStats,
    Progress,
    TierStats,
)
from airi.transport.server import CLIENT_SHIFT, EngineServer, Received

__all__ = ["EngineProcess", "main"]

logger = logging.getLogger("airi.engine")

_IDLE_POLL_MS = 250
_BLOCKED_POLL_MS = 2
_STATS_INTERVAL_S = 1.0
_FAILED_LINGER_S = 1.0
_PROGRESS_INTERVAL_S = 0.05
_DIED = 3
"""Exit status of an engine that lost a device's process."""
_NO_IDS = np.empty(0, np.int64)
_NO_TOKENS = np.empty(0, np.int32)


class _OrphanError(Exception):
    """Leaves loading when nobody waits for it any more."""


class EngineProcess:
    """The loop between the socket and the engine: one thread, no waiting while there is work.

    *Thread safety*: none; `stop` may be called from a signal handler.
    *Invariant*: every request that was received gets exactly one last output, unless its client has gone
    or the process is killed.
    """

    def __init__(
        self, options: EngineOptions, endpoint: str, *, parent_pid: int | None = None, drain_s: float = 30.0
    ) -> None:
        self.server = EngineServer(endpoint)
        self.serves = False
        """Whether loading is over, and requests may have been accepted."""
        self._options = options
        self._parent_pid = parent_pid
        self._drain_s = drain_s
        self._stopping = False
        self._drain_until: float | None = None
        self._progress_at = 0.0
        self._stats_at = 0.0
        self._refused: list[Output] = []

    def stop(self) -> None:
        """Makes `run` finish what was accepted and return."""
        self._stopping = True

    def run(self) -> int:
        """Loads and serves until stopped; returns the exit status."""
        try:
            engine = Engine(self._options, self._on_progress)
            _warm_up(engine)
            engine.prepare_structured()
        except _OrphanError:
            return 0
        except AiriError as error:
            self.server.fail(error)
            self._wait_for_a_client()
            if self._parent_pid is None or not self.server.num_clients:
                logger.error("%s", error)  # else whoever started this process has heard it, and says it once
            self.server.close()
            return 1
        gc.collect()
        gc.freeze()  # what lives as long as the process is not worth looking at again
        self.serves = True
        self.server.ready([_model_info(model, engine.options) for model in engine.models])
        status = 0
        try:
            self._serve(engine)
        except EngineDeadError as error:
            logger.error("%s", error)
            status = _DIED
        engine.close()
        self.server.close()
        return status

    # -- loading -------------------------------------------------------------------------------

    def _on_progress(self, model: str, stage: str, done: float, total: float) -> None:
        now = time.monotonic()
        if now - self._progress_at < _PROGRESS_INTERVAL_S and done < total:
            return
        self._progress_at = now
        self.server.poll(0)
        self.server.progress(Progress(model, stage, done, total))
        if self._is_orphan():
            raise _OrphanError

    def _wait_for_a_client(self) -> None:
        """Gives whoever started this process the time to connect and hear why it ends."""
        until = time.monotonic() + _FAILED_LINGER_S
        while not self.server.num_clients and time.monotonic() < until:
            self.server.poll(50)

    # -- serving -------------------------------------------------------------------------------

    def _serve(self, engine: Engine) -> None:
        timeout_ms = _IDLE_POLL_MS

        def tell() -> None:
            self.server.serves([_model_info(model, engine.options) for model in engine.served])

        control = Control(engine, self.server, tell)
        while not self._is_orphan():
            engine.raise_if_dead()
            for message in self._messages(engine, timeout_ms):
                if isinstance(message, Cancel):
                    for request_id in message.request_ids:
                        engine.cancel(request_id)
                elif isinstance(message, GenerateRequest):
                    self._add(engine, message)
                else:
                    control.handle(message)
            for number in self.server.take_gone():
                control.forget_client(number)
                for request_id in engine.request_ids:
                    if request_id >> CLIENT_SHIFT == number:
                        engine.cancel(request_id)
            had_work = engine.has_work()
            outputs = engine.step_columns() if had_work or engine.is_moving else StepOutputs()
            control.answer_settled()
            if self._refused:
                outputs.others += self._refused
                self._refused = []
            self.server.send_outputs(outputs.request_ids, outputs.tokens, outputs.others)
            control.kv.tell()
            self._push_stats(engine, at_once=had_work and not engine.has_work())
            if self._stopping and self._drained(engine):
                return
            timeout_ms = 0 if outputs.progressed else _patience_ms(engine, is_waited_for=control.is_waiting)

    def _messages(self, engine: Engine, timeout_ms: int) -> list[Received]:
        """What has come; while a step runs, also what comes until the next one is to be planned."""
        done_fd, wait_s = engine.watch_step()
        return self.server.poll_until(done_fd, wait_s) if wait_s else self.server.poll(timeout_ms)

    def _add(self, engine: Engine, request: GenerateRequest) -> None:
        try:
            if self._stopping:
                raise EngineDeadError("the engine is shutting down")
            _queue(engine, request)
        except AiriError as error:
            self._refuse(request, error)
        except Exception:  # one malformed request must not end the others
            logger.exception("a request could not be added")
            self._refuse(request, RequestError("the request could not be read; see the engine's log"))

    def _refuse(self, request: GenerateRequest, error: AiriError) -> None:
        self._refused.append(Output(request.request_id, [], "error", error=error_info(error)))

    def _drained(self, engine: Engine) -> bool:
        """Whether the process may end now; ends what is left when the time for draining is over."""
        now = time.monotonic()
        if self._drain_until is None:
            if engine.request_ids:
                logger.info("draining %d requests", len(engine.request_ids))
            self._drain_until = now + self._drain_s
            self.server.goodbye("terminated")
        if engine.has_work() and now < self._drain_until:
            return False
        info = error_info(EngineDeadError(f"the engine shut down; it drains for {self._drain_s:g} s at most"))
        left = [Output(request_id, [], "error", error=info) for request_id in engine.request_ids]
        self.server.send_outputs(_NO_IDS, _NO_TOKENS, left)
        return True

    def _is_orphan(self) -> bool:
        """Whether the process that started this one has gone."""
        return self._parent_pid is not None and os.getppid() != self._parent_pid

    def _push_stats(self, engine: Engine, *, at_once: bool) -> None:
        now = time.monotonic()
        if not at_once and now - self._stats_at < _STATS_INTERVAL_S:
            return
        self._stats_at = now
        served = {model.index for model in engine.served}
        models = [
            ModelStats(
                name=model.name,
                running=core.running,
                waiting=core.waiting,
                kv_blocks_total=core.capacity,
                kv_blocks_active=core.active_blocks,
                kv_blocks_cached=core.cached_blocks,
                prefix_query_tokens=core.query_tokens,
                prefix_hit_tokens=core.hit_tokens,
                preemptions=core.preemptions,
                prompt_tokens=counters.prompt_tokens,
                generated_tokens=counters.generated_tokens,
                steps=counters.steps,
                device_us=counters.device_us,
                first_tokens_on_time=core.first_tokens_on_time,
                first_tokens_late=core.first_tokens_late,
                next_tokens_on_time=core.next_tokens_on_time,
                next_tokens_late=core.next_tokens_late,
                requests_on_time=core.requests_on_time,
                requests_late=core.requests_late,
                best_effort_requests=core.best_effort,
                state=engine.model_state(model.index).name.lower(),
                tiers=_tier_stats(core) if engine.options.host_kv_memory else None,
                step_time=_step_time(engine, model) if model.index in served else None,
            )
            for model, core, counters in zip(engine.models, engine.stats(), engine.counters, strict=True)
        ]
        self.server.send_stats(EngineStats(models))


def _queue(engine: Engine, request: GenerateRequest) -> None:
    tokens, timeout = np.frombuffer(request.tokens, np.int32), request.timeout_us
    common: dict[str, Any] = {
        "tenant": request.tenant,
        "priority": request.priority,
        "deadline_us": None if timeout is None else now_us() + timeout,
        "metered": request.metered,
    }
    if request.pools:
        engine.add_pooling(request.request_id, request.model, tokens, **common)
        return
    engine.add_request(
        request.request_id,
        request.model,
        tokens,
        request.params,
        cache_salt=request.cache_salt,
        cache_salt_from=request.cache_salt_from,
        forbidden=request.forbidden,
        shown_tokens=request.shown_tokens,
        prompt_logprobs_from=request.prompt_logprobs_from,
        **common,
    )


def _patience_ms(engine: Engine, *, is_waited_for: bool) -> int:
    """How long to listen after a step without a batch."""
    if is_waited_for:
        return _BLOCKED_POLL_MS
    if not (engine.has_work() or engine.is_moving):
        return _IDLE_POLL_MS
    return max(_BLOCKED_POLL_MS, math.ceil(min(engine.rest_s() * 1000, _IDLE_POLL_MS)))


def _tier_stats(core: _core.ModelStats) -> TierStats:
    tiers = core.tiers
    return TierStats(
        host_blocks=tiers.host_blocks,
        disk_blocks=tiers.disk_blocks,
        stores=tiers.stores,
        loads=tiers.loads,
        spills=tiers.spills,
        fetches=tiers.fetches,
        failures=tiers.failures,
        dropped_stores=tiers.dropped_stores,
        swaps=core.swaps,
    )


def _step_time(engine: Engine, model: HostedModel) -> list[tuple[float, float, float, float, float]] | None:
    learnt = engine.step_time(model.index)
    return learnt.pieces if learnt.is_trained else None


def _warm_up(engine: Engine) -> None:
    """One token from every model: pays for first touches before a client does, and shows that it runs."""
    for model in engine.models:
        if model.is_pooling:
            engine.add_pooling(model.index, model.index, [0])
        else:
            engine.add_request(model.index, model.index, [0], SamplingParams(max_tokens=1, temperature=0.0))
    while engine.has_work():
        for output in engine.step():
            if output.finish_reason == "error":
                raise ConfigError(f"model {engine.models[output.request_id].name} fails on its first token")


def _model_info(model: HostedModel, options: SettledOptions) -> ModelInfo:
    info = model.runner.model.info
    return ModelInfo(
        name=model.name,
        aliases=model.options.aliases,
        path=str(model.path),
        architecture=info.family,
        dtype=info.dtype,
        max_model_len=model.max_model_len,
        vocab_size=info.vocab_size,
        eos_token_ids=model.eos_token_ids,
        block_size=model.block_size,
        num_kv_blocks=model.num_kv_blocks,
        max_num_seqs=options.max_num_seqs,
        num_parameters=info.num_parameters,
        index=model.index,
        num_cacheable_blocks=model.num_kv_blocks
        + (options.host_kv_memory + options.disk_kv_memory)
        // model.runner.model.bytes_per_block(model.block_size),
        max_batch_tokens=options.max_batch_tokens,
        task=info.task,
        labels=info.labels,
        is_multi_label=info.is_multi_label,
        vector_size=info.vector_size,
        digest=info.digest,
        pooling=info.pooling,
        normalizes=info.normalizes,
        matryoshka_dimensions=info.matryoshka_dimensions,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs an engine process; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m airi.engine.process", description="An AIRI engine process."
    )
    parser.add_argument("--endpoint", required=True, help="ipc://PATH or tcp://127.0.0.1:PORT")
    parser.add_argument("--options", required=True, help="EngineOptions as JSON")
    parser.add_argument("--parent-pid", type=int, default=None, help="exit when this is no longer the parent")
    parser.add_argument("--drain-s", type=float, default=30.0, help="seconds to finish requests on SIGTERM")
    parser.add_argument("--log-level", default="warning")
    given = parser.parse_args(arguments)
    logging.basicConfig(
        level=given.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    try:
        options = msgspec.json.decode(given.options, type=EngineOptions)
        process = EngineProcess(options, given.endpoint, parent_pid=given.parent_pid, drain_s=given.drain_s)
    except (AiriError, msgspec.ValidationError) as error:
        logger.error("%s", error)
        return 2

    def stop(*_: object) -> None:
        if not process.serves:
            os._exit(0)  # nothing to finish; an exception would first wait for the threads of a download
        process.stop()

    signal.signal(signal.SIGTERM, stop)
    # A terminal's Ctrl-C reaches the whole group; the parent decides what it means for its engine.
    signal.signal(signal.SIGINT, signal.SIG_IGN if given.parent_pid else stop)
    status = process.run()
    if status == _DIED:
        logging.shutdown()
        os._exit(status)  # its threads may wait for a device for ever
    return status


if __name__ == "__main__":
    sys.exit(main())
