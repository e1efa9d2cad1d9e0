"""Messages as chat templates expect them, made from messages as OpenAI clients send them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import nodes

from airi.errors import RequestError

__all__ = ["Needs", "TemplateError", "normalize_messages", "plain_copy", "read_needs"]

_TEXT_PARTS = ("text", "input_text", "output_text", "refusal")
_REASONING = ("reasoning_content", "reasoning", "thinking")
_STRING_TESTS = ("string", "iterable", "sequence", "mapping")


class TemplateError(RequestError):
    """The chat template refused the messages, or they cannot be rendered."""

    def __init__(self, message: str, *, field: str | None = "messages") -> None:
        super().__init__(message, field=field)


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """The form of a message's content that a template is written for."""

    parts: bool
    """It walks over a list of content parts."""
    strings: bool
    """It takes a plain string."""
    none: bool
    """It asks whether the content is none."""
    developer: bool
    """It knows the role "developer", OpenAI's newer name for "system"."""


def read_needs(tree: nodes.Template) -> Needs:
    """What a parsed template does with `message.content`."""
    names = {"content"}
    for assign in tree.find_all(nodes.Assign):
        if isinstance(assign.target, nodes.Name) and _is_content(assign.node, names):
            names.add(assign.target.name)
    parts = any(_is_content(loop.iter, names) for loop in tree.find_all(nodes.For))
    tests = [t for t in tree.find_all(nodes.Test) if _is_content(t.node, names)]
    return Needs(
        parts=parts,
        strings=not parts or any(t.name in _STRING_TESTS for t in tests),
        none=any(t.name == "none" for t in tests),
        developer=any("developer" in str(c.value) for c in tree.find_all(nodes.Const)),
    )


def _is_content(node: nodes.Node | None, names: set[str]) -> bool:
    if isinstance(node, nodes.Filter):
        return _is_content(node.node, names)
    if isinstance(node, nodes.Getattr):
        return node.attr == "content"
    if isinstance(node, nodes.Getitem):
        return isinstance(node.arg, nodes.Const) and node.arg.value == "content"
    return isinstance(node, nodes.Name) and node.name in names


def normalize_messages(messages: Sequence[Mapping[str, Any]], needs: Needs) -> list[dict[str, Any]]:
    """Deep copies of `messages`: content in the form of `needs`, arguments of tool calls as objects."""
    if isinstance(messages, str) or not isinstance(messages, Sequence):
        raise TemplateError(f"messages must be a list of messages, got {type(messages).__name__}")
    return [_normalize(m, needs, f"messages[{i}]") for i, m in enumerate(messages)]


def _normalize(message: Mapping[str, Any], needs: Needs, where: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise TemplateError(f"{where} must be an object with role and content, got {type(message).__name__}")
    if not isinstance(message.get("role"), str):
        raise TemplateError(f"{where}.role must be a string, got {type(message.get('role')).__name__}")
    out = {str(k): plain_copy(v, f"{where}.{k}") for k, v in message.items()}
    if out["role"] == "developer" and not needs.developer:
        out["role"] = "system"
    out["content"] = _content(out.get("content"), needs, f"{where}.content")
    if out.get("tool_calls") is not None:
        out["tool_calls"] = _tool_calls(out["tool_calls"], f"{where}.tool_calls")
    else:
        out.pop("tool_calls", None)
    reasoning = next((out[name] for name in _REASONING if out.get(name) is not None), None)
    if reasoning is not None:
        # Templates read it under either of two names, whatever name the client used.
        out.setdefault("thinking", reasoning)
        out["reasoning_content"] = reasoning
    return out


def _content(content: Any, needs: Needs, where: str) -> Any:
    if content is None:
        return None if needs.none else ""
    if isinstance(content, str):
        return content if needs.strings else [{"type": "text", "text": content}]
    if not isinstance(content, list):
        raise TemplateError(f"{where} must be a string or a list of parts, got {type(content).__name__}")
    texts = [_part_text(part, f"{where}[{i}]") for i, part in enumerate(content)]
    if needs.parts:
        return [{"type": "text", "text": text} for text in texts]
    return "\n".join(texts)


def _part_text(part: Any, where: str) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping):
        raise TemplateError(f"{where} must be an object with a type, got {type(part).__name__}")
    kind = part.get("type", "text")
    if kind not in _TEXT_PARTS:
        raise TemplateError(f"{where}.type is {kind!r}; this model takes text only")
    text = part.get("refusal" if kind == "refusal" else "text")
    if not isinstance(text, str):
        raise TemplateError(f"{where}.text must be a string, got {type(text).__name__}")
    return text


def _tool_calls(calls: Any, where: str) -> list[Any]:
    if not isinstance(calls, list):
        raise TemplateError(f"{where} must be a list, got {type(calls).__name__}")
    for i, call in enumerate(calls):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict):
            raise TemplateError(f"{where}[{i}].function must be an object, got {type(function).__name__}")
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            function["arguments"] = _arguments(arguments, f"{where}[{i}].function.arguments")
    return calls


def _arguments(text: str, where: str) -> Any:
    if not text.strip():
        return {}
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise TemplateError(f"{where} must be JSON: {error.msg} at character {error.pos}") from None
    except ValueError:  # the interpreter reads no number of so many digits
        raise TemplateError(f"{where} holds a number that is too long") from None


def plain_copy(value: Any, where: str) -> Any:
    """A copy made of JSON's types only, so that a template reaches no method of anything else."""
    if isinstance(value, Mapping):
        return {str(k): plain_copy(v, where) for k, v in value.items()}
    if isinstance(value, str):
        return str(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Sequence):
        return [plain_copy(v, where) for v in value]
    raise TemplateError(f"{where} holds a value of type {type(value).__name__}, which is not JSON")
