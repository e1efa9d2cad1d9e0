"""Requests to a stub engine, and the answers of any."""

from __future__ import annotations

from typing import Any

from airi.sampling_params import SamplingParams
from airi.transport import EngineHandle, GenerateRequest, Output


def request(
    max_tokens: int | None = 8,
    *,
    prompt: int = 3,
    model: str = "stub",
    metered: bool = False,
    **params: Any,
) -> GenerateRequest:
    return GenerateRequest(
        model=model,
        tokens=GenerateRequest.pack_tokens(range(prompt)),
        params=SamplingParams(max_tokens=max_tokens, **params),
        metered=metered,
    )


async def collect(client: EngineHandle, message: GenerateRequest) -> Output:
    """All outputs of a request as one."""
    whole: Output | None = None
    async for output in client.generate(message):
        if whole is None:
            whole = output
        else:
            whole.merge(output)
    assert whole is not None
    return whole
