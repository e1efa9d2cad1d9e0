"""An engine that says what a test wants it to say."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from airi.bench.shapes import SHAPES, make_checkpoint
from airi.errors import QueueFullError, RequestError
from airi.outputs import ErrorInfo, Output, TokenLogprobs
from airi.text import Tokenizer

TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{{ extra }}assistant:"


def make_folder(path: Path) -> Path:
    """A small model folder with a real tokenizer, a chat template and sampling defaults."""
    path.mkdir()
    make_checkpoint(SHAPES["llama-2m"], path)
    (path / "generation_config.json").write_text(
        json.dumps({"temperature": 0.25, "top_k": 7, "max_length": 9})
    )
    (path / "chat_template.jinja").write_text(TEMPLATE)
    return path


class FakeEngine:
    """Answers every prompt with the tokens of `say(prompt text, params)`, `stride` tokens per step and request."""

    def __init__(self, options: Any, progress: Any = None) -> None:
        self.options = options
        folder = Path(options.models[0].path)
        info = SimpleNamespace(task="generate", is_pooling=False)
        runner = SimpleNamespace(model=SimpleNamespace(info=info))
        self.models = (SimpleNamespace(name=folder.name, path=folder, max_model_len=512, runner=runner),)
        self.tokenizer = Tokenizer.load(folder)
        self.say: Callable[[str, Any], str] = lambda prompt, params: f" echo {prompt}"
        self.stride = 1
        self.room = 1000
        self.fail: ErrorInfo | None = None
        self.running: dict[int, tuple[deque[int], Any, int]] = {}
        self.cancelled: list[int] = []
        self.seeds: list[int | None] = []
        if progress is not None:
            progress(self.models[0].name, "weights", 1.0, 1.0)

    def add_request(self, request_id: int, model: str, tokens: list[int], params: Any) -> None:
        if len(self.running) >= self.room:
            raise QueueFullError("the queue is full")
        if not tokens:
            raise RequestError("the prompt is empty", field="prompt")
        answer = self.tokenizer.encode(
            self.say(self.tokenizer.decode(tokens), params), add_special_tokens=False
        )
        if params.max_tokens is None or len(answer) < params.max_tokens:
            answer.append(0)
        self.seeds.append(params.seed)
        self.running[request_id] = (deque(answer[: params.max_tokens]), params, len(tokens))

    def cancel(self, request_id: int) -> None:
        self.cancelled.append(request_id)
        self.running.pop(request_id, None)

    def has_work(self) -> bool:
        return bool(self.running)

    def step(self) -> list[Output]:
        return [self._advance(request_id) for request_id in list(self.running)]

    def close(self) -> None:
        pass

    def _advance(self, request_id: int) -> Output:
        tokens, params, prompt_len = self.running[request_id]
        if self.fail is not None:
            del self.running[request_id]
            return Output(request_id, [], finish_reason="error", error=self.fail)
        taken = [tokens.popleft() for _ in range(min(self.stride, len(tokens)))]
        output = Output(request_id, taken, num_prompt_tokens=prompt_len, num_cached_tokens=1)
        if params.logprobs is not None:
            output.logprobs = [TokenLogprobs(t, -0.5, 1, [t, 7], [-0.5, -2.0]) for t in taken]
        if params.prompt_logprobs is not None:
            output.prompt_logprobs = [None] + [TokenLogprobs(5, -1.0, 3)] * (prompt_len - 1)
        if not tokens:
            del self.running[request_id]
            ended = taken[-1] == 0
            output.finish_reason = "stop" if ended else "length"
            output.stop_token = 0 if ended else None
        return output
