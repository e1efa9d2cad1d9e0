"""Documents that judge content rules: exact rules pass, and each way to be wrong is counted."""

from __future__ import annotations

from typing import Any

import pytest

from benches.bench_content_rules import count_documents, exactness_row
from benches.content_documents import Counts, Searched


class Tampered:
    """A scanner that is wrong in one way."""

    def __init__(self, scanner: Any, fault: str) -> None:
        self._scanner, self._fault = scanner, fault

    def reset(self) -> None:
        self._scanner.reset()

    def feed(self, data: bytes) -> list[tuple[int, int, int]]:
        return self._said(self._scanner.feed(data))

    def finish(self) -> list[tuple[int, int, int]]:
        return self._said(self._scanner.finish())

    @property
    def open_start(self) -> int | None:
        start: int | None = self._scanner.open_start
        if self._fault == "held_in_vain":
            return 0 if start is None else max(0, start - 1)
        return None if self._fault == "leaked" else start

    def _said(self, found: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
        if self._fault == "missed":
            return found[1:]
        return [*found, (0, 0, 10_000)] if self._fault == "invented" else found


def test_rules_are_exact_on_documents() -> None:
    counts = count_documents(150)
    assert counts.is_exact
    assert exactness_row(counts)["reached"]
    assert (counts.documents, counts.matches > 100, counts.held_at_cuts > 300) == (150, True, True)
    assert not exactness_row(Counts())["reached"]


@pytest.mark.parametrize("fault", ["missed", "invented", "leaked", "held_in_vain"])
def test_every_fault_of_a_scanner_is_counted(fault: str) -> None:
    searched, counts = Searched(3), Counts()
    searched._scanner = Tampered(searched._scanner, fault)  # type: ignore[assignment]
    for _ in range(60):
        searched.document(counts)
    assert getattr(counts, fault) > 0
    assert not counts.is_exact
