"""Brings a shelf up to date with files: file by file, so that what was done stays done whenever it ends."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from airi.errors import RequestError
from airi.retrieval.ingest.chunker import Chunk, Chunker
from airi.retrieval.ingest.documents import Document, Failure
from airi.retrieval.ingest.jsonl import JsonlFields
from airi.retrieval.ingest.plans import Plan, Shelf, plan_for
from airi.retrieval.ingest.reading import read_file
from airi.retrieval.ingest.walking import Found

__all__ = ["Report", "ingest"]

_BATCH = 128
"""Chunks that are written together, or a few more: a document is never written in parts."""


@dataclass(slots=True, kw_only=True)
class Report:
    """What an ingestion has done."""

    files: int = 0
    documents: int = 0
    added: int = 0
    moved: int = 0
    kept: int = 0
    removed: int = 0
    failures: list[Failure] = field(default_factory=list)
    """What was not read; the others were."""

    @property
    def exit_code(self) -> int:
        """0, or 1 where anything was not read."""
        return 1 if self.failures else 0


def ingest(
    files: Iterable[Found | Failure],
    shelf: Shelf,
    chunker: Chunker,
    *,
    fields: JsonlFields | None = None,
    prune: bool = False,
    on_file: Callable[[str, Report], None] | None = None,
) -> Report:
    """Reads files, cuts them and has `shelf` do what differs from what it has. Again, it does nothing.

    A file that fails leaves what the shelf has of it; rows that JSON lines have no more are removed. Killed at any
    time, what is written is whole documents, and the next run goes on with the others. `prune` removes sources that are
    not among `files` any more, unless anything failed.
    `on_file` is told the source of each file that is done, and what was done so far.
    """
    run = _Run(shelf, chunker, fields)
    for file in files:
        run.file(file)
        if on_file is not None:
            on_file(file.source, run.report)
    if prune and not run.report.failures:
        run.remove(source for source in shelf.sources() if source not in run.seen)
    run.write()
    return run.report


class _Run:
    def __init__(self, shelf: Shelf, chunker: Chunker, fields: JsonlFields | None) -> None:
        self.report = Report()
        self.seen: set[str] = set()
        self._shelf = shelf
        self._chunker = chunker
        self._fields = fields
        self._plans: list[Plan] = []

    def file(self, file: Found | Failure) -> None:
        if isinstance(file, Failure):
            self.report.failures.append(file)
            return
        self.report.files += 1
        failed = len(self.report.failures)
        rows = False
        for document in self._documents(file):
            self.seen.add(document.source)
            rows = rows or document.source != file.source
            if (chunks := self._chunks(document)) is None:
                continue
            self.report.documents += 1
            self._take(plan_for(document.source, chunks, self._shelf.stored(document.source)))
        if rows and len(self.report.failures) == failed:
            own = (f"{file.source}#", f"{file.source}:")
            self.remove(
                each for each in self._shelf.sources() if each.startswith(own) and each not in self.seen
            )

    def remove(self, sources: Iterable[str]) -> None:
        """Takes away all of these sources."""
        for source in list(sources):
            self._take(Plan(source=source, remove=tuple(self._shelf.stored(source))))

    def write(self) -> None:
        """Has the plans done that wait."""
        plans, self._plans = self._plans, []
        for plan in self._apply(plans):
            self.report.added += len(plan.add)
            self.report.moved += len(plan.move)
            self.report.removed += len(plan.remove)

    def _apply(self, plans: list[Plan]) -> list[Plan]:
        """Those that were done: together, or, where the shelf refuses one of them, each by itself."""
        if not plans:
            return []
        try:
            self._shelf.apply(plans)
        except RequestError as error:
            if len(plans) > 1:
                return [done for plan in plans for done in self._apply([plan])]
            self.report.failures.append(Failure(source=plans[0].source, reason=str(error)))
            return []
        return plans

    def _take(self, plan: Plan) -> None:
        self.report.kept += len(plan.keep)
        if plan.is_done:
            return
        self._plans.append(plan)
        if sum(len(each.add) + len(each.move) + len(each.remove) for each in self._plans) >= _BATCH:
            self.write()

    def _documents(self, file: Found) -> Iterator[Document]:
        for document in read_file(file.path, file.source, fields=self._fields):
            if isinstance(document, Failure):
                self.report.failures.append(document)
            else:
                yield document

    def _chunks(self, document: Document) -> list[Chunk] | None:
        try:
            return self._chunker.chunks(document)
        except RequestError as error:
            self.report.failures.append(Failure(source=document.source, reason=str(error)))
            return None
