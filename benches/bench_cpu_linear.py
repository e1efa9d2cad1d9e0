"""How fast are our bf16 linear layers beside torch's, at the shapes and batch sizes of a 135 M Llama?

Each layer is run on copies of its weights that together exceed the last-level cache, one after the other, as a model
does: at few rows the figure is memory bandwidth, at many rows arithmetic. Ours and torch's turns alternate in one
process on as many threads. Every layer is first compared with a float64 product; a wrong one prints no speed.

What the figures do not mean: nothing about attention, norms or a whole model; torch writes bf16 where ours writes the
float32 that the next step needs; a ratio at one shape says nothing about another.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.functional import linear, silu

from airi._core import cpu
from airi.bench.rows import percentile
from benches.common import plain_parser, print_rows

ROWS = (1, 4, 8, 16, 32, 64, 256, 512)
# More than any last-level cache that two cores have to themselves.
BYTES_IN_TURN = 192 << 20
# torch's OpenMP threads spin for some milliseconds after their work and would take our worker's core.
PAUSE_S = 0.05
BF16 = cpu.DType.BF16


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One kind of layer. `n` counts outputs; a gated one has two matrices [n, k]."""

    name: str
    n: int
    k: int
    gated: bool = False

    @property
    def weight_bytes(self) -> int:
        return 2 * self.n * self.k * (2 if self.gated else 1)

    def flops(self, m: int) -> int:
        return m * self.weight_bytes


LAYERS = (
    Layer(name="qkv", n=960, k=576),
    Layer(name="output", n=576, k=576),
    Layer(name="gate, up, silu", n=1536, k=576, gated=True),
    Layer(name="down", n=576, k=1536),
    Layer(name="head", n=49152, k=576),
)


class Contest:
    """One layer's copies, packed for us and plain for torch."""

    def __init__(self, layer: Layer) -> None:
        self.layer = layer
        copies = max(1, BYTES_IN_TURN // layer.weight_bytes)
        scale = layer.k**-0.5
        matrices = 2 if layer.gated else 1
        self.plain = [
            [(torch.randn(layer.n, layer.k) * scale).bfloat16() for _ in range(matrices)]
            for _ in range(copies)
        ]
        self.packed = [self._pack(weights) for weights in self.plain]

    def _pack(self, weights: list[torch.Tensor]) -> Any:
        n, k = self.layer.n, self.layer.k
        if self.layer.gated:
            gate, up = weights
            return cpu.PackedGLU(gate.data_ptr(), up.data_ptr(), n, k, BF16, BF16, "silu")
        return cpu.PackedLinear(weights[0].data_ptr(), n, k, BF16, BF16)

    def runners(self, m: int) -> tuple[Callable[[], None], Callable[[], None], torch.Tensor, torch.Tensor]:
        """Ours and torch's pass over all copies, the input, and the output of ours."""
        x = torch.randn(m, self.layer.k).bfloat16()
        out = torch.full(
            (m, self.layer.n), torch.nan, dtype=torch.bfloat16 if self.layer.gated else torch.float32
        )
        at_x, at_out = x.data_ptr(), out.data_ptr()

        def ours() -> None:
            for layer in self.packed:
                layer.forward(at_x, m, at_out)

        def theirs() -> None:
            for weights in self.plain:
                y = linear(x, weights[0])
                if self.layer.gated:
                    y = silu(y) * linear(x, weights[1])

        return ours, theirs, x, out

    def check(self, x: torch.Tensor, out: torch.Tensor) -> None:
        """Raises where our last output is not the float64 product within bfloat16's rounding."""
        wide = [x.double() @ weight.double().T for weight in self.plain[-1]]
        expected = silu(wide[0]) * wide[1] if self.layer.gated else wide[0]
        rtol = 2**-8 if self.layer.gated else 0.0
        np.testing.assert_allclose(out.double().numpy(), expected.numpy(), rtol=rtol, atol=1e-4)


def seconds(run: Callable[[], None]) -> float:
    time.sleep(PAUSE_S)
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def measure(contest: Contest, m: int, budget_s: float) -> dict[str, Any]:
    """One row of the table."""
    ours, theirs, x, out = contest.runners(m)
    ours()
    contest.check(x, out)
    theirs()
    found: tuple[list[float], list[float]] = ([], [])
    end = time.perf_counter() + budget_s
    while time.perf_counter() < end or len(found[0]) < 3:
        found[0].append(seconds(ours))
        found[1].append(seconds(theirs))
    layer, copies = contest.layer, len(contest.packed)
    median = percentile(found[0], 50) / copies
    return {
        "layer": layer.name,
        "shape": f"{m} x {layer.k} -> {layer.n}",
        "p20_us": round(percentile(found[0], 20) / copies * 1e6, 1),
        "p50_us": round(median * 1e6, 1),
        "p80_us": round(percentile(found[0], 80) / copies * 1e6, 1),
        "GFLOP/s": round(layer.flops(m) / median / 1e9),
        "GB/s": round(layer.weight_bytes / median / 1e9, 1),
        "torch_p50_us": round(percentile(found[1], 50) / copies * 1e6, 1),
        "torch_GFLOP/s": round(layer.flops(m) / (percentile(found[1], 50) / copies) / 1e9),
        "ratio_to_torch": round(percentile(found[1], 50) / percentile(found[0], 50), 2),
        "n": len(found[0]),
    }


def main() -> None:
    parser = plain_parser(__doc__)
    parser.add_argument("--threads", type=int, default=cpu.num_threads())
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS, help="rows of x, one figure each")
    parser.add_argument("--seconds", type=float, default=1.0, help="time for each figure")
    options = parser.parse_args()
    cpu.set_num_threads(options.threads)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    rows = []
    for layer in LAYERS:
        contest = Contest(layer)
        rows += [measure(contest, m, options.seconds) for m in options.rows]
    settings = {"isa": cpu.isa(), "threads": options.threads}
    print_rows([{**row, **settings} for row in rows], as_json=options.json)


if __name__ == "__main__":
    main()
