"""Chat templates: the Jinja programs that turn messages into a prompt.

Rendered as `transformers` renders them: sandboxed, with trimmed blocks, loop controls, the
`generation` tag, a `tojson` that does not escape HTML, `raise_exception` and `strftime_now`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from airi.errors import ConfigError
from airi.text._messages import Needs, TemplateError, normalize_messages, plain_copy, read_needs

__all__ = ["ChatTemplate", "TemplateError"]

_RESERVED = ("messages", "tools")
# Stands behind the last message's text while a template renders it, to find where to cut.
_CONTINUE_MARK = "\x02airi-continue\x03"


class ChatTemplate:
    """A compiled chat template. Rendering never changes its arguments."""

    def __init__(
        self, source: str, special_tokens: Mapping[str, str] | None = None, *, name: str = "default"
    ) -> None:
        """`special_tokens` (bos_token, ...) are variables of the template. Bad syntax raises ConfigError."""
        self.source = source
        self.name = name
        self._special_tokens = dict(special_tokens or {})
        environment = _environment()
        try:
            self._template = environment.from_string(source)
            self._needs: Needs = read_needs(environment.parse(source))
        except jinja2.TemplateSyntaxError as error:
            raise ConfigError(f"chat template {name!r}: line {error.lineno}: {error.message}") from None

    @classmethod
    def load(cls, source: str | Path, special_tokens: Mapping[str, str] | None = None) -> ChatTemplate:
        """From a file, or from the template's own text (recognised by a brace or a line break)."""
        text = str(source)
        if isinstance(source, str) and ("{" in text or "\n" in text):
            return cls(text, special_tokens, name="given")
        path = Path(source)
        try:
            return cls(path.read_text(encoding="utf-8"), special_tokens, name=path.name)
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise ConfigError(f"chat template {text}: cannot be read: {reason}") from None

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        /,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> str:
        """The prompt for `messages`. chat_template_kwargs, or `kwargs`, are further variables of the template.

        continue_final_message leaves the last message open, so that the model goes on writing it.
        Raises TemplateError for messages of a wrong form and for what the template refuses.
        """
        chat = normalize_messages(messages, self._needs)
        if continue_final_message and add_generation_prompt:
            raise TemplateError(
                "continue_final_message and add_generation_prompt cannot both be true",
                field="continue_final_message",
            )
        if continue_final_message:
            _mark_last(chat)
        variables = {
            **self._special_tokens,
            "messages": chat,
            "tools": plain_copy(tools, "tools") if tools else None,
            "documents": plain_copy(documents, "documents") if documents else None,
            "add_generation_prompt": add_generation_prompt,
            **_checked_kwargs({**(chat_template_kwargs or {}), **kwargs}),
        }
        try:
            text = self._template.render(variables)
        except jinja2.TemplateError as error:
            raise TemplateError(error.message or "the chat template refused the messages") from None
        except RecursionError:
            raise TemplateError("the chat template cannot render the messages: nested too deeply") from None
        except Exception as error:
            # Templates are programs: a message that lacks what they read ends in any of Python's errors.
            raise TemplateError(f"the chat template cannot render the messages: {_reason(error)}") from None
        return _cut_at_mark(text) if continue_final_message else text


def _checked_kwargs(kwargs: dict[str, Any]) -> dict[str, Any]:
    for name in _RESERVED:
        if name in kwargs:
            message = f"chat_template_kwargs must not contain {name!r}"
            raise TemplateError(message, field="chat_template_kwargs")
    copied: dict[str, Any] = plain_copy(kwargs, "chat_template_kwargs")
    return copied


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _mark_last(chat: list[dict[str, Any]]) -> None:
    last = chat[-1] if chat else {}
    content = last.get("content")
    if isinstance(content, str):
        last["content"] = content + _CONTINUE_MARK
        return
    if isinstance(content, list):
        for part in reversed(content):
            if isinstance(part.get("text"), str):
                part["text"] += _CONTINUE_MARK
                return
    raise TemplateError(
        "continue_final_message needs a last message with text", field="continue_final_message"
    )


def _cut_at_mark(text: str) -> str:
    at = text.rfind(_CONTINUE_MARK)
    if at < 0:
        raise TemplateError(
            "continue_final_message: the chat template leaves out the last message",
            field="continue_final_message",
        )
    return text[:at]


class _GenerationTag(jinja2.ext.Extension):
    """`{% generation %}` marks what an assistant wrote, for training; here it only renders its body."""

    tags = {"generation"}  # noqa: RUF012 - the base class declares a plain set

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_render"), [], [], body).set_lineno(line)

    def _render(self, caller: Any) -> Any:
        return caller()


class _TemplateNamespace(Namespace):
    """Jinja's namespace without underscore names, which could reach interpreter internals."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        # No named parameter: a template may call namespace(self=...).
        self, *rest = args
        values = dict(*rest, **kwargs)
        for name in values:
            _check_name(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


class _TemplateDict:
    """`dict` for templates: makes dictionaries, shows nothing of the class."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace cannot hold the name {name!r}")


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,  # noqa: FBT001, FBT002 - templates pass these by position
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,  # noqa: FBT001, FBT002
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _strftime_now(layout: str) -> str:
    return datetime.now().strftime(layout)


@cache
def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    environment.globals["dict"] = _TemplateDict()
    environment.globals["namespace"] = _TemplateNamespace
    return environment
