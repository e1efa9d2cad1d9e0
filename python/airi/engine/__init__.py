"""Checkpoint to tokens on one device: loading, the step runner, sampling.

`Engine` runs in the caller's process; `python -m airi.engine.process` serves one over the transport.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airi.engine.options import EngineOptions, ModelOptions

if TYPE_CHECKING:
    from airi.engine.engine import Engine

__all__ = ["Engine", "EngineOptions", "ModelOptions"]


def __getattr__(name: str) -> Any:
    # Options are what a gateway needs; the core and the kernels are loaded with the engine only.
    if name == "Engine":
        from airi.engine.engine import Engine

        return Engine
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
