"""Collects what was compared, and says at the end what was wrong."""

from __future__ import annotations

import torch

from benches.gpu.bench import Row, Wrong
from benches.gpu.oracle import elements_off, relative_error

_SHOWN = 4


class Checks:
    """Comparisons of one case, each under the name of its configuration."""

    def __init__(self) -> None:
        self._rows: list[Row] = []
        self._wrong: list[str] = []

    def near(
        self,
        what: str,
        out: torch.Tensor,
        expected: torch.Tensor,
        tolerance: float,
        *,
        elements: bool = False,
    ) -> None:
        """By relative error of the whole, and with `elements` also one by one."""
        error = relative_error(out, expected)
        self._rows.append({"variant": what, "error": float(f"{error:.3g}"), "tolerance": tolerance})
        if not error <= tolerance:
            self._wrong.append(f"{what}: error {error:.2g} > {tolerance:g}")
        elif elements and (off := elements_off(out, expected)):
            self._wrong.append(f"{what}: {off} elements off")

    def within(self, what: str, out: torch.Tensor, expected: torch.Tensor, atol: float) -> None:
        """By the largest absolute difference."""
        error = float((out.double() - expected.double()).abs().max()) if out.numel() else 0.0
        self._rows.append({"variant": what, "error": float(f"{error:.3g}"), "tolerance": atol})
        if not error <= atol:
            self._wrong.append(f"{what}: off by {error:.2g} > {atol:g}")

    def same_bits(self, what: str, a: torch.Tensor, b: torch.Tensor) -> None:
        """Byte by byte; NaNs of the same bits are equal."""
        differ = int((bits(a) != bits(b)).sum()) if a.shape == b.shape else a.numel()
        self._rows.append({"variant": what, "different_bytes": differ})
        if differ:
            self._wrong.append(f"{what}: {differ} bytes differ")

    def true(self, what: str, *, ok: bool, else_say: str) -> None:
        self._rows.append({"variant": what, "ok": ok})
        if not ok:
            self._wrong.append(f"{what}: {else_say}")

    def rows(self) -> list[Row]:
        """All that was compared; raises Wrong where something was."""
        if self._wrong:
            more = f" and {len(self._wrong) - _SHOWN} more" if len(self._wrong) > _SHOWN else ""
            raise Wrong("; ".join(self._wrong[:_SHOWN]) + more)
        return self._rows


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor's bytes."""
    return tensor.contiguous().view(-1).view(torch.uint8)
