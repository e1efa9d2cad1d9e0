"""Filters mean what a few lines of Python over each row's metadata mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airi.errors import RequestError
from airi.retrieval import Collection, Row
from airi.retrieval.columns import Columns, value_at
from airi.retrieval.filters import parse
from tests.retrieval.hashing import space

NAMES = ("a", "b", "c.d")
scalars = st.sampled_from([0, 1, 1.0, 2, -1.5, True, False, "x", "y", "1", ""])
values = st.one_of(st.none(), scalars, st.lists(scalars | st.none(), max_size=3))
rows = st.lists(
    st.fixed_dictionaries(
        {}, optional={"a": values, "b": values, "c": st.fixed_dictionaries({}, optional={"d": values})}
    ),
    max_size=12,
)
ordered = st.sampled_from([0, 1, 1.5, -1, "x", "w", ""])
operations = st.one_of(
    st.fixed_dictionaries({"$eq": scalars | st.none()}),
    st.fixed_dictionaries({"$ne": scalars}),
    *[st.fixed_dictionaries({operator: ordered}) for operator in ("$gt", "$gte", "$lt", "$lte")],
    st.fixed_dictionaries({"$gte": ordered, "$lt": ordered}),
    st.fixed_dictionaries({"$in": st.lists(scalars, max_size=3)}),
    st.fixed_dictionaries({"$nin": st.lists(scalars, max_size=3)}),
    st.fixed_dictionaries({"$exists": st.booleans()}),
    st.fixed_dictionaries({"$not": st.fixed_dictionaries({"$gt": ordered})}),
)
fields = st.dictionaries(st.sampled_from(NAMES), scalars | operations, min_size=1, max_size=2)
filters = st.recursive(
    fields,
    lambda inner: st.one_of(
        st.fixed_dictionaries({"$and": st.lists(inner, min_size=1, max_size=3)}),
        st.fixed_dictionaries({"$or": st.lists(inner, min_size=1, max_size=3)}),
        st.fixed_dictionaries({"$not": inner}),
    ),
    max_leaves=5,
)


def holds(wanted: dict[str, Any], row: dict[str, Any]) -> bool:
    """The meaning, row by row."""
    for key, value in wanted.items():
        if key in ("$and", "$or"):
            good = (all if key == "$and" else any)(holds(part, row) for part in value)
        elif key == "$not":
            good = not holds(value, row)
        else:
            operations = value if isinstance(value, dict) else {"$eq": value}
            good = all(_one(operator, operand, row, key) for operator, operand in operations.items())
        if not good:
            return False
    return True


def _one(operator: str, operand: Any, row: dict[str, Any], name: str) -> bool:
    value: Any = row
    for step in name.split("."):
        value = value.get(step) if isinstance(value, dict) else None
    has = value is not None
    found = [v for v in value if v is not None] if isinstance(value, list) else [value] if has else []
    if operator == "$exists":
        return has is operand
    if operator == "$not":
        return not all(_one(inner, bound, row, name) for inner, bound in operand.items())
    if operator == "$eq":
        return not has if operand is None else any(_same(v, operand) for v in found)
    if operator == "$ne":
        return not any(_same(v, operand) for v in found)
    if operator in ("$in", "$nin"):
        return any(_same(v, o) for v in found for o in operand) is (operator == "$in")
    alike = [v for v in found if _kind(v) == _kind(operand)]
    compare = {"$gt": "__gt__", "$gte": "__ge__", "$lt": "__lt__", "$lte": "__le__"}[operator]
    return any(getattr(float(v) if _kind(v) == "number" else v, compare)(operand) is True for v in alike)


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    return "string" if isinstance(value, str) else "number"


def _same(one: Any, other: Any) -> bool:
    return _kind(one) == _kind(other) and one == other


@given(rows, filters, st.integers(0, 12))
def test_masks_are_what_holds_of_each_row(metadata: list[dict[str, Any]], wanted: Any, earlier: int) -> None:
    encoded = [msgspec.json.encode(row) for row in metadata]
    columns = Columns(lambda name, i, j: [value_at(row, name.split("."), name) for row in encoded[i:j]])
    tree = parse(wanted)
    for count in (min(earlier, len(metadata)), len(metadata)):  # columns grow
        assert columns.mask(tree, count).tolist() == [holds(wanted, row) for row in metadata[:count]]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ([], r"filter is \[\]; it must be an object"),
        ({"$an": [{"a": 1}]}, r"filter\.\$an is no operator here; it may be .*; did you mean \$and\?"),
        ({"$and": []}, r"filter\.\$and must be a list of filters that is not empty"),
        ({"$or": [{"a": 1}, 3]}, r"filter\.\$or\[1\] is 3; it must be an object"),
        ({"a": {}}, r"filter\.a has no operator"),
        ({"a": {"$gtt": 3}}, r"filter\.a\.\$gtt is no operator; .*; did you mean \$gt"),
        ({"a": {"gt": 3}}, r"filter\.a\.gt is no operator; .*; did you mean \$gt\?"),
        ({"a": [1, 2]}, r'filter\.a is a list; \{"\$in": \[\.\.\.\]\} asks'),
        ({"a": {"$in": 3}}, r"filter\.a\.\$in must be a list of values"),
        ({"a": {"$in": [{}]}}, r"filter\.a\.\$in\[0\] is \{\}; it must be a text"),
        ({"a": {"$gt": True}}, r"filter\.a\.\$gt is true or false, which have no order"),
        ({"a": {"$gt": float("nan")}}, "finite number"),
        ({"a": {"$exists": 1}}, r"filter\.a\.\$exists is 1; it must be true or false"),
        ({"a": 10**400}, "beyond all that rows can have"),
        ({"lagn": "de"}, r"filter\.lagn is no field of this collection \(.*\); did you mean lang\?"),
        ({"lang": 3}, r"filter\.lang is a number; lang is a string"),
        ({"time": {"$gt": "x"}}, r"filter\.time\.\$gt is a string; time is a number"),
    ],
)
def test_filters_that_are_none_are_refused_in_one_line(wanted: Any, message: str) -> None:
    fields: Any = {"lang": "string", "a": "number"} if "lang" in message or "time" in message else None
    with pytest.raises(RequestError, match=message) as refused:
        parse(wanted, fields)
    assert "\n" not in str(refused.value)
    assert refused.value.field == "filter"


def test_filters_nested_without_end_are_refused() -> None:
    wanted: Any = {"a": 1}
    for _ in range(10_000):
        wanted = {"$not": wanted}
    with pytest.raises(RequestError):
        parse(wanted)


def test_declared_fields_are_kept_and_held(tmp_path: Path) -> None:
    where = space("one", 2)

    def upsert(collection: Collection, id_: str, **metadata: Any) -> None:
        collection.upsert([Row(id=id_, text="a", metadata=metadata)], {where: [[1, 0]]})

    with Collection.open(tmp_path, "kb", fields={"lang": "string", "years": "number"}) as collection:
        collection.add_space(where)
        upsert(collection, "a", lang="de", years=[1, 2])
        with pytest.raises(
            RequestError, match=r"rows\[0\]\.metadata\.lagn of row 'b' is no declared field .*mean lang"
        ):
            upsert(collection, "b", lagn="de")
        with pytest.raises(
            RequestError, match=r"metadata\.years of row 'b' is a string; it is declared a number"
        ):
            upsert(collection, "b", years=[1, "2"])
    with Collection.open(tmp_path, "kb") as collection, pytest.raises(RequestError, match="is no field"):
        collection.search([1, 0], space=where, filter={"lagn": "de"})
    with pytest.raises(RequestError, match=r"metadata\.years of row 'a' is no declared field"):
        Collection.open(tmp_path, "kb", fields={"lang": "string"})
    with pytest.raises(RequestError, match=r"fields\.time cannot be declared"):
        Collection.open(tmp_path, "kb", fields={"time": "number"})
    with Collection.open(
        tmp_path, "kb", fields={"lang": "string", "years": "number", "x": "boolean"}
    ) as collection:
        upsert(collection, "b", x=True)
        assert [hit.id for hit in collection.search([1, 0], space=where, filter={"x": True})] == ["b"]


def test_fields_of_rows_themselves_are_filtered(tmp_path: Path) -> None:
    where = space("one", 2)
    with Collection.open(tmp_path, "kb") as collection:
        collection.add_space(where)
        rows = [Row(id=f"r{i}", text="a", source=f"s{i % 2}", time=float(i)) for i in range(6)]
        collection.upsert(rows, {where: np.ones((6, 2))})

        def found(wanted: Any) -> list[str]:
            return [hit.id for hit in collection.search([1, 0], space=where, filter=wanted)]

        assert found({"source": "s1"}) == ["r1", "r3", "r5"]
        assert found({"time": {"$gte": 2, "$lt": 4}}) == ["r2", "r3"]
        assert found({"id": {"$in": ["r5", "r0", "none"]}}) == ["r0", "r5"]
        assert found({"nowhere": 1}) == []
        assert [hit.id for hit in collection.search(text="a", filter={"source": "s0"})] == ["r0", "r2", "r4"]
        assert list(collection.metadata_of_source("s1")) == ["r1", "r3", "r5"]
