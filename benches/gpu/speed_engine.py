"""A Llama of 8 B parameters' shape, random weights: decoding and prefill of the model alone, then of the whole engine.

The model's figures are device time of steps; the engine's are what a caller of `Engine.step` sees: scheduling, sampling
and the copies between them included. What of a step is outside the device is its wall time less the time in which any
kernel or copy ran, gaps inside of graphs included. Texts are noise; nothing here says what a trained model would
generate.
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable

from airi.bench.shapes import Shape
from airi.engine.backends import ModelInfo
from benches.gpu import roofline
from benches.gpu.bench import Bench, Case, NotHere, Row, Wrong, timed_row
from benches.gpu.engine_run import RandomEngine
from benches.gpu.goals import GOALS
from benches.gpu.random_model import LLAMA_8B, TOY, SteppedModel, device_for
from benches.gpu.timing import MIN_REPLAYS, Timing

_KEYS = 1024
_MAX_ROWS = 256
_PREFILL_TOKENS = 2048
_LOGITS_ERROR = 5e-2
"""Between a prompt's last logits computed at once and its last token decoded: two roundings of every layer."""


def cases(bench: Bench) -> list[Case]:
    rows = (1, 3) if bench.toy else (1, 32, 256)

    def model(name: str, run: Callable[..., list[Row]], seconds: float) -> Case:
        return Case(name=f"model {name}", run=functools.partial(run, rows=rows), seconds=seconds)

    return [
        Case(name="ceilings", run=_ceilings, seconds=10),
        model("decode eager", _decode_eager, 60),
        model("decode graphs", _decode_graphs, 30),
        model("prefill", _prefill, 15),
        *[
            Case(name=f"engine decode B{n}", run=functools.partial(_engine_decode, rows=n), seconds=40)
            for n in rows
        ],
        Case(name="engine prefill", run=_engine_prefill, seconds=30),
        # Last: a process that was traced once is never quite as it was.
        *[
            Case(
                name=f"engine outside the device B{n}",
                run=functools.partial(_engine_outside, rows=n),
                seconds=40,
            )
            for n in (rows[-1], rows[0])
        ],
    ]


def _ceilings(bench: Bench) -> list[Row]:
    from benches.gpu.speed_layout import ceilings

    rows = ceilings(bench)
    bench.drop_arena()  # the model needs the memory
    return rows


def _decode_eager(bench: Bench, *, rows: tuple[int, ...]) -> list[Row]:
    model = _model(bench, rows)
    error = _check_logits(model, _chunk(bench))
    return [_decode_row(bench, model, n, "eager", error) for n in rows]


def _decode_graphs(bench: Bench, *, rows: tuple[int, ...]) -> list[Row]:
    model = _model(bench, rows)
    model.capture()
    error = _check_logits(model, _chunk(bench))
    return [_decode_row(bench, model, n, "graphs", error) for n in rows]


def _prefill(bench: Bench, *, rows: tuple[int, ...]) -> list[Row]:
    model, chunk = _model(bench, rows), _chunk(bench)
    error = _check_logits(model, chunk)
    return [_prefill_row(bench, model, chunk, context, error) for context in (0, 3 * chunk)]


def _keys(bench: Bench) -> int:
    return 20 if bench.toy else _KEYS


def _chunk(bench: Bench) -> int:
    return 16 if bench.toy else _PREFILL_TOKENS


def _model(bench: Bench, rows: tuple[int, ...]) -> SteppedModel:
    """The model of this process, loaded by the first case that needs it and given up by the engine."""
    if "model" not in bench.kept:
        most, keys, chunk = max(rows), _keys(bench), _chunk(bench)
        bench.kept["model"] = SteppedModel(
            device_for(bench.device),
            TOY if bench.toy else LLAMA_8B,
            max_rows=most,
            max_tokens=max(most, chunk),
            max_keys=max(4 * chunk, keys),
            blocks=max(most * -(-keys // 64), 4 * chunk // 64) + 1,
        )
    model: SteppedModel = bench.kept["model"]
    return model


def _check_logits(model: SteppedModel, queries: int) -> float:
    """A token decoded after a prompt must have the logits that the prompt with that token has at its end."""
    ids = model.random_ids(queries)
    whole = model.logits(model.prepare(1, queries, queries, ids))
    alone = model.logits(model.prepare(1, 1, queries, ids[-1:]))
    error = float((alone.double() - whole.double()).norm() / whole.double().norm())
    if not error <= _LOGITS_ERROR:
        raise Wrong(f"logits of a decoded token differ by {error:.2g} from those of its prompt")
    return float(f"{error:.2g}")


def _timing(bench: Bench, model: SteppedModel, rows: int, queries: int, keys: int) -> Timing:
    step = model.prepare(rows, queries, keys)
    count = 2 if bench.toy else MIN_REPLAYS
    model.times_us(step, 3)
    return Timing.of(model.times_us(step, count), how="events")


def _decode_row(bench: Bench, model: SteppedModel, rows: int, variant: str, error: float) -> Row:
    keys = _keys(bench)
    timing = _timing(bench, model, rows, 1, keys)
    return timed_row(
        f"B{rows} n{keys}, {variant}",
        timing,
        decode_work(model.model.info, model.model.weight_bytes, [keys] * rows),
        error=error,
        tok_s=round(rows * 1e6 / timing.p50),
    )


def _prefill_row(bench: Bench, model: SteppedModel, queries: int, context: int, error: float) -> Row:
    timing = _timing(bench, model, 1, queries, queries + context)
    work = prefill_work(
        model.shape, model.model.info, model.model.weight_bytes, [queries], [queries + context]
    )
    return timed_row(
        f"{queries} after {context}",
        timing,
        work,
        error=error,
        tok_s=round(queries * 1e6 / timing.p50),
    )


def _engine(bench: Bench) -> RandomEngine:
    """The engine of this process, started by the first case that needs it."""
    if "engine" not in bench.kept:
        bench.kept.pop("model", None)
        gc.collect()
        bench.drop_arena()
        shape = TOY if bench.toy else LLAMA_8B
        rows, tokens, memory = (4, 32, 4 << 20) if bench.toy else (_MAX_ROWS, _PREFILL_TOKENS, None)
        bench.kept["engine"] = RandomEngine(
            bench.device, shape, rows=rows, batch_tokens=tokens, kv_memory=memory
        )
    engine: RandomEngine = bench.kept["engine"]
    return engine


def _engine_decode(bench: Bench, *, rows: int) -> list[Row]:
    engine = _engine(bench)
    keys, steps, warm = (10, 4, 1) if bench.toy else (_KEYS, 200, 20)
    found = engine.decode(rows, keys, steps=steps, warm=warm)
    timing = Timing.of(found.wall_us, how="wall")
    work = decode_work(engine.info, 2 * engine.info.num_parameters, found.lens)
    row = timed_row(f"n{keys}", timing, work, tok_s=round(rows * 1e6 / timing.p50))
    if (goal := f"engine decode B{rows}") in GOALS:
        row["goal"] = goal
    if found.between is not None:
        row["between_steps"] = round(found.between, 4)
    return [row]


def _engine_outside(bench: Bench, *, rows: int) -> list[Row]:
    """Wall time of a step less the time in which anything of it ran on the device."""
    keys, steps, warm = (10, 4, 1) if bench.toy else (_KEYS, 40, 10)
    found = _engine(bench).outside(rows, keys, steps=steps, warm=warm)
    if found is None:
        raise NotHere("torch's profiler sees no device")
    row: Row = {
        "variant": f"n{keys}, share of a step",
        "value": round(found.share, 4),
        "wall_us": round(found.wall_us, 1),
        "busy_us": round(found.busy_us, 1),
        "while_traced": round(found.while_traced, 4),
        "events": round(found.events, 2),
    }
    if (goal := f"engine outside the device B{rows}") in GOALS:
        row["goal"] = goal
    return [row]


def _engine_prefill(bench: Bench) -> list[Row]:
    engine = _engine(bench)
    prompts, tokens = (1, 20) if bench.toy else (8, 4096)
    found = engine.prefill(prompts, tokens)
    timing = Timing.of(found.wall_us, how="wall")
    lens = [tokens] * prompts
    work = prefill_work(engine.shape, engine.info, 2 * engine.info.num_parameters, lens, lens)
    rate = round(prompts * tokens * 1e6 / timing.p50)
    return [timed_row(f"{prompts} prompts of {tokens}", timing, work, tok_s=rate)]


def prefill_work(
    shape: Shape, info: ModelInfo, weight_bytes: int, query_lens: list[int], lens: list[int]
) -> roofline.Work:
    """Weights once, products of every token with them, attention in every layer.

    Nothing is multiplied with the embedding, and logits are of last tokens only: neither counts as operations.
    """
    attention = roofline.prefill(
        query_lens, lens, q_heads=shape.heads, kv_heads=shape.kv_heads, head_dim=shape.head_dim
    )
    inner = info.num_parameters - 2 * shape.vocab * shape.hidden
    work = roofline.Work(nbytes=weight_bytes, flops=2.0 * inner * sum(query_lens))
    return work + roofline.Work(nbytes=attention.nbytes * shape.layers, flops=attention.flops * shape.layers)


def decode_work(info: ModelInfo, weight_bytes: int, lens: list[int]) -> roofline.Work:
    """Weights and keys of one step; of the embedding only the rows that are looked up."""
    vocabulary = info.vocab_size * info.hidden_size
    return roofline.engine_step(
        weight_bytes=weight_bytes - 2 * vocabulary,
        parameters=info.num_parameters - vocabulary,
        seq_lens=lens,
        kv_bytes_per_token=info.kv_bytes_per_token,
    )
