"""What readers make of files, and what they say of those that they cannot read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airi.retrieval.ingest import (
    Chunker,
    Document,
    EmbedderTokens,
    Failure,
    JsonlFields,
    read_bytes,
    read_file,
)
from tests.retrieval.ingest.pdfs import make_pdf


def read(data: str | bytes, suffix: str) -> Document:
    (found,) = read_bytes(data if isinstance(data, bytes) else data.encode(), suffix, f"f{suffix}")
    assert isinstance(found, Document), str(found)
    return found


def failure(data: bytes, suffix: str) -> str:
    (found,) = read_bytes(data, suffix, f"f{suffix}")
    assert isinstance(found, Failure)
    assert "\n" not in str(found)
    return str(found)


def shape(document: Document) -> list[tuple[str, str]]:
    return [(block.kind, document.text[block.start : block.end].strip()) for block in document.blocks]


MARKDOWN = """---
title: x
---
# A [link](http://x) and **bold** `code`

Text
of two lines.

Setext
------

- one
- two

  # no heading

| a | b |
|---|---|
| 1 | 2 |

```python
# no heading either
```

    indented

> quoted

[ref]: http://x
"""


def test_markdown_has_the_structure_that_commonmark_gives_it() -> None:
    document = read(MARKDOWN, ".md")
    assert [block.kind for block in document.blocks] == (
        ["code", "heading", "paragraph", "heading", "list", "table", "code", "code", "paragraph"]
    )
    headings = [(block.level, block.title) for block in document.blocks if block.kind == "heading"]
    assert headings == [(1, "A link and bold code"), (2, "Setext")]
    assert document.text == MARKDOWN


@pytest.mark.parametrize("line_end", ["\r\n", "\r", "\n"])
def test_offsets_are_those_of_the_files_own_text(line_end: str) -> None:
    text = "# Título 🙂\n\nöne\u2028two\x0bthree\n\n# Next\n\n- x\n".replace("\n", line_end)
    document = read(text, ".md")
    kinds = [(block.kind, document.text[block.start :][:3]) for block in document.blocks]
    assert kinds == [("heading", "# T"), ("paragraph", "öne"), ("heading", "# N"), ("list", "- x")]


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(
        st.text(),
        st.lists(
            st.sampled_from(
                [
                    "# ",
                    "a",
                    "\n",
                    "\r",
                    "\r\n",
                    "- ",
                    "```",
                    "|",
                    "---",
                    " ",
                    "> ",
                    "<p>",
                    "<ul hidden>",
                    "</ul>",
                ]
            )
        ).map("".join),
    ),
    st.sampled_from([".md", ".html", ".txt"]),
)
def test_blocks_lie_one_behind_the_other_and_cover_the_text(text: str, suffix: str) -> None:
    (document,) = read_bytes(text.encode(), suffix, "f")
    if isinstance(document, Failure):
        return
    ends = [0, *(block.end for block in document.blocks)]
    assert [block.start for block in document.blocks] == ends[:-1]
    assert ends[-1] == len(document.text)
    assert all(block.end > block.start for block in document.blocks)
    if suffix != ".html":
        assert document.text == text.removeprefix("\ufeff").replace("\x00", "\ufffd")


@pytest.mark.parametrize("suffix", [".md", ".txt", ".html"])
@pytest.mark.parametrize(
    "text",
    [
        "---\r\n" + "a: b\r\n" * 2000,
        "# " + "[" * 50_000,
        "- x" + " " * 100_000 + "y",
        "> " * 5000,
        "\n" * 100_000 + "x",
    ],
    ids=["front matter without an end", "brackets", "spaces", "quotes", "empty lines"],
)
def test_texts_that_are_hard_to_match_take_no_longer_than_others(
    counter: EmbedderTokens, text: str, suffix: str
) -> None:
    document = read(text, suffix)
    assert all(len(block.title) <= 200 for block in document.blocks)
    assert Chunker(counter=counter).chunks(document)


HTML = """<!doctype html><html><head><title> The
title</title><style>p {}</style></head><body><nav>menu</nav>
<h1>Head <em>line</em></h1><p>One &amp; two<br>three<script>var x = "<p>"</script>
<div>four<div style="display: none">secret <div>more</div></div>five</div>
<ul><li>a<li>b <p>still b</p><ol><li>c</ol></ul>
<pre>x = 1
  y</pre><table><tr><th>k<th>v<tr><td>1<td>2</table>
<p hidden>never<p aria-hidden="true">nor this</p><p>end</body></html>"""


def test_html_is_what_a_page_shows() -> None:
    document = read(HTML, ".html")
    assert document.title == "The title"
    assert shape(document) == [
        ("heading", "Head line"),
        ("paragraph", "One & two\nthree"),
        ("paragraph", "four"),
        ("paragraph", "five"),
        ("list", "- a\n- b still b\n- c"),
        ("code", "x = 1\n  y"),
        ("table", "k | v\n1 | 2"),
        ("paragraph", "end"),
    ]


def test_an_element_without_an_end_does_not_swallow_the_page() -> None:
    assert read("<nav>menu<p>text</p>", ".html").text == "menu\n\ntext"


def test_html_names_its_encoding() -> None:
    page = "<meta charset='latin-1'><p>café".encode("latin-1")
    assert read(page, ".html").text == "café"
    wrong = b"<meta charset='no-such'><p>caf\xe9"
    assert failure(wrong, ".html") == "f.html: neither UTF-8 nor no-such, which it says it is"


def test_pdfs_have_pages_and_the_headings_of_their_outline() -> None:
    data = make_pdf(
        [["Intro", "first page"], ["second page", "Deep", "under it"]],
        outline=[("Intro", 0), ("Deep", 1), ("Not written", 1)],
    )
    document = read(data, ".pdf")
    found = [
        (block.kind, block.page, document.text[block.start : block.end].strip()) for block in document.blocks
    ]
    assert found == [
        ("heading", 1, "Intro"),
        ("paragraph", 1, "first page"),
        ("heading", 2, "Not written"),
        ("paragraph", 2, "second page"),
        ("heading", 2, "Deep"),
        ("paragraph", 2, "under it"),
    ]


def test_a_pdf_that_is_encrypted_without_a_password_is_read() -> None:
    assert read(make_pdf([["open"]], password=""), ".pdf").text == "open"
    assert failure(make_pdf([["shut"]], password="x"), ".pdf") == "f.pdf: encrypted PDF; it needs a password"


def test_what_is_wrong_with_a_pdf_is_one_line() -> None:
    assert failure(b"no pdf at all", ".pdf").startswith("f.pdf: broken PDF: ")
    assert failure(make_pdf([[]]), ".pdf") == "f.pdf: no text in this PDF; pages of pictures need OCR first"


def test_a_page_that_is_broken_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import pypdf

    extract = pypdf.PageObject.extract_text

    def broken(page: pypdf.PageObject) -> str:
        text = extract(page)
        if "second" in text:
            raise KeyError("/Font")
        return text

    monkeypatch.setattr(pypdf.PageObject, "extract_text", broken)
    assert (
        failure(make_pdf([["first"], ["second"]]), ".pdf") == "f.pdf: page 2: broken PDF: KeyError: '/Font'"
    )


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_damage_to_a_pdf_gets_through_as_an_exception(data: st.DataObject) -> None:
    whole = make_pdf([["one", "two"], ["three"]], outline=[("one", 0)])
    cut = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
    for _ in range(data.draw(st.integers(0, 8))):
        if cut:
            cut[data.draw(st.integers(0, len(cut) - 1))] = data.draw(st.integers(0, 255))
    for found in read_bytes(bytes(cut), ".pdf", "f.pdf"):
        assert "\n" not in str(found) if isinstance(found, Failure) else found.text.strip()


def test_json_lines_are_a_document_each_and_bad_ones_are_named() -> None:
    rows: list[bytes] = [
        b'\xef\xbb\xbf{"text": "one", "id": 7, "lang": "en", "title": "T"}',
        b"",
        b'{"text": "two"}',
        b'{"text": ',
        b"[1]",
        b'{"text": 3}',
        b'{"body": "x"}',
        b'{"text": " "}',
        b'{"text": "again", "id": 7}',
        b'{"text": "x", "id": [1]}',
        b'{"text": "caf\xe9"}',
        b'{"text": "x", "n": NaN}',
        b'{"text": "x", "source": 1}',
        b"[" * 100_000,
        b'{"text": "half \\ud800", "id": "last"}',
    ]
    found = list(read_bytes(b"\n".join(rows), ".jsonl", "f"))
    documents = [each for each in found if isinstance(each, Document)]
    assert [each.source for each in documents] == ["f#7", "f:3", "f#last"]
    assert documents[0].title == "T"
    assert documents[0].metadata == {"lang": "en"}
    assert documents[2].text == "half \ufffd"
    failures = [str(each) for each in found if isinstance(each, Failure)]
    assert [each.split(" ")[0] for each in failures] == [f"f:{line}:" for line in (4, *range(5, 15))]
    assert "must be an object, found list" in failures[1]
    assert failures[2] == "f:6: field 'text' is of type int; it must be a text"
    assert failures[3] == "f:7: field 'text' is missing; it must be a text"
    assert failures[5] == "f:9: id is that of line 1, too; it must be unique"
    assert failures[7] == "f:11: not UTF-8: byte 0xe9 at byte 13 of the line"


def test_fields_of_json_lines_are_named_by_options() -> None:
    row = {"body": "x", "key": "k", "head": "H", "a": 1, "b": 2}
    fields = JsonlFields(text="body", id="key", title="head", metadata=("a", "c"))
    (document,) = read_bytes(json.dumps(row).encode(), ".jsonl", "f", fields=fields)
    assert isinstance(document, Document)
    assert (document.source, document.title, document.metadata) == ("f#k", "H", {"a": 1})


@pytest.mark.parametrize("suffix", [".md", ".html", ".pdf", ".jsonl", ".txt", ".unknown"])
def test_empty_files_are_named(suffix: str) -> None:
    for data in (b"", b" \n\t\r\n", b"\xef\xbb\xbf\n", b"\x00"):
        assert failure(data, suffix) == f"f{suffix}: empty file"


def test_what_is_not_utf8_is_named_with_its_line() -> None:
    assert failure(b"one\ntwo \xff", ".txt") == "f.txt:2: not UTF-8: byte 0xff at byte 8"
    assert failure("x".encode("utf-16"), ".md") == "f.md: looks like UTF-16; texts must be UTF-8"
    assert failure(b"<p></p>", ".html") == "f.html: no text in this file"


def test_files_that_cannot_be_opened_are_named(tmp_path: Path) -> None:
    (found,) = read_file(tmp_path / "none.txt", "none.txt")
    assert str(found) == "none.txt: cannot be read: No such file or directory"
    (found,) = read_file(tmp_path, "folder")
    assert str(found) == "folder: cannot be read: Is a directory"
