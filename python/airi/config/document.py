"""A YAML file as plain values that know their lines.

Read from the parser's events, so that nothing of YAML which a config has no use for is ever built: tags, several
documents, keys that are no text, references that grow beyond any file. Plain scalars are read as YAML 1.2 says, in
which `no` and `1:30` are texts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import yaml

from airi.config.mistakes import Mistake, dotted, masked, shown
from airi.errors import ConfigFileError

__all__ = ["MAX_BYTES", "Document", "Node", "Path", "parse_document"]

MAX_BYTES = 1 << 20
_MAX_NODES = 100_000
_MAX_DEPTH = 32
_MERGE = "<<"
_SECRET_KEYS = ("api_key", "cache_salt_key")
"""Keys whose values nobody is shown, whatever they look like."""
_HIDDEN = "***"

Path = tuple[str | int, ...]
Scalar = str | int | float | bool | None

_RESOLVED = tuple(f"tag:yaml.org,2002:{kind}" for kind in ("int", "float", "bool", "null"))
_TAGS = ("!", *(f"tag:yaml.org,2002:{kind}" for kind in ("str", "map", "seq")), *_RESOLVED)
_NULLS = ("", "~", "null", "Null", "NULL")
_BOOLS = {text: text.lower() == "true" for text in ("true", "True", "TRUE", "false", "False", "FALSE")}
_INT = re.compile(r"[-+]?\d[\d_]{0,39}")
_BASED = re.compile(r"0x[0-9a-fA-F]{1,32}|0o[0-7]{1,40}")
_FLOAT = re.compile(r"[-+]?(\.\d{1,99}|\d{1,99}(\.\d{0,99})?)([eE][-+]?\d{1,4})?")
_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")
_HALF = re.compile("[\ud800-\udfff]")
_SPECIAL = re.compile(r"([-+]?)\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


@dataclass(slots=True, repr=False)
class Node:
    """A value and where it was written. Nodes that an alias names are shared, so what changes one changes each.

    Its repr has no value, which may be a secret.
    """

    line: int
    """From 1. Of an entry of a mapping: its key's."""
    value: Scalar = None
    """Of a scalar."""
    text: str | None = None
    """Of a scalar as it was written."""
    entries: dict[str, Node] | None = None
    """Of a mapping."""
    items: list[Node] | None = None
    """Of a sequence."""
    is_plain: bool = False
    """Of a scalar: whether it was written without quotes, so that it may be a number."""
    is_block: bool = False
    """Of a scalar: whether its lines are the file's, from `text_line` on."""
    text_line: int = 1
    expanded: str | None = None
    """Of a scalar with variables: the text that they gave."""
    size: int = 1
    """Nodes below it and itself, those of aliases each time."""

    def __repr__(self) -> str:
        return f"<Node of line {self.line}>"

    @property
    def shown(self) -> str:
        """For a mistake's line: a scalar as it was written, with secrets masked."""
        if self.entries is not None:
            return "a mapping"
        if self.items is not None:
            return "a list"
        return shown(self.text, quoted=isinstance(self.value, str)) if self.text else "empty"

    def plain(self) -> Any:
        """As dicts, lists and scalars; entries without a value are left out."""
        if self.entries is not None:
            return {key: node.plain() for key, node in self.entries.items() if not node.is_null}
        return self.value if self.items is None else [node.plain() for node in self.items]

    def masked(self) -> Any:
        """As `plain`, for people: without secrets, and with variables in place of what they gave."""
        if self.entries is not None:
            return {
                key: _HIDDEN if key in _SECRET_KEYS and node.expanded is None else node.masked()
                for key, node in self.entries.items()
                if not node.is_null
            }
        if self.items is not None:
            return [node.masked() for node in self.items]
        value = self.text if self.expanded is not None else self.value
        return masked(value) if isinstance(value, str) else value

    def try_other_kind(self) -> bool:
        """Takes what variables gave as a text instead of a number, or the other way; False where that is the same."""
        if self.expanded is None:
            return False
        other = self.expanded if not isinstance(self.value, str) else resolve(self.expanded)
        if type(other) is type(self.value):
            return False
        self.value = other
        return True

    @property
    def is_null(self) -> bool:
        """Whether nothing was written here."""
        return self.entries is None and self.items is None and self.value is None

    def children(self) -> Iterator[tuple[str | int, Node]]:
        """Entries, or items by their numbers."""
        yield from self.entries.items() if self.entries is not None else enumerate(self.items or ())


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A file's values; `name` is what mistakes call the file."""

    name: str
    root: Node

    def find(self, path: Sequence[str | int]) -> Node | None:
        """The node at a path; None where there is none. A mapping may stand for a list that it is the one item of."""
        node: Node | None = self.root
        for step in path:
            if node is None:
                return None
            if isinstance(step, str):
                node = (node.entries or {}).get(step)
            elif step or node.entries is None:
                node = node.items[step] if node.items is not None and step < len(node.items) else None
        return node

    def line(self, path: Sequence[str | int]) -> int:
        """The line of a path, or of what is nearest above it."""
        for length in range(len(path), -1, -1):
            node = self.find(path[:length])
            if node is not None:
                return node.line
        return 1

    def _is_mapping(self, path: Sequence[str | int]) -> bool:
        node = self.find(path)
        return node is not None and node.entries is not None

    def mistake(self, path: Sequence[str | int], accepted: str, *, value: str | None = None) -> Mistake:
        """A mistake at a path, with the value that stands there unless another is given."""
        node = self.find(path)
        path = tuple(step for i, step in enumerate(path) if step != 0 or not self._is_mapping(path[:i]))
        if value is None:
            value = "missing" if node is None or node.is_null else node.shown
            if path and path[-1] in _SECRET_KEYS and value != "missing":
                value = _HIDDEN
        return Mistake(self.name, self.line(path), path, f"is {value}", f"accepted: {accepted}")


def parse_document(text: str | bytes, name: str) -> Document:
    """The document in a text; raises ConfigFileError."""
    size = len(text) if isinstance(text, bytes) else len(text.encode(errors="replace"))
    if size > MAX_BYTES:
        raise ConfigFileError(
            [Mistake(name, 1, (), f"the file has {size} bytes", f"accepted: {MAX_BYTES} at most")]
        )
    if isinstance(text, bytes):
        text = _decode(text, name)
    reader = _Reader(name)
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            reader.take(event)
    except yaml.YAMLError as error:
        reader.mistakes.append(_syntax_mistake(error, name))
    except ConfigFileError:
        raise
    except (RecursionError, ValueError):  # of the scanner, for characters and numbers that it cannot read
        reader.mistakes.append(Mistake(name, reader.line, (), "what follows is not YAML", "accepted: YAML"))
    if not reader.mistakes and (reader.root is None or reader.root.entries is None):
        empty = reader.root is None or reader.root.is_null
        what = "is empty" if empty or reader.root is None else f"holds {reader.root.shown}"
        accepted = "accepted: a mapping with version and models"
        reader.mistakes.append(Mistake(name, 1, (), f"the file {what}", accepted))
    if reader.mistakes or reader.root is None:
        raise ConfigFileError(reader.mistakes)
    return Document(name=name, root=reader.root)


def _decode(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigFileError([Mistake(name, line, (), "the file is not UTF-8", "accepted: UTF-8")]) from None


def _syntax_mistake(error: yaml.YAMLError, name: str) -> Mistake:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    line = 1 if mark is None else mark.line + 1
    # Never the text around the mark, which yaml would show: it may hold a secret.
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "it cannot be read"
    accepted = (
        'YAML 1.2; between { and } a variable stands in quotes: "${NAME}"'
        if "got '{'" in str(problem)
        else "YAML 1.2"
    )
    return Mistake(name, line, (), f"not YAML: {' '.join(str(problem).split())}", f"accepted: {accepted}")


@dataclass(slots=True)
class _Open:
    """A collection whose end has not come."""

    node: Node
    anchor: str | None
    key: tuple[str, int] | None = None
    """The key that waits for its value, and its line."""
    merged: list[Node] = field(default_factory=list)


class _Reader:
    """Builds nodes from events. It has no recursion, so depth is a number that is checked."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._open: list[_Open] = []
        self._anchors: dict[str, Node] = {}
        self._documents = 0
        self._nodes = 0
        self.line = 1
        self.root: Node | None = None
        self.mistakes: list[Mistake] = []

    def take(self, event: yaml.Event) -> None:
        """One event, in order."""
        self.line = 1 if event.start_mark is None else event.start_mark.line + 1
        if isinstance(event, yaml.DocumentStartEvent):
            self._documents += 1
            if self._documents == 2:
                self._stop("a second document begins", "one document")
        else:
            self._take_value(event)

    def _take_value(self, event: yaml.Event) -> None:
        if isinstance(event, yaml.AliasEvent):
            node = self._aliased(event.anchor)
            self._count(node.size)
            self._add(node)
        elif isinstance(event, yaml.ScalarEvent):
            plain = event.tag in _RESOLVED if event.tag else event.style is None
            self._check_tag(event)
            text = self._whole(event.value)
            value = resolve(text) if plain else text
            node = Node(self.line, value, text, is_plain=plain, is_block=event.style == "|")
            node.text_line = self.line + node.is_block
            if event.anchor is not None:
                self._anchors[event.anchor] = node
            self._count(1)
            self._add(node, is_merge=plain and event.value == _MERGE)
        elif isinstance(event, yaml.CollectionStartEvent):
            self._check_tag(event)
            if len(self._open) == _MAX_DEPTH:
                self._stop(f"values lie {_MAX_DEPTH + 1} levels deep", f"{_MAX_DEPTH} at most")
            self._count(1)
            is_mapping = isinstance(event, yaml.MappingStartEvent)
            node = Node(self.line, entries={}) if is_mapping else Node(self.line, items=[])
            self._open.append(_Open(node, event.anchor))
        elif isinstance(event, yaml.CollectionEndEvent):
            self._close()

    def _whole(self, text: str) -> str:
        """A text whose escapes may be JSON's, in which two make one of the characters beyond the first 65,536."""
        text = _PAIR.sub(lambda pair: pair[0].encode("utf-16", "surrogatepass").decode("utf-16"), text)
        half = _HALF.search(text)
        if half is not None:
            what = f"has an escape of half a character, \\u{ord(half[0]):04x}"
            accepted = (
                "accepted: characters as they are, or the escapes of both halves, such as \\ud83d\\ude00"
            )
            self.mistakes.append(Mistake(self._name, self.line, self._path(), what, accepted))
            text = _HALF.sub("\ufffd", text)
        return text

    def _path(self) -> Path:
        """Of what is complete next: a value, or a key in what is open."""
        steps = [
            len(o.node.items) if o.node.items is not None else o.key[0] if o.key else None for o in self._open
        ]
        return tuple(step for step in steps if step is not None)

    def _close(self) -> None:
        done = self._open.pop()
        for source in done.merged:
            for key, node in (source.entries or {}).items():
                if done.node.entries is not None and key not in done.node.entries:
                    done.node.entries[key] = node
                    done.node.size += node.size
                    self._count(node.size)
        if done.anchor is not None:
            self._anchors[done.anchor] = done.node
        self._add(done.node)

    def _aliased(self, anchor: str | None) -> Node:
        found = self._anchors.get(anchor or "")
        if found is None:
            self._refuse(
                f"*{shown(anchor or '', quoted=False)} names no anchor that is complete",
                "an anchor before it",
            )
            return Node(self.line)
        return found

    def _add(self, node: Node, *, is_merge: bool = False) -> None:
        """A value that is complete goes into what is open."""
        if not self._open:
            self.root = node
            return
        top = self._open[-1]
        if top.node.items is not None:
            top.node.items.append(node)
            top.node.size += node.size
        elif top.key is None:
            top.key = self._key(node, top, is_merge=is_merge), node.line
        else:
            self._add_entry(top, node)

    def _count(self, nodes: int) -> None:
        self._nodes += nodes
        if self._nodes > _MAX_NODES:
            self._stop("the file, its aliases written out, has too many values", f"{_MAX_NODES} at most")

    def _key(self, node: Node, top: _Open, *, is_merge: bool) -> str:
        if node.entries is not None or node.items is not None or node.text is None:
            self._refuse("a key is no text", "keys that are text")
            return ""
        if not is_merge and node.text in (top.node.entries or {}):
            before = (top.node.entries or {})[node.text].line
            self._refuse(
                f"the key {dotted((node.text,))} is given twice, first in line {before}",
                "each key once",
            )
        return _MERGE if is_merge else node.text

    def _add_entry(self, top: _Open, node: Node) -> None:
        key, line = top.key or ("", self.line)
        top.key = None
        if key == _MERGE:
            sources = node.items if node.items is not None else [node]
            if any(source.entries is None for source in sources):
                self._refuse("<< merges what is no mapping", "a mapping, or a list of mappings")
            top.merged.extend(sources)
        elif top.node.entries is not None:
            # A copy, as the key's line is this entry's own; what lies below is shared.
            top.node.entries[key] = replace(node, line=line)
            top.node.size += node.size

    def _check_tag(self, event: Any) -> None:
        if event.tag is not None and event.tag not in _TAGS:
            self._refuse("a value has a tag", "values without tags")

    def _refuse(self, what: str, accepted: str) -> None:
        self.mistakes.append(Mistake(self._name, self.line, (), what, f"accepted: {accepted}"))

    def _stop(self, what: str, accepted: str) -> None:
        self._refuse(what, accepted)
        raise ConfigFileError(self.mistakes)


def resolve(text: str) -> Scalar:
    """What a plain scalar is: null, true, a number or a text."""
    if text in _NULLS:
        return None
    if text in _BOOLS:
        return _BOOLS[text]
    if _INT.fullmatch(text):
        return int(text)
    if _BASED.fullmatch(text):
        return int(text, 0)
    if _FLOAT.fullmatch(text):
        return float(text)
    special = _SPECIAL.fullmatch(text)
    if special is not None:
        return math.nan if special[3] else math.copysign(math.inf, -1.0 if special[1] == "-" else 1.0)
    return text
