"""Whether an answer is what its certificates say, by the config that it was served with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airi.config.forbidden import ForbiddenTable
from airi.config.load import ConfigFile
from airi.config.options import model_path
from airi.errors import ConfigError

if TYPE_CHECKING:
    from airi.policy.forbidden import ForbiddenPolicy

__all__ = ["Difference", "verify_answer"]

_VERSION = 1
_TEXTS = ("text", "content")
"""Where a choice, its message or its delta has what is shown."""


class Difference(Exception):  # what is found, no mistake of anybody's
    """What differs, in one line."""


@dataclass(slots=True)
class _Choice:
    parts: list[str] = field(default_factory=list)
    certificate: dict[str, Any] | None = None
    calls: dict[str, str] = field(default_factory=dict)
    """Names and arguments of calls of tools, by where they stand."""


def verify_answer(
    path: Path, file: ConfigFile, *, model: str | None = None, tenant: str = "", request: Path | None = None
) -> int:
    """Raises Difference where an answer, whole or as a stream, is not what its certificates say; else how many it has.

    Of an answer with calls of tools the certificate has the text that they were made of: that is verified, and that
    nothing of the calls matches; not that they are those of the text.
    `model`: in place of the one that it names. `request`: the body that was sent; what is echoed of its prompts may
    hold anything. Raises ConfigError for a file that cannot be read and for a model or tenant that the config does not
    have.
    """
    chunks = list(_chunks(_read(path)))
    prompts = [] if request is None else _prompts(request)
    choices = _choices(chunks)
    name = _model(file, model, chunks)
    if tenant and tenant not in [each.name for each in file.config.tenants]:
        raise ConfigError(f"the config has no tenant {tenant!r}", field="tenant")
    policy = ForbiddenTable(file).find(tenant=tenant, model=name)
    if policy is None:
        whom = f"tenant {tenant!r}" if tenant else "callers without a tenant; name one"
        raise Difference(f"the config forbids no texts of model {name!r} to {whom}")
    tokenizer = _tokenizer_sha256(file, name)
    for index, choice in sorted(choices.items()):
        _verify(f"choices[{index}]", choice, policy, tokenizer, prompts)
    return len(choices)


def _verify(
    where: str, choice: _Choice, policy: ForbiddenPolicy, tokenizer: str | None, prompts: list[str]
) -> None:
    given = choice.certificate
    if given is None:
        raise Difference(f"{where}: has no certificate")
    shown, start = "".join(choice.parts), given.get("start", 0)
    if choice.calls:
        _verify_shown(where, {"content": shown, **choice.calls}, policy)
        made_of = given.get("text")
        if not isinstance(made_of, str):
            raise Difference(
                f"{where}: has calls of tools, but its certificate has no text that they were made of"
            )
        shown = made_of
    if type(start) is not int or not 0 <= start <= len(shown):
        raise Difference(f"{where}: start is {_short(start)}, no place in its {len(shown)} characters")
    text = shown[start:]
    wanted = {"version": _VERSION, "policy": policy.digest.hex(), "automaton": policy.automaton_sha256}
    if tokenizer is not None:
        wanted["tokenizer"] = tokenizer
    data = text.encode("utf-8", "surrogatepass")
    wanted["text_sha256"] = hashlib.sha256(data).hexdigest()
    for name, value in wanted.items():
        if given.get(name) != value:
            of = "the text's" if name == "text_sha256" else "the config's"
            raise Difference(f"{where}: {name} is {_short(given.get(name))}, {of} is {_short(value)}")
    match = policy.first_match(text)
    if match is not None:
        raise Difference(f"{where}: the text matches {match}")
    # Nobody has signed `start`: what stands before it is the prompt's where the request says so, else the answer's.
    match = None if shown[:start] in prompts else policy.first_match(shown)
    if match is not None:
        raise Difference(
            f"{where}: what is said to be an echoed prompt matches {match}; no request with that prompt was given"
        )
    state = policy.state_after(text).hex()
    if given.get("final_state") != state:
        raise Difference(
            f"{where}: final_state is {_short(given.get('final_state'))}, the text's is {_short(state)}"
        )


def _verify_shown(where: str, texts: dict[str, str], policy: ForbiddenPolicy) -> None:
    """Raises Difference for a text with a match: what is put together from a text without one may have some."""
    for name, text in texts.items():
        match = policy.first_match(text)
        if match is not None:
            raise Difference(f"{where}: its {name} matches {match}")


def _short(value: object) -> str:
    shown = str(value)
    return shown if len(shown) <= 16 else f"{shown[:16]}..."


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise ConfigError(f"{path}: cannot be read: {reason}") from None


def _prompts(request: Path) -> list[str]:
    """The texts that a request gives as prompts. Of token ids nothing can be said."""
    try:
        body = json.loads(_read(request))
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise ConfigError(f"{request}: is no request: it must be a JSON object")
    prompt = body.get("prompt")
    return [each for each in (prompt if isinstance(prompt, list) else [prompt]) if isinstance(each, str)]


def _chunks(text: str) -> Iterator[dict[str, Any]]:
    """A whole answer, or the events of a stream."""
    if text.lstrip().startswith("{"):
        yield _object(text)
        return
    for line in text.split("\n"):  # JSON may hold the other characters that end lines
        data = line.removeprefix("data:").strip()
        if line.startswith("data:") and data != "[DONE]":
            yield _object(data)


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise Difference("it is neither a JSON object nor a stream of them")
    error = found.get("error")
    if isinstance(error, dict):
        raise Difference(f"it is an error or ended with one: {_short(error.get('code'))}")
    return found


def _choices(chunks: list[dict[str, Any]]) -> dict[int, _Choice]:
    choices: dict[int, _Choice] = {}
    for chunk in chunks:
        given = chunk.get("choices")
        for each in given if isinstance(given, list) else ():
            if not isinstance(each, dict) or not isinstance(each.get("index"), int):
                raise Difference("a choice has no index")
            choice = choices.setdefault(each["index"], _Choice())
            for part in (each, each.get("message"), each.get("delta")):
                if isinstance(part, dict):
                    choice.parts += [part[name] for name in _TEXTS if isinstance(part.get(name), str)]
                    _add_calls(choice.calls, part.get("tool_calls"))
            certificate = each.get("certificate")
            choice.certificate = certificate if isinstance(certificate, dict) else choice.certificate
    if not choices:
        raise Difference("it has no choices")
    return choices


def _add_calls(calls: dict[str, str], given: object) -> None:
    """Calls of a message, or what a delta adds to them."""
    for place, call in enumerate(given if isinstance(given, list) else ()):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict):
            raise Difference("a call of a tool has no function")
        for name in ("name", "arguments"):
            if isinstance(function.get(name), str):
                where = f"tool_calls[{call.get('index', place)}].function.{name}"
                calls[where] = calls.get(where, "") + function[name]


def _model(file: ConfigFile, model: str | None, chunks: list[dict[str, Any]]) -> str:
    """The model's own name."""
    asked = model if model is not None else chunks[0].get("model")
    for each in file.config.models:
        if asked == each.name or asked in each.aliases:
            return each.name
    known = ", ".join(each.name for each in file.config.models)
    raise ConfigError(f"the config has no model {asked!r}; it has: {known}", field="model")


def _tokenizer_sha256(file: ConfigFile, model: str) -> str | None:
    """Of the model's tokenizer, where it is at hand."""
    from airi.text import tokenizer_sha256

    [given] = [each for each in file.config.models if each.name == model]
    folder = Path(model_path(file, given))
    return tokenizer_sha256(folder) if (folder / "tokenizer.json").is_file() else None
