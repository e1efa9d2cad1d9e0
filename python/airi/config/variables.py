"""`${NAME}` and `${NAME:-default}` in a config's values; `$$` is a dollar sign.

A value that a variable gave is never shown: mistakes quote what the file says. Policies are taken as they are written.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from airi.config.document import Document, Node, Path, resolve
from airi.config.mistakes import Mistake, shown

__all__ = ["escape", "expand"]

_DOLLAR = re.compile(
    r"\$(?:\$|(?P<open>\{)(?:(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^{}]*))?\})?)"
)
_ACCEPTED = "${NAME}, ${NAME:-default}, or $$ for a dollar sign"


def escape(text: str) -> str:
    """The text that expands to this one."""
    return re.sub(r"\$(?=[${])", "$$$$", text)


def expand(document: Document, environ: Mapping[str, str], *, without: Collection[Path]) -> list[Mistake]:
    """Puts variables into a document's values, but for what is `without`; returns what is wrong."""
    mistakes: list[Mistake] = []
    done: set[int] = set()
    pending: list[tuple[Path, Node]] = [((), document.root)]
    while pending:
        path, node = pending.pop()
        if node.text is not None:
            _expand_scalar(document, path, node, environ, mistakes)
        for key, child in node.children():
            # Nodes that aliases share are expanded once.
            if id(child) not in done and (*path, key) not in without:
                done.add(id(child))
                pending.append(((*path, key), child))
    return mistakes


def _expand_scalar(
    document: Document,
    path: Path,
    node: Node,
    environ: Mapping[str, str],
    mistakes: list[Mistake],
) -> None:
    if not isinstance(node.value, str) or "$" not in node.value:
        return
    wrong: str | None = None

    def replace(match: re.Match[str]) -> str:
        nonlocal wrong
        if match["open"] is None:
            return "$"
        if match["name"] is None:
            wrong = wrong or _ACCEPTED
            return ""
        value = environ.get(match["name"], "")
        if value or match["default"] is not None:
            return value or match["default"]
        if match["name"] not in environ:
            wrong = wrong or f"a variable that is set, or ${{{match['name']}:-default}}"
        return ""

    value = _DOLLAR.sub(replace, node.value)
    if wrong is not None:
        text = shown(node.value)
        mistakes.append(Mistake(document.name, node.line, path, f"is {text}", f"accepted: {wrong}"))
    node.expanded = value
    node.value = resolve(value) if node.is_plain else value
