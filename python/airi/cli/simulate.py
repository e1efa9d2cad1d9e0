"""`airi simulate`: a trace of requests through simulated replicas of the scheduler."""

from __future__ import annotations

import contextlib
import json as jsonlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from airi.cli._simulate_output import row_writer, show_progress, show_report, write_text
from airi.errors import ConfigError

if TYPE_CHECKING:
    from airi.simulate import Generator, Report, SimulationOptions, Trace
    from airi.simulate.batches import Stream

_FLEET = "Fleet"
_TRACE = "Trace"
_OUTPUT = "Output"
_REPLAY = "Replay"


def simulate(
    *,
    trace: Annotated[
        Path | None,
        typer.Option(
            help="Requests to simulate: CSV or JSON lines, gzip or not; Azure's, Mooncake's, ServeGen's and "
            "others with such columns.",
            rich_help_panel=_TRACE,
            show_default=False,
        ),
    ] = None,
    generate: Annotated[
        str | None,
        typer.Option(
            help="Instead of a trace: requests drawn from NAME=NUMBER pairs between commas. rate (per second), "
            "requests, input and output (mean tokens), spread (of lengths) and burstiness (of gaps, 1: Poisson), "
            "tenants, prefix (tokens that a tenant's prompts begin with), seed.",
            rich_help_panel=_TRACE,
            show_default=False,
        ),
    ] = None,
    replicas: Annotated[int, typer.Option(help="How many engines.", rich_help_panel=_FLEET)] = 1,
    router: Annotated[
        str,
        typer.Option(
            help="How requests find their engine: round_robin, least_loaded, or prefix (longest shared "
            "beginning, unless that engine is overloaded).",
            rich_help_panel=_FLEET,
        ),
    ] = "prefix",
    block_size: Annotated[int, typer.Option(help="Tokens per KV block.", rich_help_panel=_FLEET)] = 16,
    kv_blocks: Annotated[
        int | None,
        typer.Option(
            help="KV blocks per engine; left out: what the memory of the preset's device holds.",
            rich_help_panel=_FLEET,
            show_default=False,
        ),
    ] = None,
    step_time: Annotated[
        str,
        typer.Option(
            help="How long steps take: a JSON file, or a preset computed from data sheets: h200-8b-fp8, "
            "h200-8b-bf16, h200-70b-fp8, h100-8b-fp8, h100-8b-bf16.",
            rich_help_panel=_FLEET,
        ),
    ] = "h200-8b-fp8",
    max_num_seqs: Annotated[
        int, typer.Option(help="Requests that run on an engine at the same time.", rich_help_panel=_FLEET)
    ] = 256,
    max_batch_tokens: Annotated[int, typer.Option(help="Tokens of a step.", rich_help_panel=_FLEET)] = 2048,
    max_queued: Annotated[
        int | None,
        typer.Option(
            help="Requests that may wait at an engine before more are refused; left out: any number.",
            rich_help_panel=_FLEET,
            show_default=False,
        ),
    ] = None,
    admission: Annotated[
        str, typer.Option(help="max_util or no_evict.", rich_help_panel=_FLEET)
    ] = "max_util",
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Another setting of the scheduler, NAME=JSON, such as fairness_gap_tokens=4096; may be "
            "repeated.",
            rich_help_panel=_FLEET,
        ),
    ] = None,
    tenant_weight: Annotated[
        list[str] | None,
        typer.Option(help="TENANT=WEIGHT; may be repeated.", rich_help_panel=_FLEET),
    ] = None,
    ttft_ms: Annotated[
        float | None,
        typer.Option(help="Target for first tokens.", rich_help_panel=_FLEET, show_default=False),
    ] = None,
    itl_ms: Annotated[
        float | None,
        typer.Option(help="Target between tokens.", rich_help_panel=_FLEET, show_default=False),
    ] = None,
    speedup: Annotated[
        float, typer.Option(help="Have requests arrive this many times as fast.", rich_help_panel=_TRACE)
    ] = 1.0,
    copies: Annotated[
        int,
        typer.Option(help="Copies of every request, spread until the next one.", rich_help_panel=_TRACE),
    ] = 1,
    repeat: Annotated[
        int, typer.Option(help="Play the trace so often, one after the other.", rich_help_panel=_TRACE)
    ] = 1,
    limit: Annotated[
        int | None,
        typer.Option(help="Only the first so many requests.", rich_help_panel=_TRACE, show_default=False),
    ] = None,
    hash_block: Annotated[
        int, typer.Option(help="Tokens that one of a trace's hash_ids stands for.", rich_help_panel=_TRACE)
    ] = 512,
    root_tenants: Annotated[
        int | None,
        typer.Option(
            help="Make so many tenants of the first of a request's hash_ids.",
            rich_help_panel=_TRACE,
            show_default=False,
        ),
    ] = None,
    concurrency: Annotated[
        int | None,
        typer.Option(
            help="Requests in the fleet at most: later ones arrive when one ends.",
            rich_help_panel=_TRACE,
            show_default=False,
        ),
    ] = None,
    replay: Annotated[
        Path | None,
        typer.Option(
            help="Instead of a trace: a file of `airi serve --record-steps`. Replays it and says whether "
            "every plan is the same, byte for byte.",
            rich_help_panel=_REPLAY,
            show_default=False,
        ),
    ] = None,
    fit_step_time: Annotated[
        Path | None,
        typer.Option(
            help="With --replay: write how long steps take, as the recording shows, for --step-time.",
            rich_help_panel=_REPLAY,
            show_default=False,
        ),
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object.", rich_help_panel=_OUTPUT)
    ] = False,
    timeline: Annotated[
        bool, typer.Option("--timeline", help="With --json, also the timeline.", rich_help_panel=_OUTPUT)
    ] = False,
    plot: Annotated[
        Path | None,
        typer.Option(
            help="Draw the timeline into this SVG file.", rich_help_panel=_OUTPUT, show_default=False
        ),
    ] = None,
    rows: Annotated[
        Path | None,
        typer.Option(
            help="Write a CSV line for every finished request, with its exact times.",
            rich_help_panel=_OUTPUT,
            show_default=False,
        ),
    ] = None,
) -> None:
    """Play a trace of requests through the scheduler itself, under virtual time.

    Replicas run the very code that serves; only the model is replaced, by a formula for how long a step
    takes. The same command gives the same figures.
    """
    if [trace, generate, replay].count(None) != 2:
        raise ConfigError("give --trace FILE, --generate rate=... or --replay FILE", field="trace")
    if fit_step_time is not None and replay is None:
        raise ConfigError("fit_step_time needs --replay FILE", field="fit_step_time")
    if replay is not None:
        _replay(replay, fit_step_time, as_json=json)
        return
    runtime, model = _settings(setting or [])
    file = _source(trace, generate, _positive("hash_block", hash_block))
    options = _options(
        replicas=replicas,
        router=router,
        block_size=block_size,
        kv_blocks=kv_blocks,
        step_time=step_time,
        max_num_seqs=max_num_seqs,
        max_batch_tokens=max_batch_tokens,
        max_queued=max_queued,
        admission=admission,
        ttft_ms=ttft_ms,
        itl_ms=itl_ms,
        concurrency=concurrency,
        part_tokens=hash_block,
        tenant_weights=_weights(tenant_weight or []),
        keep_rows=rows is not None,
        runtime=runtime,
        model=model,
    )
    stream = _stream(file, limit=limit, repeat=repeat, speedup=speedup, copies=copies, tenants=root_tenants)
    if plot is not None and plot.suffix.lower() != ".svg":
        raise ConfigError(f"plot is {str(plot)!r}; give a file that ends in .svg", field="plot")
    report = _run(stream, options, rows)
    if plot is not None:
        from airi.simulate.plot import draw

        fleet = f"{replicas} x {report.figures['settings']['step_time']}"
        write_text("plot", plot, draw(report, title=f"{file.name} on {fleet}"))
    show_report(report, file, as_json=json, with_timeline=timeline)


def _replay(path: Path, fit: Path | None, *, as_json: bool) -> None:
    from airi.simulate import StepTime
    from airi.simulate.replay import replay

    with show_progress() as progress:
        found = replay(path, progress=progress)
    if fit is not None:
        if not found.step_time.is_trained:
            raise ConfigError(
                f"{path}: {found.steps} steps are too few to fit; 32 with prefills and 32 without are needed",
                field="fit_step_time",
            )
        StepTime.from_model(found.step_time, source=f"fitted to {path.name}").save(fit)
    if as_json:
        names = ("records", "steps", "requests", "difference", "is_cut")
        typer.echo(jsonlib.dumps({name: getattr(found, name) for name in names}))
    else:
        verdict = found.difference or "every plan is the same, byte for byte"
        typer.echo(f"{found.requests:,} requests, {found.steps:,} steps: {verdict}")
        if found.is_cut:
            typer.echo("the file ends within a record; what comes before it was replayed", err=True)
    if found.difference is not None:
        raise typer.Exit(1)


def _source(trace: Path | None, generate: str | None, part_tokens: int) -> Trace | Generator:
    from airi.simulate import Generator, Trace

    if generate is not None:
        return Generator.parse(generate, part_tokens=part_tokens)
    return Trace(trace or Path(), part_tokens=part_tokens)


def _stream(
    file: Trace | Generator,
    *,
    limit: int | None,
    repeat: int,
    speedup: float,
    copies: int,
    tenants: int | None,
) -> Stream:
    from airi.simulate import batches as b

    stream: Stream = file.batches
    if limit is not None:
        stream = b.limited(stream, _positive("limit", limit))
    if tenants is not None:
        stream = b.with_root_tenants(stream, _positive("root_tenants", tenants))
    if _positive("repeat", repeat) > 1:
        stream = b.repeated(stream, repeat)
    if not 1e-6 <= speedup <= 1e6:
        raise ConfigError(f"speedup is {speedup:g}; it must be in [1e-6, 1e6]", field="speedup")
    if speedup != 1.0:
        stream = b.sped_up(stream, speedup)
    if _positive("copies", copies) > 1:
        stream = b.copied(stream, copies)
    return stream


def _options(*, step_time: str, max_queued: int | None, **others: Any) -> SimulationOptions:
    from airi.simulate import PRESETS, SimulationOptions, StepTime

    if max_queued is not None:
        others["max_queued"] = max_queued
    times: StepTime | str = step_time
    if step_time not in PRESETS:
        if not Path(step_time).exists():
            known = ", ".join(PRESETS)
            raise ConfigError(
                f"step_time is {step_time!r}; give a file or one of: {known}", field="step_time"
            )
        times = StepTime.load(step_time)
    return SimulationOptions(step_time=times, **others)


def _settings(given: list[str]) -> tuple[dict[str, object], dict[str, object]]:
    """Settings of the core's RuntimeConfig and ModelConfig from NAME=JSON."""
    import inspect

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
        if not separator:
            raise ConfigError(f"set is {text!r}; give NAME=JSON, such as aging_us=null", field="set")
        for config, settings in ((_core.ModelConfig, model), (_core.RuntimeConfig, runtime)):
            if f"{name}:" in (inspect.getdoc(config.__init__) or ""):
                settings[name] = parsed
                break
        else:
            raise ConfigError(f"set is {text!r}; the scheduler has no setting {name!r}", field="set")
    return runtime, model


def _weights(given: list[str]) -> dict[int, float]:
    weights = {}
    for text in given:
        tenant, _, weight = text.partition("=")
        try:
            weights[int(tenant)] = float(weight)
        except ValueError:
            raise ConfigError(
                f"tenant_weight is {text!r}; give NUMBER=WEIGHT", field="tenant_weight"
            ) from None
    return weights


def _positive(name: str, value: int) -> int:
    if value < 1:
        raise ConfigError(f"{name} is {value}; it must be at least 1", field=name)
    return value


def _run(stream: Stream, options: SimulationOptions, rows: Path | None) -> Report:
    from airi.simulate import simulate as run

    with show_progress() as progress, contextlib.ExitStack() as stack:
        on_rows = None if rows is None else stack.enter_context(row_writer(rows))
        return run(stream(), options, progress=progress, on_rows=on_rows)
