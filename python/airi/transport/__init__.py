"""Between gateway and engine: ZeroMQ and msgspec, the same on one machine and between machines.

`EngineClient` is the gateway's end (an `EngineHandle`), `EngineServer` the engine's; `messages` is what travels and
`python -m airi.transport.stub` an engine without a model.
"""

from __future__ import annotations

from airi.outputs import ErrorInfo, Output, TokenLogprobs
from airi.transport.client import EngineClient
from airi.transport.handle import EngineHandle
from airi.transport.messages import (
    EngineStats,
    ForbidFor,
    GenerateRequest,
    ModelInfo,
    ModelStats,
    Progress,
    TierStats,
    error_of,
    next_request_id,
)
from airi.transport.stream import OutputStream
from airi.transport.supervisor import EngineSupervisor

__all__ = [
    "EngineClient",
    "EngineHandle",
    "EngineStats",
    "EngineSupervisor",
    "ErrorInfo",
    "ForbidFor",
    "GenerateRequest",
    "ModelInfo",
    "ModelStats",
    "Output",
    "OutputStream",
    "Progress",
    "TierStats",
    "TokenLogprobs",
    "error_of",
    "next_request_id",
]
