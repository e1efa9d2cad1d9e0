"""From a file to a Config, or to every mistake in it, one line each."""

from __future__ import annotations

import difflib
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import TypeAdapter, ValidationError

from airi.config.document import MAX_BYTES, Document, Path, parse_document
from airi.config.mistakes import Mistake
from airi.config.references import wrong_references
from airi.config.rules import ContentRule, ForbidRule
from airi.config.schema import Config
from airi.config.values import Part
from airi.config.variables import expand
from airi.errors import ConfigError, ConfigFileError
from airi.state.urls import StateUrl

__all__ = ["ConfigFile", "load", "parse", "read_bounded"]

_LATER = frozenset(Config.later)
_UNEXPANDED = frozenset({("policies", "text"), *((name,) for name in _LATER)})
_LEAST_MASKED = 3
"""Characters of a value that can be told from the words of a message."""
_MOST_TEXT = 16 << 20
_PHRASES = {
    "missing": "a value",
    "string_type": "text",
    "string_pattern_mismatch": "text of another form",
    "string_too_short": "text that is not empty",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "mapping_type": "a mapping",
    "dict_type": "a mapping",
    "float_type": "a number",
    "finite_number": "a finite number",
    "none_required": "nothing",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigFile:
    """A config with the file it came from."""

    path: FilePath
    document: Document = field(repr=False)
    config: Config
    texts: Mapping[str, str] = field(repr=False)
    """What the files hold that it names for policies and block lists, by their paths as written."""
    digest: str
    """SHA-256 of the file and of those texts, in hexadecimal."""

    @property
    def policies(self) -> str | None:
        """The text of its policies, wherever it stands; None where it has none."""
        policies = self.config.policies
        if policies is None or policies.file is None:
            return None if policies is None else policies.text
        return self.texts[policies.file]

    def words(self, rule: ContentRule | ForbidRule) -> tuple[str, ...]:
        """A rule's block list: its words and those of its file."""
        lines = self.texts[rule.file].splitlines() if rule.file is not None else ()
        return (*rule.words, *(line.strip() for line in lines if line.strip()))

    @property
    def state(self) -> str:
        """URL of the database that keys and budgets are in."""
        return StateUrl.parse(self.config.server.state).below(self.folder).text

    @property
    def folder(self) -> FilePath:
        """What relative paths start from."""
        return self.path.parent

    def resolve(self, path: str) -> FilePath:
        """A path that the config names."""
        return self.folder / FilePath(path).expanduser()

    def masked(self, text: str) -> str:
        """A message in which values of variables stand as the file has them."""
        pending = [self.document.root]
        while pending:
            node = pending.pop()
            pending += [child for _, child in node.children()]
            if node.expanded and node.text and len(node.expanded) >= _LEAST_MASKED:
                text = text.replace(node.expanded, node.text)
        return text

    def mistake(self, path: Path, accepted: str, *, value: str | None = None) -> Mistake:
        """As `Document.mistake`."""
        return self.document.mistake(path, accepted, value=value)


def load(path: str | FilePath, environ: Mapping[str, str] | None = None) -> ConfigFile:
    """The config in a file, with variables from `environ` (the process's unless given).

    Raises ConfigFileError with a line for each mistake, and ConfigError where the file cannot be read.
    """
    path = FilePath(path)
    return parse(read_bounded(path), path, environ)


def parse(
    text: str | bytes, path: str | FilePath = "airi.yaml", environ: Mapping[str, str] | None = None
) -> ConfigFile:
    """As `load`, of a text that the file at `path` might hold."""
    document = parse_document(text, str(path))
    mistakes = expand(document, os.environ if environ is None else environ, without=_UNEXPANDED)
    config, wrong = _validate(document)
    known = {mistake.path for mistake in mistakes}
    mistakes += [mistake for mistake in wrong if mistake.path not in known]
    mistakes += [_later(document, (key,)) for key in document.root.plain() if key in _LATER]
    if config is not None:
        mistakes += wrong_references(config, document)
    texts = {} if config is None else _read_texts(config, document, FilePath(path).parent, mistakes)
    if mistakes or config is None:
        mistakes.sort(key=lambda mistake: mistake.line)
        raise ConfigFileError(mistakes)
    return ConfigFile(
        path=FilePath(path), document=document, config=config, texts=texts, digest=_digest(text, texts)
    )


def _digest(text: str | bytes, texts: Mapping[str, str]) -> str:
    whole = hashlib.sha256()
    for part in (text, *(part for item in sorted(texts.items()) for part in item)):
        data = part.encode(errors="replace") if isinstance(part, str) else part
        whole.update(len(data).to_bytes(8, "big") + data)
    return whole.hexdigest()


def _read_texts(
    config: Config, document: Document, folder: FilePath, mistakes: list[Mistake]
) -> dict[str, str]:
    """What the files hold whose texts belong to a config, by their paths as written."""
    texts: dict[str, str] = {}
    for where, name in _text_files(config):
        try:
            texts[name] = read_bounded(folder / FilePath(name).expanduser(), _MOST_TEXT).decode()
        except ConfigError as error:
            reason = str(error).rpartition(": ")[2]
        except UnicodeDecodeError:
            reason = "it is not UTF-8"
        except RuntimeError:  # of expanduser
            reason = "there is no such home"
        else:
            continue
        mistakes.append(document.mistake(where, f"a file that can be read ({reason})"))
    return texts


def _text_files(config: Config) -> Iterator[tuple[Path, str]]:
    """Files whose texts belong to a config, by the path of the key that names them."""
    policies = config.policies
    if policies is not None and policies.file is not None and policies.text is None:
        yield ("policies", "file"), policies.file
    for side in ("input", "output", "forbid"):
        for i, rule in enumerate(getattr(config.content, side)):
            if rule.file is not None:
                yield ("content", side, i, "file"), rule.file


def _validate(document: Document) -> tuple[Config | None, list[Mistake]]:
    """The document as a config, or what is wrong with it. What variables gave is of the kind that is wanted there."""
    for _ in range(2):
        plain = document.root.plain()
        try:
            return Config.model_validate(
                {key: value for key, value in plain.items() if key not in _LATER}
            ), []
        except ValidationError as error:
            found = error.errors(include_url=False, include_input=False)
        # Aliases share nodes: each is tried once.
        nodes = {id(node): node for details in found if (node := document.find(details["loc"])) is not None}
        tried = [node.try_other_kind() for node in nodes.values()]
        if not any(tried):
            break
    return None, [_mistake(document, details) for details in found]


def read_bounded(path: FilePath, most: int = MAX_BYTES) -> bytes:
    """What a file of at most so many bytes holds; raises ConfigError."""
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError:
        raise ConfigError(f"{str(path)!r} is no path") from None
    if len(data) > most:
        raise ConfigError(f"{path} is too large: at most {most} bytes")
    return data


def _mistake(document: Document, details: Any) -> Mistake:
    path: Path = tuple(step for step in details["loc"] if step != "[key]")
    kind, context = details["type"], details.get("ctx", {})
    if kind == "extra_forbidden":
        return _unknown_key(document, path)
    if "[key]" in details["loc"]:
        accepted = context.get("accepted") or context.get("expected") or "another key"
        what = "is a key here"
        return Mistake(document.name, document.line(path), path, what, f"accepted: {_unquoted(accepted)}")
    accepted = _accepted(kind, context, path)
    return document.mistake(path, (kind == "missing" and _wanted(path)) or accepted)


def _wanted(path: Path) -> str | None:
    """What is accepted at a path where there is nothing: what is said of a value that cannot be right."""
    part = _part_at(path[:-1])
    if part is None or _part_at(path) is not None:
        return None
    field = part.model_fields[str(path[-1])]
    kind: Any = field.annotation
    if field.metadata:
        kind = Annotated[kind, *field.metadata]
    try:
        TypeAdapter(kind).validate_python(object())
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=False)[0]
        return _accepted(details["type"], details.get("ctx", {}), path)
    return None


def _accepted(kind: str, context: Mapping[str, Any], path: Path) -> str:
    if kind == "accepted":
        return str(context["accepted"])
    if kind == "literal_error":
        return _unquoted(str(context["expected"]))
    if kind in ("model_type", "model_attributes_type") or (kind == "missing" and _part_at(path) is not None):
        part = _part_at(path)
        return "a mapping" if part is None else f"a mapping with {', '.join(part.model_fields)}"
    bounds = {
        "greater_than": "a number above {gt}",
        "greater_than_equal": "a number of at least {ge}",
        "less_than": "a number below {lt}",
        "less_than_equal": "a number of at most {le}",
        "too_short": "a list of at least {min_length}",
        "too_long": "a list of at most {max_length}",
        "string_too_long": "at most {max_length} characters",
    }
    if kind in bounds:
        return bounds[kind].format_map(dict(context))
    return _PHRASES.get(kind, "another value")


def _unquoted(expected: str) -> str:
    return expected.replace("'", "").replace("False", "false").replace("True", "true")


def _unknown_key(document: Document, path: Path) -> Mistake:
    *above, key = path
    part = _part_at(tuple(above)) or Config
    if key in part.later:
        return _later(document, path)
    known = list(part.model_fields)
    meant = part.foreign.get(str(key)) or next(iter(difflib.get_close_matches(str(key), known, n=1)), None)
    nearest = f"the nearest is {meant}; " if meant else ""
    hint = f"{nearest}accepted: {', '.join(sorted(known))}"
    return Mistake(document.name, document.line(path), path, "is an unknown key", hint)


def _later(document: Document, path: Path) -> Mistake:
    hint = f"this version of AIRI does not have {path[-1]}; accepted: a file without it"
    return Mistake(document.name, document.line(path), path, "is given", hint)


def _part_at(path: Sequence[str | int]) -> type[Part] | None:
    """The kind of mapping that belongs at a path."""
    kinds: list[Any] = [Config]
    for step in path:
        kinds = [inner for kind in kinds for inner in _below(kind, step)]
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Part)), None)


def _below(kind: Any, step: str | int) -> list[Any]:
    """What may be an entry, or an item, of what is of this kind."""
    if isinstance(kind, type) and issubclass(kind, Part):
        field = kind.model_fields.get(str(step))
        return [] if field is None else _alternatives(field.annotation)
    inner = get_args(kind)
    if get_origin(kind) is tuple or get_origin(kind) is Mapping:
        return _alternatives(inner[0] if isinstance(step, int) else inner[-1])
    return []


def _alternatives(annotation: Any) -> list[Any]:
    if get_origin(annotation) is Annotated:
        return _alternatives(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [kind for part in get_args(annotation) for kind in _alternatives(part)]
    return [annotation]
