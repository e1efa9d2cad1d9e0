"""Whether a config's policies are Cedar, speak of what there is, and where in which file they do not.

Cedar's parser tells what is wrong but not where, so a text is cut into its statements and those into tokens here.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from airi.config.document import Path
from airi.config.load import ConfigFile
from airi.config.mistakes import Mistake
from airi.config.tenants import ANYONE
from airi.errors import ConfigError, ConfigFileError
from airi.policy.rows import row_filters
from airi.policy.schema import parsed_policies, parsed_schema

__all__ = ["check_policies", "policy_mistakes"]

_TOKEN = re.compile(
    r"""\s+|//[^\n]*|(?P<string>"(?:[^"\\]|\\.)*")|(?P<word>[A-Za-z_]\w*|\d+)|(?P<sign>::|&&|\|\||[=!<>]=|.)""",
    re.DOTALL,
)
_END = "unexpected end of input"


@dataclass(frozen=True, slots=True)
class _Token:
    text: str
    start: int
    line: int


def check_policies(file: ConfigFile) -> None:
    """Raises ConfigFileError with a line for each mistake in a config's policies."""
    mistakes = policy_mistakes(file)
    if mistakes:
        raise ConfigFileError(mistakes)


def policy_mistakes(file: ConfigFile) -> list[Mistake]:
    """What is wrong with a config's policies; nothing where it has none."""
    text = file.policies
    if text is None or file.config.policies is None:
        return []
    name, first, block = file.document.name, 1, True
    path: Path = ()
    if file.config.policies.file is not None:
        name = str(file.resolve(file.config.policies.file))
    else:
        path = ("policies", "text")
        node = file.document.find(path)
        first, block = (1, False) if node is None else (node.text_line, node.is_block)

    def report(line: int, what: str, accepted: str) -> None:
        mistakes.append(
            Mistake(name, first + line - 1 if block else first, path, what, f"accepted: {accepted}")
        )

    mistakes: list[Mistake] = []
    seen: set[str] = set()
    for statement, tokens in _statements(text):
        _check_statement(statement, tokens, report)
        _check_entities(file, tokens, report)
        _check_id(tokens, seen, report)
        _check_rows(statement, tokens, report)
    return mistakes


_Report = Callable[[int, str, str], None]


def _tokens(text: str) -> Iterator[_Token]:
    line = 1
    for match in _TOKEN.finditer(text):
        if match.lastgroup is not None:
            yield _Token(match[0], match.start(), line)
        line += match[0].count("\n")


def _statements(text: str) -> Iterator[tuple[str, list[_Token]]]:
    """Each statement from its first token to its semicolon."""
    found: list[_Token] = []
    for token in _tokens(text):
        found.append(token)
        if token.text == ";":
            yield text[found[0].start : token.start + 1], found
            found = []
    if found:
        yield text[found[0].start :], found


def _check_statement(text: str, tokens: list[_Token], report: _Report) -> None:
    from cedarpy import PolicySet, validate_policies

    problem = _problem(PolicySet, text)
    if problem == _END:
        report(tokens[-1].line, f"is not Cedar: {problem}", "statements that end with a semicolon")
    elif problem is not None:
        line = _line_of_problem(PolicySet, text, tokens, problem)
        report(line, f"is not Cedar: {problem}", "Cedar policies")
    elif any(token.text == "?" for token in tokens):
        report(tokens[0].line, "has a template", "policies without ?principal and ?resource")
    else:
        errors = validate_policies(text, parsed_schema()).errors
        for told in sorted({re.sub(r"^for policy `[^`]*`, ", "", error.error) for error in errors}):
            report(_line_of_name(told, tokens), f"does not fit: {told}", "what AIRI's schema of policies has")


def _problem(policy_set: Any, text: str) -> str | None:
    try:
        policy_set.from_str(text)
    except ValueError as error:
        return " ".join(str(error).split())
    return None


def _line_of_problem(policy_set: Any, text: str, tokens: list[_Token], problem: str) -> int:
    if not problem.startswith(("unexpected token", "invalid token")):
        return _line_of_name(problem, tokens)

    def is_wrong(count: int) -> bool:
        last = tokens[count - 1]
        found = _problem(policy_set, text[: last.start + len(last.text) - tokens[0].start])
        return found is not None and found != _END

    # Whatever comes before the wrong token is only incomplete.
    count = bisect_left(range(1, len(tokens) + 1), 1, key=lambda n: int(is_wrong(n)))
    return tokens[min(count, len(tokens) - 1)].line


def _line_of_name(message: str, tokens: list[_Token]) -> int:
    """The line of the first token that a message speaks of, else of the statement."""
    lines = {token.text.strip('"'): token.line for token in reversed(tokens)}
    for name in re.findall(r"`[^`]+`|\"[^\"]+\"|[A-Za-z_]\w*$", message):
        last = re.split(r"::|\.", name.strip("`"))[-1].strip("\"'`")
        if last in lines and last not in ("permit", "forbid", "principal", "action", "resource", "context"):
            return lines[last]
    return tokens[0].line


def _check_entities(file: ConfigFile, tokens: list[_Token], report: _Report) -> None:
    """Names of tenants, models and the like that nothing else has are slips: such a policy would never hold."""
    config = file.config
    providers = [tenant.auth.oidc for tenant in config.tenants if tenant.auth.oidc is not None]
    groups = {group for tenant in config.tenants for group in tenant.groups}
    groups |= {group for oidc in providers for group in oidc.accept_groups}
    known: Mapping[str, set[str] | None] = {
        "Tenant": {tenant.name for tenant in config.tenants} or {ANYONE},
        "Model": {model.name for model in config.models},
        "Collection": {collection.name for collection in config.collections},
        "Group": None if "*" in groups else groups,
    }
    for (kind, sign), name in zip(pairwise(tokens), tokens[2:], strict=False):
        names = known.get(kind.text) if sign.text == "::" and name.text.startswith('"') else None
        if names is not None and name.text[1:-1] not in names:
            accepted = f"one of: {', '.join(sorted(names))}" if names else f"no {kind.text}, as there is none"
            report(name.line, f"speaks of {kind.text}::{name.text}, which is nowhere else", accepted)


def _check_id(tokens: list[_Token], seen: set[str], report: _Report) -> None:
    texts = [token.text for token in tokens[:5]]
    if texts[:3] == ["@", "id", "("] and texts[4:] == [")"]:
        if texts[3] in seen:
            report(tokens[0].line, f"has the id {texts[3]} twice", "ids that differ")
        seen.add(texts[3])


def _check_rows(text: str, tokens: list[_Token], report: _Report) -> None:
    """What a policy gives of a collection's rows."""
    line = next((b.line for a, b in pairwise(tokens) if (a.text, b.text) == ("@", "rows")), None)
    if line is None:
        return
    try:
        row_filters(parsed_policies(text))
    except ConfigError as error:
        what, _, accepted = str(error).partition("; accepted: ")
        report(line, what, accepted)
    except ValueError:  # it is not Cedar, which is told already
        return
