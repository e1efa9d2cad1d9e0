"""An answer as a row of blocks: texts and calls, in the order in which the model wrote them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from airi.gateway.choice import Choice, Piece
from airi.gateway.models import ServedModel
from airi.gateway.openai.calls import Answer
from airi.gateway.openai.schemas_chat import MessageToolCall
from airi.gateway.openai.schemas_common import SamplingFields
from airi.gateway.openai.tool_calls import Calls
from airi.text.tools import CallArguments, CallStart, Event
from airi.transport import TokenLogprobs

__all__ = ["Begun", "Block", "BlockAnswer", "CallBlock", "Ended", "Grown", "Step", "TextBlock"]


@dataclass(slots=True)
class TextBlock:
    """Text between calls, in parts, with the entries of its tokens where they are asked for."""

    index: int
    texts: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)

    @property
    def text(self) -> str:
        """As far as it is there."""
        return "".join(self.texts)


@dataclass(slots=True)
class CallBlock:
    """A call, as far as it is there."""

    index: int
    call: MessageToolCall


Block = TextBlock | CallBlock


class Begun(NamedTuple):
    """A block begins; it is empty."""

    block: Block


class Grown(NamedTuple):
    """A block has grown by `text`, in a call of its arguments."""

    block: Block
    text: str
    logprobs: list[TokenLogprobs]


class Ended(NamedTuple):
    """Nothing more comes of a block."""

    block: Block


Step = Begun | Grown | Ended


class _Blocks:
    """Puts the pieces of one choice into blocks.

    *Invariant*: a block begins when the one before has ended, and text blocks are never empty.
    """

    def __init__(self, calls: Calls | None) -> None:
        """`calls`: what finds calls; None where all is text."""
        self.blocks: list[Block] = []
        self._calls = calls
        self._is_open = False
        self._logprobs: list[TokenLogprobs] = []  # of tokens whose text is not certain yet

    def push(self, piece: Piece) -> list[Step]:
        """What a piece adds."""
        self._logprobs += piece.logprobs
        events: list[Event] = [piece.text] if self._calls is None else self._calls.events(piece.text)
        return self._steps(events)

    def finish(self) -> list[Step]:
        """What was held back, and the end of the last block."""
        steps = self._steps([] if self._calls is None else self._calls.finish())
        return steps + self._end()

    def _steps(self, events: Iterable[Event]) -> list[Step]:
        steps: list[Step] = []
        for event in events:
            match event:
                case CallStart(call=number) if self._calls is not None:
                    steps += self._begin(CallBlock(len(self.blocks), self._calls.calls[number]))
                    self._logprobs = []
                case CallArguments(text=text):
                    steps.append(Grown(self.blocks[-1], text, []))
                    self._logprobs = []
                case str() as text if text:
                    steps += self._text(text)
        return steps

    def _text(self, text: str) -> list[Step]:
        steps: list[Step] = []
        block = self.blocks[-1] if self._is_open else None
        if not isinstance(block, TextBlock):
            block = TextBlock(len(self.blocks))
            steps += self._begin(block)
        logprobs, self._logprobs = self._logprobs, []
        block.texts.append(text)
        block.logprobs += logprobs
        return [*steps, Grown(block, text, logprobs)]

    def _begin(self, block: Block) -> list[Step]:
        ended = self._end()
        self.blocks.append(block)
        self._is_open = True
        return [*ended, Begun(block)]

    def _end(self) -> list[Step]:
        if not self._is_open:
            return []
        self._is_open = False
        return [Ended(self.blocks[-1])]


class BlockAnswer(Answer):
    """The one choice of a request as blocks."""

    def __init__(self, id: str, request: SamplingFields, model: ServedModel, calls: Calls | None) -> None:
        super().__init__(id, request, model)
        self._blocks = _Blocks(calls)

    @property
    def blocks(self) -> list[Block]:
        """As far as they are there."""
        return self._blocks.blocks

    @property
    def has_calls(self) -> bool:
        """Whether the model asks for any."""
        return any(isinstance(block, CallBlock) for block in self.blocks)

    @abstractmethod
    def events(self, step: Step) -> bytes:
        """Those that tell of a step."""

    def pieces(self, choice: Choice, pieces: Iterable[Piece]) -> bytes:
        """The steps that the pieces make."""
        return b"".join([self.events(step) for piece in pieces for step in self._blocks.push(piece)])

    def closing(self, choice: Choice) -> bytes:
        """The steps to the end."""
        return b"".join([self.events(step) for step in self._finish(choice)])

    def keep(self, choice: Choice, pieces: Iterable[Piece]) -> None:
        """Puts the pieces into blocks."""
        for piece in pieces:
            self._blocks.push(piece)
        if choice.finish_reason is not None:
            self._finish(choice)

    def _finish(self, choice: Choice) -> list[Step]:
        steps = self._blocks.finish()
        choice.shows_text = not self.has_calls
        return steps
