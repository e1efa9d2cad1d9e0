"""The flags of `airi serve` but for its models, in the groups that `--help` shows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from airi.cli._device_flags import (
    DEVICE_FLAGS,
    DEVICE_HELP,
    DTYPE_HELP,
    KV_CACHE_DTYPE_HELP,
    QUANTIZATION_HELP,
    TENSOR_PARALLEL_HELP,
)
from airi.cli._flags import parse_size, parse_target
from airi.cli._model_flags import ModelFlags

if TYPE_CHECKING:
    from airi.engine.options import EngineOptions
    from airi.gateway.options import ServerOptions

__all__ = ["EngineFlags", "HttpFlags", "MemoryFlags", "ScheduleFlags", "engine_options"]

_http = partial(typer.Option, rich_help_panel="HTTP")
_engine = partial(typer.Option, rich_help_panel="Engine")
_memory = partial(typer.Option, rich_help_panel="Memory")
_schedule = partial(typer.Option, rich_help_panel="Scheduling")


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpFlags:
    """Where to listen, and to whom."""

    host: Annotated[str, _http(help="Address to listen on; one that others can reach needs keys.")] = (
        "127.0.0.1"
    )
    port: Annotated[int, _http(help="Port; 0 takes a free one.")] = 8000
    grpc_port: Annotated[
        int | None,
        _http(
            help="Port of the Open Inference Protocol over gRPC; needs the extra grpc. Left out: HTTP alone."
        ),
    ] = None
    api_key: Annotated[
        list[str] | None,
        _http(
            envvar="AIRI_API_KEY",
            help="Key that clients must send; may be repeated. Keys share the device evenly. Beside a config the "
            "variable is for clients alone.",
            show_envvar=True,
        ),
    ] = None
    state: Annotated[
        str | None,
        _http(
            envvar="AIRI_STATE",
            help="Database of the keys that `airi keys` makes: sqlite:///PATH or postgresql://...; with it, callers "
            "must have one.",
            show_envvar=True,
        ),
    ] = None
    cors_origin: Annotated[
        list[str] | None, _http(help="Web origin whose scripts may call, or *; may be repeated.")
    ] = None
    tls_cert: Annotated[Path | None, _http(help="Certificate chain (PEM); turns on HTTPS.")] = None
    tls_key: Annotated[Path | None, _http(help="Private key of the certificate (PEM).")] = None
    max_body: Annotated[str, _http(help="Largest request body accepted.")] = "32MiB"
    drain_timeout: Annotated[float, _http(help="Seconds that running requests get after SIGTERM.")] = 120.0

    def options(self, *, chat_template: str | None) -> ServerOptions:
        """As the gateway takes them; raises ConfigError."""
        from airi.gateway import AppOptions, ServerOptions

        app = AppOptions(
            api_keys=tuple(self.api_key or ()),
            state=self.state,
            cors_origins=tuple(self.cors_origin or ()),
            body_limit=parse_size("max_body", self.max_body),
        )
        return ServerOptions(
            app=app,
            host=self.host,
            port=self.port,
            grpc_port=self.grpc_port,
            tls_cert=self.tls_cert,
            tls_key=self.tls_key,
            chat_template=chat_template,
            drain_timeout_s=self.drain_timeout,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFlags:
    """What runs the models."""

    device: Annotated[str, _engine(help=DEVICE_HELP)] = "auto"
    dtype: Annotated[str, _engine(help=DTYPE_HELP)] = "auto"
    kv_cache_dtype: Annotated[str, _engine(help=KV_CACHE_DTYPE_HELP)] = "auto"
    quantization: Annotated[str | None, _engine(help=QUANTIZATION_HELP)] = None
    tensor_parallel_size: Annotated[int, _engine(help=TENSOR_PARALLEL_HELP)] = 1
    threads: Annotated[int | None, _engine(help="Threads that compute; left out: all cores.")] = None
    max_model_len: Annotated[
        int | None, _engine(help="Prompt and answer together, in tokens; left out: the model's window.")
    ] = None
    record_steps: Annotated[
        Path | None,
        _engine(
            help="Record everything that the scheduler is told into this file, for `airi simulate --replay`. "
            "Token ids are replaced by others drawn at random, equal ones by equal ones, so that shared "
            "beginnings stay visible and texts do not."
        ),
    ] = None
    decision_records: Annotated[
        int,
        _engine(
            help="Decisions about requests that are kept, to say why one waited or was taken off; 48 bytes each."
        ),
    ] = 1 << 14
    replicas: Annotated[
        int,
        _engine(
            help="Engine processes with the same models, among which requests are divided. On CPUs they share "
            "--threads and --kv-memory; on GPUs each has one of its own, with --kv-memory each."
        ),
    ] = 1
    engine: Annotated[
        list[str] | None,
        _engine(
            help="Use the engine that runs at this endpoint (ipc://... or tcp://...) instead of starting one; may be "
            "repeated, for replicas. What a config says of engines is then those engines' business."
        ),
    ] = None

    def options(self) -> dict[str, Any]:
        """For EngineOptions."""
        names = (*DEVICE_FLAGS, "threads", "max_model_len", "decision_records")
        record_steps = None if self.record_steps is None else str(self.record_steps.absolute())
        return {name: getattr(self, name) for name in names} | {"record_steps": record_steps}


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryFlags:
    """What keys and values lie in."""

    kv_memory: Annotated[
        str | None,
        _memory(
            help="Memory for keys and values, such as 8GiB or 500MB; left out: half of what is free, on a GPU 85 %."
        ),
    ] = None
    host_kv_memory: Annotated[
        str | None,
        _memory(
            help="Memory for copies of keys and values that leave --kv-memory, such as 32GiB; left out: none."
        ),
    ] = None
    disk_kv_path: Annotated[
        Path | None, _memory(help="Folder for what leaves --host-kv-memory in turn, on a fast disk.")
    ] = None
    disk_kv_memory: Annotated[str | None, _memory(help="How much of that disk to take, such as 200GiB.")] = (
        None
    )
    block_size: Annotated[
        int | None, _memory(help="Tokens per KV block; left out: 16 on CPUs, 64 on GPUs.")
    ] = None
    prefix_caching: Annotated[
        bool, _memory(help="Keep what prompts began with for those that begin alike.")
    ] = True
    isolate_tenants: Annotated[
        bool, _memory(help="API keys share no cached prefixes, so that none learns what others have sent.")
    ] = False

    def options(self) -> dict[str, Any]:
        """For EngineOptions."""
        sizes = {
            name: None if text is None else parse_size(name, text)
            for name in ("kv_memory", "host_kv_memory", "disk_kv_memory")
            for text in [getattr(self, name)]
        }
        return {
            "kv_memory": sizes["kv_memory"],
            "host_kv_memory": sizes["host_kv_memory"] or 0,
            "disk_kv_path": None if self.disk_kv_path is None else str(self.disk_kv_path.absolute()),
            "disk_kv_memory": sizes["disk_kv_memory"] or 0,
            "block_size": self.block_size,
            "prefix_caching": self.prefix_caching,
            "isolate_tenants": self.isolate_tenants,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleFlags:
    """Who runs when."""

    max_num_seqs: Annotated[int, _schedule(help="Requests that run at the same time.")] = 256
    max_batch_tokens: Annotated[
        int | None,
        _schedule(
            help="Tokens in one step, prompts and answers together; left out: 512 on CPUs, 2048 on GPUs."
        ),
    ] = None
    max_queued: Annotated[int, _schedule(help="Requests that may wait; more get status 429.")] = 4096
    admission: Annotated[
        str,
        _schedule(
            help="max_util starts a request when its next step fits, and may take it off again; no_evict when all of "
            "it fits."
        ),
    ] = "max_util"
    async_scheduling: Annotated[bool, _schedule(help="Plan each step while the one before it runs.")] = True
    ttft_ms: Annotated[
        list[str] | None,
        _schedule(
            help="Milliseconds that a request is promised from its arrival to the first token; PRIORITY=MS for those "
            "of one priority, may be repeated. Left out: no promise."
        ),
    ] = None
    itl_ms: Annotated[
        list[str] | None,
        _schedule(
            help="Milliseconds that a stream is promised from one token to the next; otherwise as --ttft-ms."
        ),
    ] = None
    step_warmup_s: Annotated[
        float, _schedule(help="Seconds, about, to measure steps at the start where something is promised.")
    ] = 0.5
    fairness_gap_tokens: Annotated[
        int | None,
        _schedule(
            help="How far, in tokens, a waiting API key may fall behind another in service before a request of that "
            "one makes way; left out: it waits until others finish."
        ),
    ] = None
    schedule_policy: Annotated[
        str,
        _schedule(
            help="Who of the waiting goes first: lpm, whose prompt has the longest cached prefix, within what its API "
            "key is due; or fcfs, the first of the API key that was served least."
        ),
    ] = "lpm"
    locality_quantum_tokens: Annotated[
        int,
        _schedule(
            help="With lpm: how far, in tokens, an API key may be served ahead of others for its cached prefixes."
        ),
    ] = 4096
    dedupe_steps: Annotated[
        int,
        _schedule(
            help="Steps that a prompt may wait for a prefix which another is just computing; 0: never."
        ),
    ] = 128

    def options(self) -> dict[str, Any]:
        """For EngineOptions."""
        given = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return given | {name: parse_target(name, given[name] or []) for name in ("ttft_ms", "itl_ms")}


def engine_options(
    models: ModelFlags, engine: EngineFlags, memory: MemoryFlags, schedule: ScheduleFlags
) -> EngineOptions:
    """An engine of these flags; raises ConfigError."""
    from airi.engine.options import EngineOptions

    return EngineOptions(
        models=models.options(), **engine.options(), **memory.options(), **schedule.options()
    )
