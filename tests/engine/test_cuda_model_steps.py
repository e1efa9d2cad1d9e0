"""What steps of the cuda model do around the layers: graphs, padding, waves, 8-bit keys and values, placed weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from airi.engine.backends.cuda.attention import Limits
from airi.engine.backends.cuda.device import CpuDevice
from airi.engine.backends.cuda.graphs import StepGraphs, capture_all, decode_buckets, token_buckets
from airi.engine.backends.cuda.reference_ops import ReferenceOps
from tests.engine.cuda_harness import HostModel, load
from tests.engine.harness import Harness, relative_error
from tests.engine.tiny_models import Reference, prompts

Checkpoints = Callable[[str], Path]
References = Callable[[str], list[Reference]]
FLOAT32_TOLERANCE = 1e-4


def decode(model: HostModel, steps: int = 6, **options: Any) -> NDArray[np.float32]:
    """Logits [rows, steps, vocab] of greedy decoding."""
    _, logits = Harness(model, **options).greedy(prompts(), steps)
    return np.stack(logits)


def test_buckets_cover_every_number_of_rows_with_little_padding() -> None:
    for most in (1, 2, 3, 7, 8, 48, 250, 256, 257, 300, 1024):
        buckets = decode_buckets(most)
        assert list(buckets) == sorted(set(buckets))
        assert buckets[-1] == most
        for rows in range(1, most + 1):
            bucket = next(size for size in buckets if size >= rows)
            assert bucket - rows < max(8, rows, 32 if rows > 256 else 0)


def test_buckets_of_tokens_cover_small_steps_with_little_padding() -> None:
    for most in (1, 15, 16, 17, 100, 128, 250, 512, 513, 2048):
        buckets = token_buckets(most)
        assert list(buckets) == sorted(set(buckets))
        assert buckets[-1] == min(most, 512)
        for tokens in range(1, buckets[-1] + 1):
            bucket = next(size for size in buckets if size >= tokens)
            assert bucket - tokens < max(16, bucket / 4)


@pytest.mark.parametrize("name", ["llama", "gemma3", "qwen3-moe", "olmo2"])
def test_a_replayed_step_gives_the_bits_of_an_eager_one_in_every_bucket(
    name: str, checkpoint: Checkpoints
) -> None:
    captured = load(checkpoint(name), max_rows=7, capture=True)
    eager = load(checkpoint(name), max_rows=7)
    np.testing.assert_array_equal(decode(captured), decode(eager))
    for rows in (1, 2, 3):
        found = []
        for model in (captured, eager):
            harness = Harness(model)
            harness.step(dict(enumerate(prompts()[:rows])))
            found.append(np.concatenate(harness.step({slot: [5 + slot] for slot in range(rows)})))
        np.testing.assert_array_equal(found[0], found[1])


@pytest.mark.parametrize(
    ("name", "options"),
    [("llama", {}), ("gemma3", {}), ("qwen3-moe", {}), ("llama", {"kv_cache_dtype": "int8"})],
)
def test_steps_with_prompts_are_replayed_with_the_bits_of_eager_ones(
    name: str, options: dict[str, Any], checkpoint: Checkpoints
) -> None:
    rng = np.random.default_rng(5)
    steps = [
        {slot: rng.integers(3, 300, count).tolist() for slot, count in enumerate(counts)}
        for counts in ((5,), (1, 30, 7), (40, 1, 1, 2), (1, 1, 90), (1, 1, 1, 1))
    ]
    harnesses = [
        Harness(load(checkpoint(name), max_rows=7, capture=capture, **options), max_len=320)
        for capture in (True, False)
    ]
    for step in steps:
        found = [np.concatenate(harness.step(step)) for harness in harnesses]
        np.testing.assert_array_equal(found[0], found[1])


class Work:
    """Notes the sizes it is run in."""

    def __init__(self) -> None:
        self.ran: list[int] = []

    def run(self, rows: int) -> None:
        self.ran.append(rows)


@pytest.mark.parametrize("capture", [False, True])
def test_a_step_runs_in_the_smallest_bucket_that_holds_it(capture: bool) -> None:  # noqa: FBT001
    work = Work()
    graphs = StepGraphs(CpuDevice(), decode_buckets(20), work.run)
    if capture:
        capture_all([graphs], None)
    work.ran.clear()
    for rows in (1, 2, 3, 4, 5, 8, 9, 16, 17, 20):
        graphs.run(rows)
    assert work.ran == [1, 2, 4, 4, 8, 8, 16, 16, 20, 20]


def test_capture_tells_its_progress_and_leaves_the_arena_alone(checkpoint: Checkpoints) -> None:
    model = load(checkpoint("llama"), max_rows=7)
    Harness(model)  # binds
    seen: list[tuple[int, int]] = []
    with torch.inference_mode():
        model.decoder.capture(lambda done, total: seen.append((done, total)))
    total = len(decode_buckets(7)) + len(token_buckets(model.max_tokens))
    assert seen == [(done, total) for done in range(total + 1)]


class CountingOps(ReferenceOps):
    """Notes what every plan has room for and how many blocks are gathered, none more than fit their memory."""

    def __init__(self) -> None:
        super().__init__()
        self.rooms: list[int] = []
        self.gathered: list[int] = []
        self._gather, self.gather_dequant = self.gather_dequant, self._count_and_gather

    def plan_attention(self, *args: Any, **options: Any) -> None:
        self.rooms.append(len(args[2].items))
        super().plan_attention(*args, **options)

    def paged_decode(self, *args: Any, **options: Any) -> None:
        plan, workspace = args[7:9]
        assert len(plan.items) <= len(workspace.acc)
        super().paged_decode(*args, **options)

    def _count_and_gather(self, *args: Any, **options: Any) -> None:
        starts, scratch, layout = args[5:8]
        assert int(starts[-1]) <= options["num_blocks"] <= len(scratch) // layout.layer_bytes
        self.gathered.append(int(starts[-1]))
        self._gather(*args, **options)


def long_rows(harness: Harness) -> list[NDArray[np.float32]]:
    """Three rows of 300 tokens, filled by chunks, then a step of decoding and one with a prompt beside it."""
    rng = np.random.default_rng(3)
    for _ in range(3):
        harness.step({slot: rng.integers(3, 300, 100).tolist() for slot in range(3)})
    logits = harness.step({slot: [7 + slot] for slot in range(3)})
    return logits + harness.step({0: [9], 3: rng.integers(3, 300, 40).tolist(), 1: [10], 2: [11]})


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_rows_whose_partial_results_find_no_room_run_in_waves_with_the_same_results(
    name: str, checkpoint: Checkpoints
) -> None:
    whole, cut = CountingOps(), CountingOps()
    expected = long_rows(Harness(load(checkpoint(name), ops=whole, max_rows=4), max_len=320))
    tight = load(checkpoint(name), ops=cut, limits=Limits(workspace=0), max_rows=4)
    found = long_rows(Harness(tight, max_len=320))
    if name == "llama":
        assert len(cut.rooms) > len(whole.rooms)
        assert max(cut.rooms) < max(whole.rooms)
    for left, right in zip(found, expected, strict=True):
        # The same rows, but in a step that is padded differently.
        assert relative_error(left, right) < 1e-5


@pytest.mark.parametrize("kv_cache_dtype", ["fp8", "int8"])
@pytest.mark.parametrize("name", ["llama", "gemma2", "qwen2-window"])
def test_8_bit_keys_and_values_stay_close_and_are_deterministic(
    name: str, kv_cache_dtype: str, checkpoint: Checkpoints, references: References
) -> None:
    reference = references(name)[-1]
    model = load(checkpoint(name), kv_cache_dtype=kv_cache_dtype)
    assert model.bytes_per_block(16) < load(checkpoint(name)).bytes_per_block(16)
    runs = [Harness(model).step({0: reference.prompt}, all_logits=True)[0] for _ in range(2)]
    np.testing.assert_array_equal(runs[0], runs[1])
    error = np.sqrt(np.square(runs[0] - reference.prompt_logits).mean())
    scale = np.sqrt(np.square(reference.prompt_logits).mean())
    assert error / scale < (0.2 if kv_cache_dtype == "fp8" else 0.1)
    assert relative_error(runs[0], reference.prompt_logits) > FLOAT32_TOLERANCE


@pytest.mark.parametrize("kv_cache_dtype", ["fp8", "int8"])
def test_a_quantised_context_may_exceed_the_scratch_memory(
    kv_cache_dtype: str, checkpoint: Checkpoints
) -> None:
    found, gathered = [], []
    for scratch in (128 * 2**20, 0):
        ops, limits = CountingOps(), Limits(scratch=scratch)
        model = load(checkpoint("qwen3"), ops=ops, kv_cache_dtype=kv_cache_dtype, limits=limits)
        found.append(np.concatenate(long_rows(Harness(model, max_len=320))))
        gathered.append(ops.gathered)
    np.testing.assert_array_equal(found[0], found[1])
    assert max(gathered[0]) == 3 * 19, "three rows of 300 keys at once"
    assert max(gathered[1]) <= 320 // 16, "what one row of any length needs"


@pytest.mark.parametrize("name", ["llama-linear-tied", "qwen3-moe", "olmo2", "llama-yarn-biases"])
@pytest.mark.parametrize("quantization", [None, "int8"])
def test_placed_weights_may_leave_their_memory_and_come_back(
    name: str, quantization: str | None, checkpoint: Checkpoints
) -> None:
    expected = decode(load(checkpoint(name), quantization=quantization))
    model = load(checkpoint(name), quantization=quantization, max_rows=4, capture=True)
    memory = torch.zeros(model.decoder.weight_bytes + 4096, dtype=torch.uint8)
    memory = memory[-memory.data_ptr() % 4096 :][: model.decoder.weight_bytes]
    with torch.inference_mode():
        model.decoder.place_weights(memory)
        placed = decode(load(checkpoint(name), quantization=quantization, max_rows=4))
        found = decode(model)
        np.testing.assert_array_equal(found, placed)
        kept = memory.clone()
        memory.fill_(255)
        assert np.isnan(decode(model)).all()
        memory.copy_(kept)
    np.testing.assert_array_equal(decode(model), placed)
    assert relative_error(placed.reshape(-1, 323), expected.reshape(-1, 323)) < FLOAT32_TOLERANCE


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["llama", "gemma3", "qwen3-moe", "olmo2"])
def test_16_bit_models_stay_close_to_float32(
    name: str, dtype: str, checkpoint: Checkpoints, references: References
) -> None:
    reference = references(name)[-1]
    model = load(checkpoint(name), dtype=dtype)
    assert model.info.dtype == dtype
    (logits,) = Harness(model).step({0: reference.prompt}, all_logits=True)
    error = np.sqrt(np.square(logits - reference.prompt_logits).mean())
    scale = np.sqrt(np.square(reference.prompt_logits).mean())
    assert error / scale < (0.2 if dtype == "bfloat16" else 0.05)
