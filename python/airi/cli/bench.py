"""`airi bench`: how fast this machine, this model, this server are."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from airi.cli._device_flags import (
    DEVICE_HELP,
    DTYPE_HELP,
    KV_CACHE_DTYPE_HELP,
    QUANTIZATION_HELP,
    TENSOR_PARALLEL_HELP,
)
from airi.errors import ConfigError

if TYPE_CHECKING:
    from airi.bench.workload import Workload

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=False,
    invoke_without_command=True,
    add_completion=False,
    rich_markup_mode="markdown",
    help="Measure speed: of the scheduling core, of a model in this process, of a server under load.",
)

_work = partial(typer.Option, rich_help_panel="Requests")
_server_flag = partial(typer.Option, rich_help_panel="Server")
Json = Annotated[bool, typer.Option("--json", help="Print rows as JSON, one per line.")]
Model = Annotated[
    str | None,
    typer.Argument(
        help="Folder of a model or hf://org/name. Left out: the built-in demonstration model.",
        show_default=False,
    ),
]
ShapeName = Annotated[
    str | None,
    typer.Option(
        help="Instead of a model, random weights of this shape: llama-2m, llama-135m, llama-360m, llama-1b.",
        show_default=False,
    ),
]
Requests = Annotated[int, _work(help="How many requests.")]
InputLen = Annotated[int, _work(help="Tokens of a prompt.")]
OutputLen = Annotated[int, _work(help="Tokens of an answer.")]
Mix = Annotated[str, _work(help="Lengths: random, prefix (shared beginning), mixed, one-long.")]
RangeRatio = Annotated[float, _work(help="Draw lengths from this share below to above.")]
PrefixLen = Annotated[int, _work(help="Tokens that all prompts share.")]
Seed = Annotated[int, _work(help="Other seed, other prompts.")]

Url = Annotated[
    str | None,
    _server_flag(
        help="A running server, e.g. http://127.0.0.1:8000. Left out: one is started for the model."
    ),
]
ApiKey = Annotated[str | None, _server_flag(help="Key for the server.", envvar="AIRI_API_KEY")]
Endpoint = Annotated[str, _server_flag(help="completions (exact lengths) or chat.")]
Concurrency = Annotated[int | None, _work(help="Requests in flight at most; left out: no limit.")]
Rate = Annotated[float | None, _work(help="Requests per second, at random; left out: all at once.")]
IgnoreEos = Annotated[bool, _work(help="Have every answer go on to its full length.")]
Vocab = Annotated[int, _work(help="Prompts hold ids from 100 to below this.")]


@app.callback()
def bench(context: typer.Context) -> None:
    """Measure speed: of the scheduling core, of a model in this process, of a server under load."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def scheduler(
    *,
    running: Annotated[
        list[int] | None,
        typer.Option(
            help="Running requests; may be repeated. Left out: 1, 64, 256, 1024.", show_default=False
        ),
    ] = None,
    steps: Annotated[int, typer.Option(help="Steps that are measured.")] = 512,
    json: Json = False,
) -> None:
    """The scheduling core alone: what a step costs per running request, without a model."""
    from airi.bench.rows import show_progress, show_rows
    from airi.bench.scheduler import RUNNING, measure_scheduler

    counts = running or list(RUNNING)
    with show_progress("sizes", len(counts)) as on_done:
        rows = measure_scheduler(counts, steps=steps, on_done=on_done)
    show_rows(rows, as_json=json)


@app.command()
def throughput(
    model: Model = None,
    *,
    shape: ShapeName = None,
    requests: Requests = 64,
    input_len: InputLen = 256,
    output_len: OutputLen = 128,
    mix: Mix = "random",
    range_ratio: RangeRatio = 0.0,
    prefix_len: PrefixLen = 0,
    seed: Seed = 0,
    device: Annotated[str, typer.Option(help=DEVICE_HELP)] = "auto",
    dtype: Annotated[str, typer.Option(help=DTYPE_HELP)] = "auto",
    kv_cache_dtype: Annotated[str, typer.Option(help=KV_CACHE_DTYPE_HELP)] = "auto",
    quantization: Annotated[str | None, typer.Option(help=QUANTIZATION_HELP, show_default=False)] = None,
    tensor_parallel_size: Annotated[int, typer.Option(help=TENSOR_PARALLEL_HELP)] = 1,
    threads: Annotated[
        int | None, typer.Option(help="Threads that compute; left out: all cores.", show_default=False)
    ] = None,
    max_num_seqs: Annotated[int, typer.Option(help="Requests that run at the same time.")] = 256,
    json: Json = False,
) -> None:
    """A model in this process: all requests at once, greedy, each to its full length."""
    from dataclasses import replace

    from airi.bench.rows import show_progress, show_rows
    from airi.bench.throughput import measure_throughput
    from airi.llm import LLM

    workload = _workload(requests, input_len, output_len, mix, range_ratio, prefix_len, seed)
    with LLM(
        _model(model, shape),
        device=device,
        dtype=dtype,
        kv_cache_dtype=kv_cache_dtype,
        quantization=quantization,
        tensor_parallel_size=tensor_parallel_size,
        threads=threads,
        max_num_seqs=max_num_seqs,
    ) as llm:
        workload = replace(workload, vocab=llm.tokenizer.vocab_size)
        with show_progress("requests", requests) as on_done:
            row = measure_throughput(llm, workload, on_done=on_done)
    show_rows([row], as_json=json)


@app.command()
def serve(
    model: Model = None,
    *,
    url: Url = None,
    api_key: ApiKey = None,
    endpoint: Endpoint = "completions",
    shape: ShapeName = None,
    requests: Requests = 64,
    input_len: InputLen = 256,
    output_len: OutputLen = 128,
    mix: Mix = "random",
    range_ratio: RangeRatio = 0.0,
    prefix_len: PrefixLen = 0,
    concurrency: Concurrency = None,
    rate: Rate = None,
    ignore_eos: IgnoreEos = True,
    vocab: Vocab = 1000,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """A server under load: time to first token, between tokens, end to end, as its clients see them."""
    from dataclasses import replace

    from airi.bench.rows import show_progress, show_rows
    from airi.bench.serve import Load, measure_serve

    workload = replace(
        _workload(requests, input_len, output_len, mix, range_ratio, prefix_len, seed), vocab=vocab
    )
    load = Load(
        endpoint=endpoint,
        concurrency=concurrency,
        rate=math.inf if rate is None else rate,
        ignore_eos=ignore_eos,
        api_key=api_key,
    )
    with contextlib.ExitStack() as stack:
        if url is None:
            url, model = stack.enter_context(_server(_model(model, shape))), None
        elif shape is not None:
            raise ConfigError("--shape starts a server of its own and does not go with --url", field="shape")
        on_done = stack.enter_context(show_progress("requests", requests))
        row = measure_serve(url, workload, load, model=model, on_done=on_done)
    show_rows([row], as_json=json)


def _workload(
    requests: int, input_len: int, output_len: int, mix: str, range_ratio: float, prefix_len: int, seed: int
) -> Workload:
    from airi.bench.workload import Workload

    return Workload(
        requests=requests,
        input_len=input_len,
        output_len=output_len,
        mix=mix,
        range_ratio=range_ratio,
        prefix_len=prefix_len,
        seed=seed,
    )


def _model(model: str | None, shape: str | None) -> str | Path | None:
    from airi.bench.shapes import SHAPES, cached_checkpoint

    if shape is None:
        return model
    if model is not None:
        raise ConfigError("give a model or --shape, not both", field="shape")
    if shape not in SHAPES:
        raise ConfigError(f"shape is {shape!r}; accepted: {', '.join(SHAPES)}", field="shape")
    return cached_checkpoint(shape)


@contextlib.contextmanager
def _server(model: str | Path | None) -> Iterator[str]:
    from airi.bench.server import running_server

    typer.secho("starting a server ...", dim=True, err=True)
    with running_server(model) as url:
        yield url
