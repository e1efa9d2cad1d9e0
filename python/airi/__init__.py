"""AIRI: many models on shared hardware, every call governed."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airi.errors import (
        AiriError,
        CheckpointError,
        ConfigError,
        ContextLengthError,
        EngineError,
        RequestError,
    )
    from airi.llm import LLM, Chunk, CompletionOutput, RequestOutput
    from airi.sampling_params import SamplingParams
    from airi.structured_output import StructuredOutput
    from airi.text import TemplateError, Tokenizer

__version__ = "0.1.0"

__all__ = [
    "LLM",
    "AiriError",
    "CheckpointError",
    "Chunk",
    "CompletionOutput",
    "ConfigError",
    "ContextLengthError",
    "EngineError",
    "RequestError",
    "RequestOutput",
    "SamplingParams",
    "StructuredOutput",
    "TemplateError",
    "Tokenizer",
    "__version__",
]

# Imported when first used, so that `import airi` costs nothing and needs neither torch nor a GPU stack.
_HOMES = {
    "LLM": "airi.llm",
    "AiriError": "airi.errors",
    "CheckpointError": "airi.errors",
    "Chunk": "airi.llm",
    "CompletionOutput": "airi.llm",
    "ConfigError": "airi.errors",
    "ContextLengthError": "airi.errors",
    "EngineError": "airi.errors",
    "RequestError": "airi.errors",
    "RequestOutput": "airi.llm",
    "SamplingParams": "airi.sampling_params",
    "StructuredOutput": "airi.structured_output",
    "TemplateError": "airi.text",
    "Tokenizer": "airi.text",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'airi' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
