"""The class `airi.LLM`."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from airi import builtin
from airi._scores import check_dimensions, cosines, probabilities, shortened, sigmoid
from airi.errors import AiriError, ConfigError, QueueFullError, RequestError
from airi.llm._batch import Batch, Prompt
from airi.llm._interrupt import deferred_interrupt
from airi.llm._progress import count_completions, show_loading
from airi.llm._results import Chunk, RequestOutput
from airi.llm._texts import TextBatch, listed, read_pairs, read_texts
from airi.sampling_params import SamplingParams
from airi.text import TextReader, Tokenizer, recommended_sampling

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from airi.engine import Engine
    from airi.llm._embedder import LLMEmbedder
    from airi.outputs import Task

__all__ = ["LLM", "Messages"]

Messages = Sequence[Mapping[str, Any]]
"""A conversation: messages with role and content."""

_DOES: dict[Task, str] = {
    "generate": "generates text; call generate() or chat()",
    "embed": "gives vectors of texts; call embed() or score()",
    "classify": "tells labels of texts; call classify(), or score() where it has one label",
}
_OF_THE_MODEL = frozenset(("name", "kv_min", "kv_max", "sleepable"))


class LLM:
    """A model loaded into this process.

    *Thread safety*: calls from several threads take turns at the engine's steps.
    *Invariant*: leaving a call, also by an error or by closing a stream, leaves nothing of it in the engine.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        chat_template: str | Path | None = None,
        progress: bool | None = None,
        **options: Any,
    ) -> None:
        """Loads `model`: a checkpoint folder, hf://org/name[@revision], or None for the built-in one.

        `options` are those of `airi.engine.EngineOptions` (dtype, device, threads, max_model_len,
        max_num_seqs, kv_memory in bytes, block_size, seed, ...), and `name`, `kv_min`, `kv_max` and `sleepable`
        of `ModelOptions`. `progress` shows bars on stderr; None means when it is a terminal. Raises
        CheckpointError or ConfigError.
        """
        from airi.engine import Engine

        with show_loading(progress=progress) as on_progress:
            self._engine: Engine = Engine(
                _engine_options(builtin.resolve(model), options), progress=on_progress
            )
        hosted = self._engine.models[0]
        self.model = hosted.name
        """The model's name."""
        self._info = hosted.runner.model.info
        self.max_model_len = hosted.max_model_len - self._info.is_pooling
        """Prompt and completion together, or a text that is read whole, in tokens."""
        try:
            self.tokenizer = Tokenizer.load(hosted.path, chat_template=chat_template)
            self._reader = TextReader(self.tokenizer) if self._info.is_pooling else None
            recommended: dict[str, Any] = recommended_sampling(hosted.path)
            self.default_params = SamplingParams(**recommended)
            """Used where a call gives no parameters: those of the checkpoint's generation_config.json."""
        except BaseException:
            self._engine.close()
            raise
        self._progress = progress
        self._lock = threading.RLock()
        self._request_ids = itertools.count(1)
        self._owners: dict[int, Batch | TextBatch] = {}
        self._closed = False
        self._asleep = False

    def generate(
        self,
        prompts: str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool | None = None,
    ) -> list[RequestOutput]:
        """Completes one prompt or several (texts or token ids); one output per prompt, in order.

        `params` is one for all or one per prompt. Raises RequestError, e.g. for a prompt that does not fit.
        """
        return self._finish(self._prompts(prompts, params), progress=progress)

    def chat(
        self,
        messages: Messages | Sequence[Messages],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        progress: bool | None = None,
        **template_options: Any,
    ) -> list[RequestOutput]:
        """The model's answer to a conversation, or to each of several.

        `template_options` go to the chat template: chat_template_kwargs, documents,
        add_generation_prompt, continue_final_message, template. Raises RequestError.
        """
        return self._finish(self._chats(messages, params, tools, template_options), progress=progress)

    def generate_stream(
        self,
        prompts: str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> Iterator[Chunk]:
        """As `generate`, piece by piece as the text is made. Leaving the loop early cancels the rest."""
        return self._stream(self._prompts(prompts, params))

    def chat_stream(
        self,
        messages: Messages | Sequence[Messages],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **template_options: Any,
    ) -> Iterator[Chunk]:
        """As `chat`, piece by piece as the answer is made. Leaving the loop early cancels the rest."""
        return self._stream(self._chats(messages, params, tools, template_options))

    def embed(
        self, texts: str | Sequence[str], *, dimensions: int | None = None, truncate: bool = False
    ) -> list[NDArray[np.float32]]:
        """The vector [dimensions] of each text, in order, by a model that gives vectors.

        `dimensions`: fewer than the model's own, where its vectors may be cut. `truncate` cuts texts that are too long.
        Raises RequestError for a text that is empty or too long, and for a model that gives none.
        """
        reader, info = self._reading("embed"), self._info
        check_dimensions(dimensions, info.vector_size, info.matryoshka_dimensions)
        asked = listed(texts, "texts")
        vectors = self._numbers(read_texts(reader, asked, self.max_model_len, truncate=truncate))
        return list(shortened(vectors, dimensions or info.vector_size, normalizes=info.normalizes))

    def embedder(self, chunker: str = "") -> LLMEmbedder:
        """This model as collections take it; `chunker` is the `version` of what cuts the texts, where anything does.

        Raises RequestError for a model that gives no vectors.
        """
        from airi.llm._embedder import LLMEmbedder

        self._reading("embed")
        return LLMEmbedder(self._info, self.embed, chunker)

    def score(self, query: str, documents: str | Sequence[str], *, truncate: bool = False) -> list[float]:
        """How well each document goes with a query, in order.

        A reranker, a classifier of one label, gives the sigmoid of its logit, 0 to 1; a model of vectors the cosine of
        the two, -1 to 1. Raises RequestError as `embed`.
        """
        reader, window = self._reading("embed", "classify"), self.max_model_len
        asked = listed(documents, "documents")
        if not asked:
            return []
        if self._info.task == "embed":
            vectors = self._numbers(read_texts(reader, [query, *asked], window, truncate=truncate))
            return list(map(float, cosines(vectors[:1], vectors[1:])))
        if len(self._info.labels) > 1:
            raise self._other_task()
        logits = self._numbers(read_pairs(reader, query, asked, window, truncate=truncate))
        return list(map(float, sigmoid(logits[:, 0])))

    def classify(self, texts: str | Sequence[str], *, truncate: bool = False) -> list[dict[str, float]]:
        """How likely each label is for each text, in order. Raises RequestError as `embed`."""
        reader, asked = self._reading("classify"), listed(texts, "texts")
        logits = self._numbers(read_texts(reader, asked, self.max_model_len, truncate=truncate))
        likely = probabilities(logits, is_multi_label=self._info.is_multi_label)
        return [dict(zip(self._info.labels, map(float, row), strict=True)) for row in likely]

    def sleep(self) -> None:
        """Gives the memory of keys and values back to the system and lays the weights aside, until `wake_up`.

        Prompts that were cached are computed again afterwards. Needs the option `sleepable=True`. Raises ConfigError
        without it, AiriError while calls run; sleeping twice does nothing.
        """
        with self._lock:
            self._raise_if_closed()
            if self._asleep:
                return
            if self._owners:
                raise AiriError(f"{len(self._owners)} completions are running; sleep when they have ended")
            while self._engine.has_work():
                self._engine.step()  # takes out what was cancelled
            self._engine.sleep(self.model)
            self._settle()
            self._engine.release_memory()
            self._asleep = True

    def wake_up(self) -> None:
        """Brings the model back after `sleep`; awake already, it does nothing.

        Raises MemoryBudgetError where its memory is somebody else's by now; it sleeps on, and can be woken later.
        """
        with self._lock:
            self._raise_if_closed()
            if self._asleep:
                self._engine.wake(self.model)
                self._settle()
                self._asleep = False

    @property
    def is_sleeping(self) -> bool:
        """Whether `sleep` was called, and `wake_up` not since."""
        return self._asleep

    def close(self) -> None:
        """Frees the model. Running calls end with an error; closing twice does nothing."""
        with self._lock:
            if not self._closed:
                self._closed = True
                for batch in self._owners.values():
                    batch.failure = _closed_error()
                self._owners.clear()
                self._engine.close()
                del self._engine

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # -- prompts -------------------------------------------------------------------------------

    def _prompts(
        self, prompts: Any, params: SamplingParams | Sequence[SamplingParams] | None
    ) -> list[Prompt]:
        self._raise_unless_generating()
        if isinstance(prompts, str) or (_is_list(prompts) and prompts and isinstance(prompts[0], int)):
            prompts = [prompts]
        if not _is_list(prompts):
            raise RequestError(
                f"prompts must be text, token ids or a list of either, got {type(prompts).__name__}",
                field="prompts",
            )
        every = self._params(params, len(prompts))
        return [
            self._prompt(prompt, i, each) for i, (prompt, each) in enumerate(zip(prompts, every, strict=True))
        ]

    def _raise_unless_generating(self) -> None:
        if self._info.is_pooling:
            raise self._other_task()

    def _prompt(self, prompt: Any, i: int, params: SamplingParams) -> Prompt:
        if isinstance(prompt, str):
            return Prompt(prompt, self.tokenizer.encode(prompt), params)
        if _is_list(prompt) and all(isinstance(token, int) for token in prompt):
            return Prompt(None, list(prompt), params)
        found = type(prompt).__name__
        raise RequestError(f"prompts[{i}] must be text or a list of token ids, got {found}", field="prompts")

    def _chats(
        self,
        messages: Any,
        params: SamplingParams | Sequence[SamplingParams] | None,
        tools: Sequence[Mapping[str, Any]] | None,
        template_options: dict[str, Any],
    ) -> list[Prompt]:
        self._raise_unless_generating()
        several = _is_list(messages) and bool(messages) and _is_list(messages[0])
        conversations = list(messages) if several else [messages]
        found = []
        for conversation, each in zip(conversations, self._params(params, len(conversations)), strict=True):
            text = self.tokenizer.render_chat(conversation, tools, **template_options)
            found.append(Prompt(text, self.tokenizer.encode(text, add_special_tokens=False), each))
        return found

    def _params(
        self, params: SamplingParams | Sequence[SamplingParams] | None, count: int
    ) -> Sequence[SamplingParams]:
        if params is None:
            return [self.default_params] * count
        if isinstance(params, SamplingParams):
            return [params] * count
        if not (_is_list(params) and all(isinstance(each, SamplingParams) for each in params)):
            found = type(params).__name__ if not _is_list(params) else "a list of something else"
            raise TypeError(f"params must be SamplingParams, or a list of one per prompt, got {found}")
        if len(params) != count:
            raise RequestError(
                f"params has {len(params)} entries for {count} prompts; give one, or one per prompt",
                field="params",
            )
        return params

    # -- running -------------------------------------------------------------------------------

    def _finish(self, prompts: list[Prompt], *, progress: bool | None) -> list[RequestOutput]:
        batch = Batch(self.tokenizer, prompts)
        shown = self._progress if progress is None else progress
        with self._driving(batch), count_completions(len(batch.waiting), progress=shown) as advance:
            while not batch.done:
                self._pump(batch)
                advance(batch.ready)
                batch.ready.clear()
        _raise(batch.failure)
        return batch.results

    def _numbers(self, texts: list[list[int]]) -> NDArray[np.float32]:
        batch = TextBatch(texts, self._info.vector_size)
        with self._driving(batch):
            while not batch.done:
                self._pump(batch)
                batch.ready.clear()
        _raise(batch.failure)
        return batch.vectors

    def _reading(self, *tasks: Task) -> TextReader:
        """How texts become what the model reads. Raises RequestError for a model that does something else."""
        if self._info.task not in tasks or self._reader is None:
            raise self._other_task()
        return self._reader

    def _other_task(self) -> RequestError:
        return RequestError(f"{self.model} {_DOES[self._info.task]}", field="model")

    def _stream(self, prompts: list[Prompt]) -> Iterator[Chunk]:
        batch = Batch(self.tokenizer, prompts)
        with self._driving(batch):
            while batch.ready or not batch.done:
                if batch.ready:
                    yield batch.ready.popleft()
                else:
                    self._pump(batch)
        _raise(batch.failure)

    def _settle(self) -> None:
        while self._engine.is_moving:
            self._engine.step()

    def _raise_if_closed(self) -> None:
        if self._closed:
            raise _closed_error()

    @contextmanager
    def _driving(self, batch: Batch | TextBatch) -> Iterator[None]:
        """Takes what is left of the batch out of the engine at the end."""
        try:
            yield
        finally:
            with self._lock:
                for request_id in batch.running:
                    if self._owners.pop(request_id, None) is not None:
                        self._engine.cancel(request_id)
                batch.running.clear()
                if not (self._closed or self._owners) and self._engine.has_work():
                    self._engine.step()  # nothing runs any more: it only takes out what was cancelled

    def _pump(self, batch: Batch | TextBatch) -> None:
        """One step of the engine, for whoever has requests in it."""
        with self._lock, deferred_interrupt():
            self._raise_if_closed()
            if batch.ready or batch.done:
                return  # another thread's step has served this batch meanwhile
            if self._asleep:
                raise AiriError("this LLM sleeps; call wake_up() first")
            self._fill(batch)
            for output in self._engine.step():
                owner = self._owners.get(output.request_id)
                if owner is not None:
                    self._deliver(owner, output.request_id, output)

    def _deliver(self, owner: Batch | TextBatch, request_id: int, output: Any) -> None:
        drop = owner.advance(request_id, output)
        if drop:
            self._engine.cancel(request_id)
        if request_id not in owner.running:
            del self._owners[request_id]

    def _fill(self, batch: Batch | TextBatch) -> None:
        """Gives the engine what it has room for; the rest follows as others end."""
        while batch.waiting:
            request_id = next(self._request_ids)
            try:
                batch.submit(self._engine, request_id, self.model)
            except QueueFullError:
                if not self._engine.has_work():
                    raise
                return
            self._owners[request_id] = batch


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _raise(failure: AiriError | None) -> None:
    if failure is not None:
        raise failure


def _closed_error() -> AiriError:
    return AiriError("this LLM has been closed")


def _engine_options(path: str, options: dict[str, Any]) -> Any:
    from airi.engine import EngineOptions, ModelOptions

    known = set(EngineOptions.__dataclass_fields__) - {"models"} | _OF_THE_MODEL
    for name in options:
        if name not in known:
            raise ConfigError(f"unknown option {name!r}; accepted: {', '.join(sorted(known))}", field=name)
    own = {name: value for name, value in options.items() if name in _OF_THE_MODEL}
    others = {name: value for name, value in options.items() if name not in _OF_THE_MODEL}
    return EngineOptions(models=(ModelOptions(path=path, **own),), **others)
