"""What goes wrong on a device, and whom it concerns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from airi.engine import Engine
from airi.outputs import Output

from .engine_helpers import GREEDY, add, beside_a_sound_one, generate, make_engine, run
from .tiny_models import Reference

PROMPT = [5, 6, 7]


@pytest.fixture
def engine(tiny_llama: Path) -> Engine:
    return make_engine(tiny_llama, backend="cuda", device="cpu")


def model_of(engine: Engine) -> Any:
    return engine.models[0].runner.model


def failed(output: Output) -> str:
    assert output.finish_reason == "error"
    assert output.error is not None
    assert output.tokens == []
    return output.error.message


def test_not_a_number_ends_its_own_row_only(
    engine: Engine, llama_references: list[Reference], monkeypatch: pytest.MonkeyPatch
) -> None:
    enqueue = model_of(engine).enqueue

    def broken(step: Any) -> torch.Tensor:
        logits: torch.Tensor = enqueue(step)
        if len(logits) == 2:
            logits[1] = torch.nan
        return logits

    monkeypatch.setattr(model_of(engine), "enqueue", broken)
    fields = {"logprobs": 3, "repetition_penalty": 1.1}
    output = beside_a_sound_one(engine, llama_references[1], PROMPT, **fields)
    assert "not-a-number" in failed(output)


def test_what_is_not_a_number_is_gone_from_blocks_that_others_fill(
    tiny_llama: Path, llama_references: list[Reference], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prefill kernels read whole tiles; what cached prefixes hold is not touched."""
    engine = make_engine(tiny_llama, backend="cuda", device="cpu", block_size=16)
    cached = list(range(3, 36))
    generate(engine, cached, max_tokens=1, **GREEDY)
    enqueue, arena = model_of(engine).enqueue, engine._hosting.arena
    held = arena.part(0, arena.nbytes).clone()

    def broken(step: Any) -> torch.Tensor:
        logits: torch.Tensor = enqueue(step)
        unused = held.view(torch.float32) == 0
        arena.part(0, arena.nbytes).view(torch.float32)[unused] = torch.nan
        return torch.full_like(logits, torch.nan)

    with monkeypatch.context() as patch:
        patch.setattr(model_of(engine), "enqueue", broken)
        assert "not-a-number" in failed(generate(engine, PROMPT, max_tokens=4))
    reference = llama_references[1]
    assert generate(engine, reference.prompt, max_tokens=64, **GREEDY).tokens == reference.tokens
    size = model_of(engine).bytes_per_block(16)
    columns = -(-(len(reference.prompt) + 63) // 16)
    for entry in engine.models[0].runner.block_table[0, :columns].tolist():  # type: ignore[attr-defined]
        assert bool(arena.part(entry * 4096, size).view(torch.float32).isfinite().all())
    again = generate(engine, cached, max_tokens=1, **GREEDY)
    assert again.num_cached_tokens == 32
    assert again.finish_reason == "length"


def test_what_a_cancelled_request_left_that_is_not_a_number_is_gone_too(
    tiny_llama: Path, llama_references: list[Reference], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is cancelled in the middle of its prompt, so that no row ever tells what it left."""
    engine = make_engine(tiny_llama, backend="cuda", device="cpu", block_size=16, max_batch_tokens=16)
    enqueue, arena = model_of(engine).enqueue, engine._hosting.arena

    def broken(step: Any) -> torch.Tensor:
        logits: torch.Tensor = enqueue(step)
        arena.part(0, arena.nbytes).view(torch.float32).fill_(torch.nan)
        return logits

    add(engine, 1, list(range(3, 300)), max_tokens=4)
    with monkeypatch.context() as patch:
        patch.setattr(model_of(engine), "enqueue", broken)
        engine.step()
        engine.cancel(1)
        run(engine)
    reference = llama_references[1]
    assert generate(engine, reference.prompt, max_tokens=64, **GREEDY).tokens == reference.tokens
    size = model_of(engine).bytes_per_block(16)
    columns = -(-(len(reference.prompt) + 63) // 16)
    for entry in engine.models[0].runner.block_table[0, :columns].tolist():  # type: ignore[attr-defined]
        assert bool(arena.part(entry * 4096, size).view(torch.float32).isfinite().all())


def test_a_step_that_cannot_be_enqueued_ends_its_requests_and_the_engine_lives(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = generate(engine, PROMPT, max_tokens=4, **GREEDY).tokens

    def fails(_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    with monkeypatch.context() as patch:
        patch.setattr(model_of(engine), "enqueue", fails)
        assert "running the model failed" in failed(generate(engine, PROMPT, max_tokens=4))
    assert generate(engine, PROMPT, max_tokens=4, **GREEDY).tokens == wanted


@pytest.mark.parametrize(
    ("broken", "fields"),
    [
        ("airi.engine.backends.cuda.sampler._row_edits", {"logit_bias": {3: 1.0}}),
        ("airi.engine.backends.cuda.penalties.PenaltyCounts._grow", {"repetition_penalty": 1.1}),
        ("airi.engine.backends.cuda.prompt_logprobs.FetchedLogprobs.enqueue", {"prompt_logprobs": 3}),
    ],
)
def test_parameters_that_cannot_be_applied_end_their_own_row_only(
    engine: Engine,
    llama_references: list[Reference],
    monkeypatch: pytest.MonkeyPatch,
    broken: str,
    fields: dict[str, Any],
) -> None:
    def fails(*_: object) -> None:
        raise ValueError

    monkeypatch.setattr(broken, fails)
    output = beside_a_sound_one(engine, llama_references[1], PROMPT, **fields)
    assert "running the model failed" in failed(output)


def test_a_slot_that_had_penalties_has_none_for_the_next_request(tiny_llama: Path) -> None:
    """And the other way round; one slot, so that every request gets it."""
    engine = make_engine(tiny_llama, backend="cuda", device="cpu", max_num_seqs=1)
    plain = generate(engine, PROMPT, max_tokens=48, **GREEDY).tokens
    fields = {**GREEDY, "repetition_penalty": 4.0, "presence_penalty": 2.0}
    alone = generate(engine, PROMPT, max_tokens=48, **fields).tokens
    assert alone != plain
    for _ in range(2):
        for i in range(3):
            add(engine, 2 * i, PROMPT, max_tokens=48, **fields)
            add(engine, 2 * i + 1, PROMPT, max_tokens=48, **GREEDY)
        outputs = run(engine)
        assert [outputs[i].tokens for i in range(6)] == [alone, plain] * 3


def test_what_a_cancelled_request_leaves_in_its_slot_reaches_nobody(tiny_llama: Path) -> None:
    """It is cancelled while its step runs, and the next step gives its slot away."""
    engine = make_engine(tiny_llama, backend="cuda", device="cpu", max_num_seqs=2)
    wanted = generate(engine, PROMPT, max_tokens=12, **GREEDY).tokens
    for round_ in range(8):
        add(engine, 10, [9, 8, 7, 6], max_tokens=200, presence_penalty=1.0, seed=3, ignore_eos=True)
        add(engine, 11, PROMPT, max_tokens=12, **GREEDY)
        add(engine, 12, PROMPT, max_tokens=12, **GREEDY)
        got: dict[int, list[int]] = {11: [], 12: []}
        for step in range(200):
            if not engine.has_work():
                break
            if step == round_:
                engine.cancel(10)
            for output in engine.step():
                if output.request_id in got:
                    got[output.request_id] += output.tokens
        assert got == {11: wanted, 12: wanted}
    engine.check_invariants()
