"""The flags of `airi simulate`, in the groups that `--help` shows."""

from __future__ import annotations

import json as jsonlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from airi.errors import ConfigError

if TYPE_CHECKING:
    from airi.simulate import Generator, SimulationOptions, StepTime, Trace
    from airi.simulate.batches import Stream

__all__ = ["FleetFlags", "OutputFlags", "ReplayFlags", "TraceFlags"]

_fleet = partial(typer.Option, rich_help_panel="Fleet")
_trace = partial(typer.Option, rich_help_panel="Trace")
_output = partial(typer.Option, rich_help_panel="Output")
_replay = partial(typer.Option, rich_help_panel="Replay")


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceFlags:
    """Which requests."""

    trace: Annotated[
        Path | None,
        _trace(
            help="Requests to simulate: CSV or JSON lines, gzip or not; Azure's, Mooncake's, ServeGen's and "
            "others with such columns."
        ),
    ] = None
    generate: Annotated[
        str | None,
        _trace(
            help="Instead of a trace: requests drawn from NAME=NUMBER pairs between commas. rate (per second), "
            "requests, input and output (mean tokens), spread (of lengths) and burstiness (of gaps, 1: Poisson), "
            "tenants, prefix (tokens that a tenant's prompts begin with), seed."
        ),
    ] = None
    speedup: Annotated[float, _trace(help="Have requests arrive this many times as fast.")] = 1.0
    copies: Annotated[int, _trace(help="Copies of every request, spread until the next one.")] = 1
    repeat: Annotated[int, _trace(help="Play the trace so often, one after the other.")] = 1
    limit: Annotated[int | None, _trace(help="Only the first so many requests.")] = None
    hash_block: Annotated[int, _trace(help="Tokens that one of a trace's hash_ids stands for.")] = 512
    root_tenants: Annotated[
        int | None, _trace(help="Make so many tenants of the first of a request's hash_ids.")
    ] = None
    concurrency: Annotated[
        int | None, _trace(help="Requests in the fleet at most: later ones arrive when one ends.")
    ] = None

    def source(self) -> Trace | Generator:
        """Where requests come from; raises ConfigError."""
        from airi.simulate import Generator, Trace

        part_tokens = _positive("hash_block", self.hash_block, 2**20)
        if self.generate is not None:
            return Generator.parse(self.generate, part_tokens=part_tokens)
        return Trace(self.trace or Path(), part_tokens=part_tokens)

    def stream(self, file: Trace | Generator) -> Stream:
        """Its requests, changed as the flags say; raises ConfigError."""
        from airi.simulate import batches as b

        stream: Stream = file.batches
        if self.limit is not None:
            stream = b.limited(stream, _positive("limit", self.limit))
        if self.root_tenants is not None:
            stream = b.with_root_tenants(stream, _positive("root_tenants", self.root_tenants))
        if _positive("repeat", self.repeat) > 1:
            stream = b.repeated(stream, self.repeat)
        if not 1e-6 <= self.speedup <= 1e6:
            raise ConfigError(f"speedup is {self.speedup:g}; it must be in [1e-6, 1e6]", field="speedup")
        if self.speedup != 1.0:
            stream = b.sped_up(stream, self.speedup)
        if _positive("copies", self.copies, 10**6) > 1:
            stream = b.copied(stream, self.copies)
        return stream


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetFlags:
    """What serves them."""

    replicas: Annotated[int, _fleet(help="How many engines.")] = 1
    router: Annotated[
        str,
        _fleet(
            help="How requests find their engine: round_robin, least_loaded, prefix (longest shared "
            "beginning that was sent there, unless that engine is overloaded), or locality (least predicted "
            "time to first token, by what engines tell of their caches and work)."
        ),
    ] = "prefix"
    block_size: Annotated[int, _fleet(help="Tokens per KV block.")] = 16
    kv_blocks: Annotated[
        int | None,
        _fleet(help="KV blocks per engine; left out: what the memory of the preset's device holds."),
    ] = None
    host_kv_blocks: Annotated[
        int,
        _fleet(help="KV blocks that host memory beside each engine holds: copies of what leaves the device."),
    ] = 0
    disk_kv_blocks: Annotated[int, _fleet(help="The same on a disk, behind --host-kv-blocks.")] = 0
    host_kv_gb_per_s: Annotated[
        float, _fleet(help="How fast KV is copied between device and host, each way.")
    ] = 50.0
    disk_kv_gb_per_s: Annotated[
        float, _fleet(help="How fast KV is copied between host and disk, each way.")
    ] = 6.0
    kv_bytes_per_token: Annotated[
        int | None,
        _fleet(help="What copies move per token, of all layers; left out: what the preset's model has."),
    ] = None
    step_time: Annotated[
        str,
        _fleet(
            help="How long steps take: a JSON file, or a preset computed from data sheets: h200-8b-fp8, "
            "h200-8b-bf16, h200-70b-fp8, h100-8b-fp8, h100-8b-bf16."
        ),
    ] = "h200-8b-fp8"
    max_num_seqs: Annotated[int, _fleet(help="Requests that run on an engine at the same time.")] = 256
    max_batch_tokens: Annotated[int, _fleet(help="Tokens of a step.")] = 2048
    max_queued: Annotated[
        int | None,
        _fleet(help="Requests that may wait at an engine before more are refused; left out: any number."),
    ] = None
    admission: Annotated[str, _fleet(help="max_util or no_evict.")] = "max_util"
    setting: Annotated[
        list[str] | None,
        _fleet(
            "--set",
            help="Another setting of the scheduler, NAME=JSON, such as fairness_gap_tokens=4096; may be "
            "repeated.",
        ),
    ] = None
    tenant_weight: Annotated[list[str] | None, _fleet(help="TENANT=WEIGHT; may be repeated.")] = None
    ttft_ms: Annotated[float | None, _fleet(help="Target for first tokens.")] = None
    itl_ms: Annotated[float | None, _fleet(help="Target between tokens.")] = None

    def options(self, trace: TraceFlags, source: Trace | Generator, *, keep_rows: bool) -> SimulationOptions:
        """The simulation of requests from `source`; raises ConfigError."""
        from airi.simulate import SimulationOptions

        same = (
            "replicas",
            "router",
            "block_size",
            "kv_blocks",
            "host_kv_blocks",
            "disk_kv_blocks",
            "host_kv_gb_per_s",
            "disk_kv_gb_per_s",
            "kv_bytes_per_token",
            "max_num_seqs",
            "max_batch_tokens",
            "admission",
        )
        others: dict[str, Any] = {name: getattr(self, name) for name in (*same, "ttft_ms", "itl_ms")}
        if self.max_queued is not None:
            others["max_queued"] = self.max_queued
        runtime, model = _settings(self.setting or [])
        return SimulationOptions(
            step_time=_step_time(self.step_time),
            concurrency=trace.concurrency,
            part_tokens=trace.hash_block,
            tenant_weights=_weights(self.tenant_weight or [], source),
            keep_rows=keep_rows,
            runtime=runtime,
            model=model,
            **others,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayFlags:
    """A recording instead."""

    replay: Annotated[
        Path | None,
        _replay(
            help="Instead of a trace: a file of `airi serve --record-steps`. Replays it and says whether "
            "every plan is the same, byte for byte."
        ),
    ] = None
    fit_step_time: Annotated[
        Path | None,
        _replay(help="With --replay: write how long steps take, as the recording shows, for --step-time."),
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputFlags:
    """What is told, and where."""

    json: Annotated[bool, _output("--json", help="Print one JSON object.")] = False
    timeline: Annotated[bool, _output("--timeline", help="With --json, also the timeline.")] = False
    plot: Annotated[Path | None, _output(help="Draw the timeline into this SVG file.")] = None
    rows: Annotated[
        Path | None, _output(help="Write a CSV line for every finished request, with its exact times.")
    ] = None


def _step_time(given: str) -> StepTime | str:
    from airi.simulate import PRESETS, StepTime

    if given in PRESETS:
        return given
    if not given or not Path(given).exists():
        known = ", ".join(PRESETS)
        raise ConfigError(f"step_time is {given!r}; give a file or one of: {known}", field="step_time")
    return StepTime.load(given)


def _settings(given: list[str]) -> tuple[dict[str, object], dict[str, object]]:
    """Settings of the core's RuntimeConfig and ModelConfig from NAME=JSON."""
    import inspect
    import re

    from airi import _core

    runtime: dict[str, object] = {}
    model: dict[str, object] = {}
    for text in given:
        name, separator, value = text.partition("=")
        try:
            parsed = jsonlib.loads(value)
        except ValueError:
            parsed = None
            separator = ""
        if not separator or not name:
            raise ConfigError(f"set is {text!r}; give NAME=JSON, such as aging_us=null", field="set")
        for config, settings in ((_core.ModelConfig, model), (_core.RuntimeConfig, runtime)):
            if name != "self" and re.search(rf"\b{re.escape(name)}:", inspect.getdoc(config.__init__) or ""):
                settings[name] = parsed
                break
        else:
            raise ConfigError(f"set is {text!r}; the scheduler has no setting {name!r}", field="set")
    return runtime, model


def _weights(given: list[str], source: Trace | Generator) -> dict[int, float]:
    weights = {}
    for text in given:
        tenant, separator, weight = text.rpartition("=")
        try:
            number = float(weight)
        except ValueError:
            separator = ""
        if not separator or not tenant:
            raise ConfigError(f"tenant_weight is {text!r}; give TENANT=WEIGHT", field="tenant_weight")
        weights[source.tenant(tenant)] = number
    return weights


def _positive(name: str, value: int, most: int | None = None) -> int:
    if value < 1 or (most is not None and value > most):
        accepted = "at least 1" if most is None else f"a whole number from 1 to {most}"
        raise ConfigError(f"{name} is {value}; it must be {accepted}", field=name)
    return value
