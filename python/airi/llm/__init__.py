"""`airi.LLM`: a model in this process, for scripts.

    from airi import LLM, SamplingParams

    with LLM("path/to/checkpoint") as llm:
        for output in llm.generate(["Hello", "Good morning"], SamplingParams(max_tokens=32)):
            print(output.outputs[0].text)

It needs the engine only; nothing of the server is imported.
"""

from __future__ import annotations

from airi.llm._llm import LLM
from airi.llm._results import Chunk, CompletionOutput, Logprob, RequestOutput, TokenLogprob

__all__ = ["LLM", "Chunk", "CompletionOutput", "Logprob", "RequestOutput", "TokenLogprob"]
