"""The instruction set and the threads of the CPU kernels."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import numpy as np
import pytest

from airi._core import cpu
from tests.cpu.arrays import Array, address, poison


def isa_in_a_new_process(value: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "AIRI_CPU_ISA": value}
    command = [sys.executable, "-c", "from airi._core import cpu; import sys; sys.stdout.write(cpu.isa())"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_every_machine_has_the_portable_kernels() -> None:
    assert cpu.supported_isas()[0] == "portable"
    assert cpu.isa() in cpu.supported_isas()


def test_the_environment_chooses_the_instruction_set() -> None:
    assert isa_in_a_new_process("portable").stdout == "portable"


def test_the_best_instruction_set_is_the_default() -> None:
    assert isa_in_a_new_process("").stdout == cpu.supported_isas()[-1]


def test_an_unknown_instruction_set_names_the_accepted_ones() -> None:
    line = "isa 'sse9' is unknown; accepted: portable, avx2, avx512, avx512_bf16"
    with pytest.raises(ValueError, match=line):
        cpu.set_isa("sse9")
    assert line in isa_in_a_new_process("sse9").stderr


@pytest.mark.parametrize("threads", [0, -1, 1025])
def test_an_impossible_number_of_threads_is_refused(threads: int) -> None:
    with pytest.raises(ValueError, match=f"threads must be 1 to 1024, got {threads}"):
        cpu.set_num_threads(threads)


def test_two_python_threads_may_compute_at_once() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((33, 64), dtype=np.float32)
    weight = rng.standard_normal((500, 64), dtype=np.float32)
    layer = cpu.PackedLinear(address(weight), 500, 64, cpu.DType.F32, cpu.DType.F32)
    expected = poison(33, 500)
    layer.forward(address(x), 33, address(expected))
    outs = [[poison(33, 500) for _ in range(50)] for _ in range(4)]

    def work(mine: list[Array]) -> None:
        for out in mine:
            layer.forward(address(x), 33, address(out))

    workers = [threading.Thread(target=work, args=(mine,)) for mine in outs]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for mine in outs:
        for out in mine:
            np.testing.assert_array_equal(out, expected)
