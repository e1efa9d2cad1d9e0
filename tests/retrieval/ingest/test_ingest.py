"""Files on a shelf: what is found, what is done, and that it can end anywhere and begin again."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airi.errors import RequestError
from airi.retrieval.ingest import (
    Chunker,
    Document,
    EmbedderTokens,
    Failure,
    Found,
    Plan,
    Report,
    find_files,
    ingest,
    plan_for,
    read_bytes,
)


class Killed(BaseException):
    """Nothing catches it."""


class DictShelf:
    """Chunks in dictionaries, whose process can be killed before a write."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, tuple[str, dict[str, Any]]]] = {}
        self.embedded = 0
        self.writes_left: int | None = None

    def sources(self) -> Sequence[str]:
        return list(self.rows)

    def stored(self, source: str) -> Mapping[str, Mapping[str, Any]]:
        return {name: metadata for name, (_, metadata) in self.rows.get(source, {}).items()}

    def apply(self, plans: Sequence[Plan]) -> None:
        if self.writes_left == 0:
            raise Killed
        if any("refuse me" in chunk.text for plan in plans for chunk in plan.add):
            raise RequestError("rows[0] cannot be kept")
        if self.writes_left is not None:
            self.writes_left -= 1
        for plan in plans:
            rows = self.rows.setdefault(plan.source, {})
            self.embedded += len(plan.add)
            for chunk in (*plan.add, *plan.move):
                assert (chunk.id in rows) == (chunk in plan.move)
                rows[chunk.id] = (chunk.text, chunk.metadata)
            for name in plan.remove:
                del rows[name]
            if not rows:
                del self.rows[plan.source]


@pytest.fixture
def chunker(counter: EmbedderTokens) -> Chunker:
    return Chunker(counter=counter, max_tokens=32)


def names(found: Sequence[Found | Failure]) -> list[str]:
    return [each.source for each in found]


def tree(root: Path, *files: str) -> None:
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"text of {name}")


def run(root: Path, shelf: DictShelf, chunker: Chunker, *, prune: bool = False) -> Report:
    return ingest(find_files([root]), shelf, chunker, prune=prune)


def test_folders_give_the_files_that_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tree(
        tmp_path,
        "kb/b.md",
        "kb/a.TXT",
        "kb/x.py",
        "kb/.git/c.md",
        "kb/deep/er/d.pdf",
        "kb/node_modules/e.md",
        "f.py",
    )
    assert names(list(find_files(["kb"]))) == ["kb/a.TXT", "kb/b.md", "kb/deep/er/d.pdf"]
    assert names(list(find_files(["f.py", "kb/b.md", "kb", "none"]))) == (
        ["f.py", "kb/b.md", "kb/a.TXT", "kb/deep/er/d.pdf", "none"]
    )
    assert names(list(find_files(["kb"], include=["*.py", "deep/**"]))) == ["kb/x.py", "kb/deep/er/d.pdf"]
    assert names(list(find_files(["kb"], ignore=["deep/", "a.*"]))) == ["kb/b.md"]
    assert names(list(find_files(["kb"], include=["**/*.pdf"], ignore=["other/**"]))) == ["kb/deep/er/d.pdf"]
    assert names(list(find_files(["kb"], include=["*/*.pdf"]))) == []


def test_links_do_not_lead_out_of_a_folder(tmp_path: Path) -> None:
    tree(tmp_path, "out/secret.md", "kb/..data/a.md", "kb/b.md")
    kb = tmp_path / "kb"
    (kb / "a.md").symlink_to("..data/a.md")  # as Kubernetes mounts files
    (kb / "also_b.md").symlink_to("b.md")
    (kb / "secret.md").symlink_to(tmp_path / "out" / "secret.md")
    (kb / "gone.md").symlink_to("nothing.md")
    (kb / "out").symlink_to(tmp_path / "out")
    (kb / "loop").symlink_to(kb)
    found = list(find_files([kb]))
    assert [Path(name).name for name in names(found)] == ["a.md", "also_b.md"]
    assert names(list(find_files([kb / "secret.md"]))) == [str(kb / "secret.md")]


def test_devices_and_names_that_are_no_text(tmp_path: Path) -> None:
    assert str(next(find_files(["/dev/zero"]))) == "/dev/zero: a device is no file to read"
    assert str(next(find_files(["x" * 5000]))) == "x" * 5000 + ": File name too long"
    odd = tmp_path / b"caf\xe9.md".decode("utf-8", "surrogateescape")
    odd.write_text("x")
    (found,) = find_files([tmp_path])
    assert found.source.endswith("caf\\xe9.md")


def test_a_second_run_does_nothing(tmp_path: Path, chunker: Chunker) -> None:
    tree(tmp_path, *(f"{i}.md" for i in range(5)))
    (tmp_path / "rows.jsonl").write_text('{"text": "one", "id": 1}\n{"text": "two", "id": 2}\n')
    shelf = DictShelf()
    first = run(tmp_path, shelf, chunker)
    assert (first.files, first.documents, first.added, first.exit_code) == (6, 7, 7, 0)
    before = copy.deepcopy(shelf.rows)
    second = run(tmp_path, shelf, chunker)
    assert (second.added, second.moved, second.removed, second.kept) == (0, 0, 0, 7)
    assert shelf.rows == before


def test_what_moved_is_not_embedded_again(tmp_path: Path, chunker: Chunker) -> None:
    sections = [f"# S{i}\n\n" + " ".join(f"word{i}x{j}" for j in range(6)) for i in range(6)]
    (tmp_path / "a.md").write_text("\n\n".join(sections))
    shelf = DictShelf()
    run(tmp_path, shelf, chunker)
    (tmp_path / "a.md").write_text("\n\n".join([sections[0], "# New\n\nbrand new words", *sections[1:]]))
    report = run(tmp_path, shelf, chunker)
    assert (report.added, report.removed) == (1, 0)
    assert report.moved > 0
    text = (tmp_path / "a.md").read_text()
    for body, metadata in shelf.rows[str(tmp_path / "a.md")].values():
        place = metadata["chunk"]
        assert text[place["start"] : place["end"]] == body[place["prefix_chars"] :]


def test_a_file_that_fails_leaves_what_is_there_and_the_others_go_on(
    tmp_path: Path, chunker: Chunker
) -> None:
    tree(tmp_path, "a.md", "b.md", "c.md")
    shelf = DictShelf()
    run(tmp_path, shelf, chunker)
    (tmp_path / "b.md").write_bytes(b"\xff")
    (tmp_path / "c.md").write_text("other")
    (tmp_path / "d.pdf").write_bytes(b"%PDF-1.4")
    (tmp_path / "a.md").unlink()
    seen: list[str] = []
    report = ingest(
        find_files([tmp_path]),
        shelf,
        chunker,
        prune=True,
        on_file=lambda name, _: seen.append(Path(name).name),
    )
    assert [str(each).partition(": ")[0] for each in report.failures] == (
        [f"{tmp_path}/b.md:1", f"{tmp_path}/d.pdf"]
    )
    assert report.exit_code == 1
    assert seen == ["b.md", "c.md", "d.pdf"]
    assert (report.added, report.removed) == (1, 1)
    assert sorted(Path(name).name for name in shelf.rows) == ["a.md", "b.md", "c.md"]


def test_what_a_shelf_refuses_is_a_failure_and_the_others_are_kept(tmp_path: Path, chunker: Chunker) -> None:
    tree(tmp_path, "a.md", "b.md", "c.md")
    (tmp_path / "b.md").write_text("refuse me")
    shelf = DictShelf()
    report = run(tmp_path, shelf, chunker)
    assert [str(each) for each in report.failures] == [f"{tmp_path}/b.md: rows[0] cannot be kept"]
    assert (report.added, len(shelf.rows)) == (2, 2)


def test_prune_removes_what_is_no_more(tmp_path: Path, chunker: Chunker) -> None:
    tree(tmp_path, "a.md", "b.md")
    shelf = DictShelf()
    run(tmp_path, shelf, chunker)
    (tmp_path / "a.md").unlink()
    run(tmp_path, shelf, chunker)
    assert len(shelf.rows) == 2
    assert run(tmp_path, shelf, chunker, prune=True).removed == 1
    assert list(shelf.rows) == [str(tmp_path / "b.md")]


def test_rows_that_json_lines_have_no_more_are_removed(tmp_path: Path, chunker: Chunker) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "one", "id": 1}\n{"text": "two", "id": 2}\n')
    shelf = DictShelf()
    run(tmp_path, shelf, chunker)
    rows.write_text('{"text": "two", "id": 2}\n{"text":\n')
    assert run(tmp_path, shelf, chunker).removed == 0  # which row is broken, nobody knows
    rows.write_text('{"text": "two", "id": 2}\n')
    assert run(tmp_path, shelf, chunker).removed == 1
    assert list(shelf.rows) == [f"{rows}#2"]


def test_a_run_that_is_killed_anywhere_is_gone_on_with(
    tmp_path: Path, chunker: Chunker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airi.retrieval.ingest.running._BATCH", 4)
    for i in range(12):
        (tmp_path / f"{i}.txt").write_text(" ".join(f"word{i}x{j}" for j in range(20 + 7 * (i % 3))))
    whole = DictShelf()
    run(tmp_path, whole, chunker)
    for writes in range(12):
        shelf = DictShelf()
        shelf.writes_left = writes
        try:
            run(tmp_path, shelf, chunker)
        except Killed:
            assert all(rows == whole.rows[source] for source, rows in shelf.rows.items())
        shelf.writes_left = None
        run(tmp_path, shelf, chunker)
        assert shelf.rows == whole.rows
        assert shelf.embedded == whole.embedded


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.sampled_from("abcdef"), max_size=8), min_size=2, max_size=5))
def test_plans_turn_what_was_into_what_is(counter: EmbedderTokens, versions: list[list[str]]) -> None:
    chunker = Chunker(counter=counter, max_tokens=24)
    rows: dict[str, dict[str, Any]] = {}
    for version in versions:
        text = "\n\n".join(" ".join(f"{sign}{i}." for i in range(9)) for sign in version)
        (document,) = read_bytes(text.encode(), ".txt", "f")
        chunks = chunker.chunks(document) if isinstance(document, Document) else []
        plan = plan_for("f", chunks, rows)
        assert not {chunk.id for chunk in plan.add} & set(rows)
        rows |= {chunk.id: chunk.metadata for chunk in (*plan.add, *plan.move)}
        for name in plan.remove:
            del rows[name]
        assert rows == {chunk.id: chunk.metadata for chunk in chunks}
        again = plan_for("f", chunks, rows)
        assert again.is_done
        assert set(again.keep) == set(rows)


def test_a_document_that_cannot_be_cut_is_a_failure(tmp_path: Path) -> None:
    class Wide:
        def count(self, text: str) -> int:
            return 20 * len(text)

        def starts(self, text: str) -> list[int]:
            return [place for place in range(len(text)) for _ in range(20)]

    tree(tmp_path, "a.md")
    report = run(tmp_path, DictShelf(), Chunker(counter=Wide(), max_tokens=16))
    assert str(report.failures[0]) == f"{tmp_path}/a.md: the character at 0 is longer than 16 tokens"


def test_a_file_is_the_same_source_whatever_folder_it_is_named_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    for folder in (root / "docs", elsewhere):
        folder.mkdir(parents=True)
        (folder / "a.md").write_text("text")
    monkeypatch.chdir(root)
    paths = ("docs", "./docs/a.md", "../project/docs", str(root / "docs"))
    for path in paths:
        assert [each.source for each in find_files([path], root=Path())] == ["docs/a.md"]
    monkeypatch.chdir(root / "docs")
    assert [each.source for each in find_files(["."], root=root)] == ["docs/a.md"]
    assert [each.source for each in find_files([elsewhere], root=root)] == [f"{elsewhere}/a.md"]
    assert [each.source for each in find_files(["gone"], root=root)] == ["docs/gone"]
