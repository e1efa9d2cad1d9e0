"""What few rows ask of sampling, by kernels and in plain torch: as the CPU engine's kernels do it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from airi._core import cpu
from airi.engine.backends.cuda.device import CpuDevice
from airi.engine.backends.cuda.penalties import PenaltyCounts
from airi.engine.backends.cuda.sampling_ops import (
    DeviceSamplingOps,
    HostSamplingOps,
    Penalties,
    SamplingOps,
    TorchSamplingOps,
)
from airi.engine.requests import RequestState
from airi.sampling_params import MAX_LOGPROBS, SamplingParams

VOCAB = 323


@pytest.fixture(params=["kernels", "torch"])
def ops(request: pytest.FixtureRequest) -> SamplingOps:
    device = CpuDevice()
    return DeviceSamplingOps(device) if request.param == "kernels" else HostInTorch()


class HostInTorch(HostSamplingOps):
    """The host's operations, all that can be in plain torch."""

    gather_logprobs = TorchSamplingOps.gather_logprobs


@pytest.mark.parametrize("count", [0, 1, 7, MAX_LOGPROBS])
def test_logprobs_are_those_of_the_kernel_of_the_cpu(ops: SamplingOps, count: int) -> None:
    torch.manual_seed(0)
    logits = torch.randn(5, VOCAB) * 4
    logits[2, 9] = -torch.inf
    tokens = torch.tensor([0, 322, 4, 17, int(logits[4].argmax())], dtype=torch.int32)
    found = ops.gather_logprobs(logits, tokens, count)
    expected = HostSamplingOps().gather_logprobs(logits, tokens, count)
    torch.testing.assert_close(found.logprobs, expected.logprobs, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.top_logprobs, expected.top_logprobs, atol=1e-5, rtol=0)
    assert found.ranks.tolist() == expected.ranks.tolist()
    assert found.top_ids.tolist() == expected.top_ids.tolist()


def test_equal_logits_rank_as_on_the_cpu(ops: SamplingOps) -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0, 2.0, 3.0]] * 5)
    tokens = torch.arange(5, dtype=torch.int32)
    found = ops.gather_logprobs(logits, tokens, 0)
    assert found.ranks.tolist() == HostSamplingOps().gather_logprobs(logits, tokens, 0).ranks.tolist()


def made(number: int, prompt: list[int], generated: list[int], params: SamplingParams) -> RequestState:
    state = RequestState(number, np.array(prompt, np.int32), params, np.empty(0, np.int32), seed=0)
    for token in generated:
        state.remember(token)
    return state


def test_penalties_are_those_of_the_kernel_of_the_cpu_also_after_a_preemption(ops: SamplingOps) -> None:
    params = SamplingParams(repetition_penalty=1.7, presence_penalty=0.6, frequency_penalty=0.3)
    device = CpuDevice()
    counts = PenaltyCounts(device, ops, VOCAB)
    states = [made(i, [i, 5, 5, 9], [7] * i + [5, 300 + i], params) for i in range(5)]
    for slot, state in enumerate(states):  # its counts begin with what it had before it was taken off
        counts.assign(slot, state)
    for state in states:
        state.remember(11)
    counts.add(range(5), torch.full((5,), 11, dtype=torch.int32))
    torch.manual_seed(1)
    logits = torch.randn(8, VOCAB)
    expected = logits.clone()
    rows = [6, 1, 3]
    for row, state in zip(rows, states[1:4], strict=True):
        cpu.apply_penalties(
            expected[row].data_ptr(),
            VOCAB,
            state.prompt.ctypes.data,
            len(state.prompt),
            state.generated.ctypes.data,
            state.num_generated,
            params.repetition_penalty,
            params.presence_penalty,
            params.frequency_penalty,
        )
    penalties = Penalties(
        rows=torch.tensor(rows, dtype=torch.int32),
        lines=torch.tensor([counts.line(slot) for slot in (1, 2, 3)], dtype=torch.int32),
        repetition=torch.full((3,), params.repetition_penalty),
        presence=torch.full((3,), params.presence_penalty),
        frequency=torch.full((3,), params.frequency_penalty),
    )
    ops.penalise(logits, counts.counts, penalties)
    torch.testing.assert_close(logits, expected, atol=1e-6, rtol=1e-6)


def test_lines_of_counts_are_used_again_and_no_memory_is_taken_without_penalties(ops: SamplingOps) -> None:
    counts = PenaltyCounts(CpuDevice(), ops, VOCAB)
    with_penalties = SamplingParams(presence_penalty=0.5)
    counts.assign(0, made(0, [3], [], SamplingParams()))
    with pytest.raises(RuntimeError, match="no slot has penalties"):
        _ = counts.counts
    for round_ in range(5):
        for slot in range(3):
            counts.assign(slot, made(slot, [round_], [], with_penalties))
    assert len(counts.counts) == 4
    for slot in range(3):
        assert counts.counts[counts.line(slot)].nonzero().tolist() == [[4]], "what was there before is gone"
