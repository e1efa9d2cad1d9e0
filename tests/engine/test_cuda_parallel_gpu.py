"""What tensor parallelism asks of GPUs' own collectives; `AIRI_REQUIRE_GPU=1 pytest -m gpu` where there are some."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch

from airi.engine.backends.cuda.device import CudaDevice
from airi.engine.backends.cuda.group import Group, listen
from airi.engine.backends.cuda.shards import Shard
from airi.errors import EngineDeadError
from tests.engine.engine_helpers import GREEDY, add, make_engine, run
from tests.engine.parallel_helpers import workers_of
from tests.engine.tiny_models import Reference

NUM_GPUS = torch.cuda.device_count()
REQUIRED = os.environ.get("AIRI_REQUIRE_GPU") == "1"
pytestmark = pytest.mark.gpu


@pytest.mark.skipif(NUM_GPUS < 1 and not REQUIRED, reason="no GPU")
def test_collectives_are_captured_and_replayed_and_an_abort_does_not_wait_for_graphs() -> None:
    device = CudaDevice()
    store, port = listen()
    with device.active():
        group = Group(Shard(), device.torch_device, port=port, store=store)
        x = torch.ones((3, 5), device=device.torch_device)
        gathered = torch.zeros_like(x)

        def work() -> None:
            x.add_(1.0)
            group.broadcast(x)
            group.all_reduce(x)
            gathered.copy_(group.all_gather(x))

        work()
        graph = device.capture(work)
        for _ in range(2):
            graph.replay()
        device.synchronize()
    assert torch.equal(gathered.cpu(), torch.full((3, 5), 4.0))
    group.abort()
    del graph


@pytest.mark.skipif(NUM_GPUS < 2 and not REQUIRED, reason="fewer than two GPUs")
def test_two_gpus_give_the_tokens_of_one_until_one_of_them_is_lost(
    tiny_llama: Path, llama_references: list[Reference]
) -> None:
    engine = make_engine(tiny_llama, device="cuda", tensor_parallel_size=2)
    for index, reference in enumerate(llama_references):
        add(engine, index, reference.prompt, max_tokens=64, **GREEDY)
    outputs = run(engine)
    assert [outputs[index].tokens for index in sorted(outputs)] == [
        reference.tokens for reference in llama_references
    ]
    (worker,) = workers_of(os.getpid())
    add(engine, 1, llama_references[0].prompt, max_tokens=400, **GREEDY)
    engine.step()
    os.kill(worker, signal.SIGKILL)
    with pytest.raises(EngineDeadError, match="rank 1"):
        run(engine)
    engine.close()
