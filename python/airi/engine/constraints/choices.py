"""`oneOf`, `not` and `if` where they can be said with `anyOf`, by what schemas do not take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from airi.engine.constraints.disjoint import Disjointness
from airi.engine.constraints.negation import Negation, any_of

__all__ = ["Choices"]

Json = dict[str, Any]

_MAX_RIVALS = 15
"""Pairs of schemas that may fit together: each leaves out what the other takes."""


class Choices:
    """Says choices of one document in other words.

    *Thread safety*: none. *Invariant*: what cannot be said exactly stays as it is.
    """

    def __init__(self, root: Json, *, siblings_count: bool) -> None:
        """`siblings_count`: whether keywords beside `$ref` are more than notes."""
        self._proof = Disjointness(root, siblings_count=siblings_count)
        self._negation = Negation(self._proof, siblings_count=siblings_count)

    def rewritten(self, schema: Json, given: Json, prepare: Callable[[Any], Any]) -> Json:
        """A schema, whose parts are prepared, in other words; `given`: the same as the user wrote it."""
        for key, rewrite in (("oneOf", self._one_of), ("not", self._not), ("if", self._if)):
            if key not in schema or (found := rewrite(schema, given, prepare)) is None:
                continue
            gone = (key, "then", "else") if key == "if" else (key,)
            rest = {name: value for name, value in schema.items() if name not in gone}
            schema = {**rest, "allOf": [*rest.get("allOf", ()), found]}
        return schema

    def _one_of(self, schema: Json, given: Json, prepare: Callable[[Any], Any]) -> Json | None:
        branches, written = schema["oneOf"], given["oneOf"]
        if not isinstance(branches, list) or not branches:
            return None
        around = {key: value for key, value in given.items() if key != "oneOf"}
        rivals: list[list[Any]] = [[] for _ in branches]
        pairs = [(i, k) for i in range(len(written)) for k in range(i)]
        together = [(i, k) for i, k in pairs if not self._proof.disjoint(written[i], written[k])]
        if len(together) > _MAX_RIVALS:
            return None
        for i, k in together:
            for mine, other in ((i, k), (k, i)):
                within = self._proof.facts({"allOf": [around, written[mine]]})
                found = self._negation.of(written[other], within)
                if found is None:
                    return None
                rivals[mine].append(prepare(any_of(found)))
        return {
            "anyOf": [
                {"allOf": [branch, *left_out]} if left_out else branch
                for branch, left_out in zip(branches, rivals, strict=True)
            ]
        }

    def _not(self, schema: Json, given: Json, prepare: Callable[[Any], Any]) -> Any:
        around = {key: value for key, value in given.items() if key != "not"}
        found = self._negation.of(given["not"], self._proof.facts(around))
        return None if found is None else prepare(any_of(found))

    def _if(self, schema: Json, given: Json, prepare: Callable[[Any], Any]) -> Json | None:
        if any(key.startswith("unevaluated") for key in given):
            return None
        around = {key: value for key, value in given.items() if key not in ("if", "then", "else")}
        otherwise = self._negation.of(given["if"], self._proof.facts(around))
        if otherwise is None:
            return None
        return {
            "anyOf": [
                {"allOf": [schema["if"], schema.get("then", {})]},
                {"allOf": [prepare(any_of(otherwise)), schema.get("else", {})]},
            ]
        }
