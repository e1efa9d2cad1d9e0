"""All that can be told about a config before anything is served."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

from airi.config.cedar import policy_mistakes
from airi.config.changes import change_mistakes
from airi.config.content import content_mistakes
from airi.config.fit import check_fit
from airi.config.forbidden import forbidden_mistakes, forbidden_notes
from airi.config.load import ConfigFile
from airi.config.lock import stale_models
from airi.config.mistakes import Mistake
from airi.config.routes import route_mistakes
from airi.errors import AiriError, ConfigError, ConfigFileError

__all__ = ["Report", "check"]


@dataclass(frozen=True, slots=True)
class Report:
    """What `check` found of a config that has no mistake."""

    summary: str
    notes: tuple[str, ...]


def check(file: ConfigFile) -> Report:
    """Looks at everything that a config names. Raises ConfigFileError with a line for each mistake."""
    mistakes: list[object] = [*policy_mistakes(file), *content_mistakes(file), *route_mistakes(file)]
    mistakes += [*forbidden_mistakes(file), *_file_mistakes(file)]
    notes: tuple[str, ...] = ()
    try:
        mistakes += stale_models(file)
        fit = check_fit(file)
        mistakes += fit.mistakes
        notes = fit.notes
        if not mistakes:
            mistakes += change_mistakes(file)
        if not mistakes:
            notes += forbidden_notes(file)
    except ConfigFileError as error:
        mistakes += error.lines
    except ConfigError as error:
        mistakes.append(f"{file.document.name}:1: {error}")
    if mistakes:
        raise ConfigFileError(mistakes)
    return Report(_summary(file), notes)


def _summary(file: ConfigFile) -> str:
    config = file.config
    content = config.content
    rules = len(content.input) + len(content.output) + len(content.forbid)
    counts = [(len(config.models), "model"), (len(config.tenants), "tenant"), (rules, "content rule")]
    parts = [f"{count} {what}{'s' * (count != 1)}" for count, what in counts if count]
    return ", ".join([*parts, *(["policies"] if config.policies is not None else [])])


def _file_mistakes(file: ConfigFile) -> Iterator[Mistake]:
    """Files that must be there, and folders of those that will be."""
    config = file.config
    needed: list[tuple[tuple[str | int, ...], str]] = []
    if config.server.tls is not None:
        needed += [(("server", "tls", name), getattr(config.server.tls, name)) for name in ("cert", "key")]
    for path, name in needed:
        if not os.access(file.resolve(name), os.R_OK):
            yield file.mistake(path, "a file that can be read")
    written = [
        (("observability", "audit"), config.observability.audit),
        (("engine", "record_steps"), config.engine.record_steps),
    ]
    for path, made in written:
        if made is not None and not os.access(file.resolve(made).parent, os.W_OK):
            yield file.mistake(path, "a file in a folder that can be written to")
    for i, model in enumerate(config.models):
        given = None if model.upstream is None else model.upstream.tokenizer
        if given is not None and not (file.resolve(given) / "tokenizer.json").is_file():
            yield file.mistake(("models", i, "upstream", "tokenizer"), "a folder with a tokenizer.json")
        if model.chat_template is not None:
            reason = _template_problem(str(file.resolve(model.chat_template)))
            if reason is not None:
                yield file.mistake(("models", i, "chat_template"), f"a chat template ({file.masked(reason)})")


def _template_problem(path: str) -> str | None:
    from pathlib import Path

    from airi.text import ChatTemplate

    try:
        ChatTemplate.load(Path(path))
    except AiriError as error:
        return str(error)
    return None
