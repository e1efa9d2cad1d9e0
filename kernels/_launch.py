"""What the launchers of Triton kernels share."""

from __future__ import annotations

import contextlib
import threading

import triton

from ._checks import check, check_tensor

__all__ = ["INTERPRETED", "check", "check_tensor", "launch_guard"]

INTERPRETED: bool = triton.knobs.runtime.interpret
"""Whether kernels run in Triton's interpreter, on a CPU. Its bfloat16 is wrong: they use float32 then."""

_interpreter = threading.Lock()


def launch_guard() -> contextlib.AbstractContextManager[object]:
    """To be held around a launch: the interpreter patches globals, so only one may run at a time."""
    return _interpreter if INTERPRETED else contextlib.nullcontext()
