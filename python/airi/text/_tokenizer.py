"""A checkpoint's tokenizer: text to ids and back, chat templates, streams."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as RustTokenizer

from airi.errors import CheckpointError
from airi.text import _files
from airi.text._detokenizer import ByteDetokenizer, Detokenizer, WindowDetokenizer
from airi.text._pieces import Pieces, compile_pieces
from airi.text._stream import TextStream
from airi.text._template import ChatTemplate, TemplateError

__all__ = ["SHORT", "Tokenizer", "without_surrogates"]

# `encode` and `decode` of the library hold the GIL, their batch forms do not but wait for a thread of a pool, which
# long texts of others keep: a short text is best done at once. So many characters, or tokens, take about 1 ms.
SHORT = 4096


class Tokenizer:
    """Reads tokenizer.json and tokenizer_config.json as `transformers`' fast tokenizers do.

    Thread safety: encode, decode and render may be called from several threads; a stream belongs to one.
    """

    def __init__(
        self,
        backend: RustTokenizer,
        *,
        decoder: dict[str, Any] | None,
        special_tokens: Mapping[str, str],
        templates: Mapping[str, str],
        chat_template: str | Path | None = None,
    ) -> None:
        """Most callers want `load`. `decoder` is the section of that name in tokenizer.json."""
        self._backend = backend
        self.special_tokens = dict(special_tokens)
        """bos_token, eos_token, ... as chat templates see them."""
        self._special_ids = _special_ids(backend)
        self._templates = dict(templates)
        self._override: ChatTemplate | None = None
        if chat_template is not None:
            self._override = ChatTemplate.load(chat_template, self.special_tokens)
        self._compiled: dict[str, ChatTemplate] = {}
        self._byte_fallback = decoder is not None and "ByteFallback" in str(decoder)
        make_pieces = compile_pieces(backend, decoder)
        self._make_pieces = make_pieces
        self._hiding: Pieces | None = make_pieces(self._special_ids) if make_pieces else None
        self._showing: Pieces | None = make_pieces(frozenset()) if make_pieces else None
        self._partly: dict[frozenset[int], Pieces] = {}
        """By the special tokens that are shown."""

    @classmethod
    def load(cls, path: str | Path, *, chat_template: str | Path | None = None) -> Self:
        """From a checkpoint folder; CheckpointError names what is missing or broken.

        `chat_template`, a file or a template's own text, replaces the checkpoint's template.
        """
        folder = Path(path)
        file = folder / "tokenizer.json"
        if not file.is_file():
            raise CheckpointError(_missing(folder))
        config = _files.read_json(folder / "tokenizer_config.json")
        special = _files.special_tokens(_files.read_json(folder / "special_tokens_map.json"))
        special |= _files.special_tokens(config)
        text = _files.read_text(file)
        try:
            backend = RustTokenizer.from_str(text)
        except Exception as error:  # the library raises plain Exception
            raise CheckpointError(f"{file}: not a tokenizer of the `tokenizers` library: {error}") from None
        backend.no_truncation()
        backend.no_padding()
        _add_tokens(backend, config, special)
        return cls(
            backend,
            decoder=_decoder_section(backend),
            special_tokens=special,
            templates=_files.read_templates(folder, config),
            chat_template=chat_template,
        )

    @classmethod
    def of_bytes(cls) -> Self:
        """One whose tokens are the bytes of UTF-8: no text has more tokens for any model that reads bytes."""
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        backend = RustTokenizer(models.BPE({sign: i for i, sign in enumerate(alphabet)}, []))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.decoder = decoders.ByteLevel()
        return cls(backend, decoder=_decoder_section(backend), special_tokens={}, templates={})

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included; a model's own vocabulary may be padded beyond it."""
        return int(self._backend.get_vocab_size(with_added_tokens=True))

    @property
    def bos_id(self) -> int | None:
        """Id of the token that begins a text."""
        return self.token_id(self.special_tokens.get("bos_token"))

    @property
    def eos_id(self) -> int | None:
        """Id of the token that ends a text."""
        return self.token_id(self.special_tokens.get("eos_token"))

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids that `skip_special_tokens` leaves out of a text."""
        return self._special_ids

    def token_id(self, token: str | None) -> int | None:
        """Id of a token as the vocabulary writes it, None where there is no such token."""
        found: int | None = self._backend.token_to_id(token) if token is not None else None
        return found

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`; add_special_tokens puts bos (or eos) where tokenizer.json says so.

        add_bos_token in tokenizer_config.json does not count, as it does not in transformers 5. Other threads go on
        while a long text is encoded.
        """
        try:
            return self._encode(text, add_special_tokens=add_special_tokens)
        except (TypeError, UnicodeEncodeError):
            return self._encode(without_surrogates(text), add_special_tokens=add_special_tokens)

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of `token_ids`; ids outside the vocabulary add nothing. Other threads go on as in `encode`."""
        ids = list(token_ids)
        text: str
        if len(ids) <= SHORT:
            text = self._backend.decode(ids, skip_special_tokens=skip_special_tokens)
        else:
            (text,) = self._backend.decode_batch([ids], skip_special_tokens=skip_special_tokens)
        return text

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that one token adds to a text; special tokens show their name."""
        if self._showing is not None:
            return self._showing[token_id]
        return self.decode([token_id], skip_special_tokens=False).encode()

    def token_text(self, token_id: int) -> str:
        """The same as text; a part of a character shows as a replacement character."""
        return self.token_bytes(token_id).decode("utf-8", "replace")

    def pieces(self) -> Mapping[int, bytes] | None:
        """The bytes of any token id, special tokens by their name; None where tokens do not stand alone."""
        return self._showing

    def to_json(self) -> str:
        """The tokenizer as a tokenizer.json of its own, with every added token."""
        text: str = self._backend.to_str()
        return text

    def stream(
        self,
        prompt_ids: Sequence[int] = (),
        *,
        stop: Sequence[str] = (),
        skip_special_tokens: bool = True,
        include_stop: bool = False,
        min_tokens: int = 0,
        keep_offsets: bool = False,
        show: Sequence[int] = (),
        may_end: Callable[[str], bool] | None = None,
    ) -> TextStream:
        """The text of what follows `prompt_ids`, as it is generated. See TextStream.

        `show`: special tokens that are text none the less.
        """
        return TextStream(
            self.detokenizer(prompt_ids, skip_special_tokens=skip_special_tokens, show=show),
            stop=stop,
            include_stop=include_stop,
            min_tokens=min_tokens,
            keep_offsets=keep_offsets,
            may_end=may_end,
        )

    def detokenizer(
        self, prompt_ids: Sequence[int] = (), *, skip_special_tokens: bool = True, show: Sequence[int] = ()
    ) -> Detokenizer:
        """Incremental decoding of what follows `prompt_ids`; `show`: special tokens that are not left out."""
        pieces = self._hiding if skip_special_tokens else self._showing
        if show and skip_special_tokens and self._make_pieces is not None:
            shown = frozenset(show)
            if shown not in self._partly:
                self._partly[shown] = self._make_pieces(self._special_ids - shown)
            pieces = self._partly[shown]
        if pieces is None:
            return WindowDetokenizer(self._backend, prompt_ids, skip_special_tokens=skip_special_tokens)
        return ByteDetokenizer(pieces, prompt_ids, byte_fallback=self._byte_fallback)

    @cached_property
    def chat_template(self) -> ChatTemplate | None:
        """The template used when none is named; None where the checkpoint has none."""
        if self._override is not None:
            return self._override
        return self._named("default") if "default" in self._templates else None

    @property
    def tool_template(self) -> str | None:
        """The source of the template that chats with tools are put into; None where there is none."""
        if self._override is None and "tool_use" in self._templates:
            return self._templates["tool_use"]
        return None if self.chat_template is None else self.chat_template.source

    def compile_templates(self) -> None:
        """Compiles what requests may use; ConfigError for a broken template, else met at its first use."""
        for name in () if self._override else self._templates:
            self._named(name)

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        /,
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        template: str | None = None,
        add_generation_prompt: bool = True,
        **kwargs: Any,
    ) -> str:
        """The prompt for `messages`; `template` names one of several. See ChatTemplate.render."""
        chosen = self._choose(template, has_tools=bool(tools))
        return chosen.render(messages, tools=tools, add_generation_prompt=add_generation_prompt, **kwargs)

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        /,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **kwargs: Any,
    ) -> list[int]:
        """Token ids of `render_chat`; templates write special tokens themselves, so none are added."""
        return self.encode(self.render_chat(messages, tools, **kwargs), add_special_tokens=False)

    def _encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        if len(text) <= SHORT:
            encoding = self._backend.encode(text, add_special_tokens=add_special_tokens)
        else:
            (encoding,) = self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        ids: list[int] = encoding.ids
        return ids

    def _choose(self, name: str | None, *, has_tools: bool) -> ChatTemplate:
        if name is not None:
            return self._named(name)
        if self._override is None and has_tools and "tool_use" in self._templates:
            return self._named("tool_use")
        if self.chat_template is None:
            known = f"; it has {', '.join(sorted(self._templates))}: name one" if self._templates else ""
            raise TemplateError(f"the model has no chat template{known}")
        return self.chat_template

    def _named(self, name: str) -> ChatTemplate:
        if name not in self._templates:
            known = ", ".join(sorted(self._templates)) or "none"
            raise TemplateError(
                f"no chat template is named {name!r}; the model has: {known}", field="chat_template"
            )
        if name not in self._compiled:
            self._compiled[name] = ChatTemplate(self._templates[name], self.special_tokens, name=name)
        return self._compiled[name]


def without_surrogates(text: str) -> str:
    """A text that is UTF-8: JSON can carry half of a surrogate pair, which no such text can."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _missing(folder: Path) -> str:
    if not folder.is_dir():
        return f"{folder}: no such folder"
    slow = next((f for f in ("tokenizer.model", "vocab.json") if (folder / f).is_file()), None)
    hint = f"; {slow} alone is not enough: save the tokenizer once with transformers" if slow else ""
    return f"{folder}: tokenizer.json is missing{hint}"


def _decoder_section(backend: RustTokenizer) -> dict[str, Any] | None:
    if backend.decoder is None:
        return None
    section: dict[str, Any] = json.loads(backend.decoder.__getstate__())
    return section


def _special_ids(backend: RustTokenizer) -> frozenset[int]:
    # Asked of the library itself: a token can be special without its own flag saying so.
    def shown(token_id: int, *, skip: bool) -> bool:
        return bool(backend.decode([token_id], skip_special_tokens=skip))

    added = backend.get_added_tokens_decoder()
    return frozenset(i for i in added if shown(i, skip=False) and not shown(i, skip=True))


def _added_token(value: Any, *, special: bool) -> AddedToken | None:
    if isinstance(value, str):
        return AddedToken(value, special=special, normalized=False)
    if not isinstance(value, dict) or not isinstance(value.get("content"), str):
        return None
    flags = {k: bool(value[k]) for k in ("single_word", "lstrip", "rstrip", "normalized") if k in value}
    return AddedToken(value["content"], special=special or bool(value.get("special")), **flags)


def _add_tokens(backend: RustTokenizer, config: dict[str, Any], special: dict[str, str]) -> None:
    """Tokens that only tokenizer_config.json knows, in order of their ids, then the named special ones."""
    listed = config.get("added_tokens_decoder")
    if isinstance(listed, dict):
        for token_id in sorted((i for i in listed if str(i).isdigit()), key=int):
            token = _added_token(listed[token_id], special=False)
            if token is not None and backend.token_to_id(token.content) is None:
                (backend.add_special_tokens if token.special else backend.add_tokens)([token])
    extra: list[Any] = list(special.values())
    for name in ("additional_special_tokens", "extra_special_tokens"):
        more = config.get(name)
        extra += list(more.values()) if isinstance(more, dict) else more if isinstance(more, list) else []
    tokens = [_added_token(value, special=True) for value in extra]
    backend.add_special_tokens([t for t in tokens if t is not None and t.content])
