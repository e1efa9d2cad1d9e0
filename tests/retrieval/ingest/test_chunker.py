"""Chunks: nothing lost, nothing too long, and the same where nothing has changed."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airi.errors import ConfigError, RequestError
from airi.retrieval.ingest import Chunk, Chunker, Document, EmbedderTokens, read_bytes

WORDS = [
    "alpha",
    "Beta",
    "gamma.",
    "Delta!",
    "e.g.",
    "naïve",
    "你好。世界",
    "🙂",
    "x" * 90,
    "`code`",
    "[CLS]",
    "ﷺ",
    "é",
]
sentences = st.lists(st.sampled_from(WORDS), min_size=1, max_size=40).map(" ".join)
blocks = st.one_of(
    sentences,
    st.lists(sentences, min_size=1, max_size=4).map(lambda items: "\n".join(f"- {each}" for each in items)),
    st.lists(sentences, min_size=1, max_size=4).map(lambda lines: "```\n" + "\n\n".join(lines) + "\n```"),
    st.lists(sentences, max_size=6).map(
        lambda rows: "\n".join(["| a | b |", "|---|---|", *(f"| {each} | 1 |" for each in rows)])
    ),
    st.tuples(st.integers(1, 6), sentences).map(lambda each: "#" * each[0] + " " + each[1]),
    st.text(max_size=60),
)
texts = st.lists(blocks, max_size=12).map("\n\n".join)
tokenizers = st.sampled_from(["wordpiece", "bytes", "unigram"])


def document(text: str, suffix: str = ".md") -> Document:
    found = next(read_bytes(text.encode(), suffix, "doc"))
    assert isinstance(found, Document)
    return found


def uncovered(text: str, chunks: list[Chunk]) -> str:
    """What of a text no chunk has."""
    left = list(text)
    for chunk in chunks:
        left[chunk.start : chunk.end] = " " * (chunk.end - chunk.start)
    return "".join(left).strip()


def paragraph(number: int, words: int = 30) -> str:
    return " ".join(f"Word{number}x{i}." for i in range(words))


@settings(max_examples=150, deadline=None)
@given(
    texts,
    tokenizers,
    st.integers(40, 200),
    st.integers(0, 15),
    st.booleans(),
    st.sampled_from([".md", ".txt"]),
)
def test_chunks_cover_a_text_and_none_is_too_long(
    counters: dict[str, EmbedderTokens],
    text: str,
    kind: str,
    max_tokens: int,
    overlap: int,
    headings: bool,  # noqa: FBT001
    suffix: str,
) -> None:
    read = next(read_bytes(text.encode(), suffix, "doc"))
    if not isinstance(read, Document):
        assert not text.replace("\x00", "").strip()
        return
    chunker = Chunker(
        counter=counters[kind], max_tokens=max_tokens, overlap_tokens=overlap, prefix_headings=headings
    )
    chunks = chunker.chunks(read)
    assert uncovered(read.text, chunks) == ""
    assert [chunk.ordinal for chunk in chunks] == list(range(len(chunks)))
    for before, after in itertools.pairwise(chunks):
        assert before.end < after.end
        assert before.start < after.start
        assert overlap or before.end <= after.start
    for chunk in chunks:
        body = read.text[chunk.start : chunk.end]
        assert chunk.text[chunk.prefix_chars :] == body == body.strip() != ""
        assert chunk.tokens == counters[kind].count(chunk.text) <= max_tokens
    assert len({chunk.id for chunk in chunks}) == len(chunks)
    assert chunks == chunker.chunks(read)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(sentences, min_size=1, max_size=6), min_size=2, max_size=6), sentences, st.data())
def test_an_edit_changes_the_chunks_of_its_own_section_alone(
    counter: EmbedderTokens, bodies: list[list[str]], edit: str, data: st.DataObject
) -> None:
    def page(parts: list[list[str]]) -> str:
        return "\n\n".join(f"# Section {i}\n\n" + "\n\n".join(body) for i, body in enumerate(parts))

    chunker = Chunker(counter=counter, max_tokens=64, overlap_tokens=8)
    long = [[*body, paragraph(i)] for i, body in enumerate(bodies)]  # no two sections fit one chunk
    number = data.draw(st.integers(0, len(long) - 1))
    edited = [*long[:number], [edit, *long[number]], *long[number + 1 :]]
    before, after = (chunker.chunks(document(page(parts))) for parts in (long, edited))
    mine = f"Section {number}"
    assert {c.id for c in before if mine not in c.headings} == {c.id for c in after if mine not in c.headings}


def test_a_document_that_fits_is_one_chunk(counter: EmbedderTokens) -> None:
    (chunk,) = Chunker(counter=counter).chunks(document("# Title\n\nHello.\n\n## Inner\n\nworld\n"))
    assert chunk.text == "# Title\n\nHello.\n\n## Inner\n\nworld"
    assert chunk.headings == ("Title",)
    assert (chunk.start, chunk.end, chunk.prefix_chars) == (0, len(chunk.text), 0)


def test_chunks_begin_with_the_headings_that_they_do_not_hold(counter: EmbedderTokens) -> None:
    text = f"# Guide\n\n{paragraph(1)}\n\n## Install\n\n{paragraph(2)}\n\n{paragraph(3)}\n"
    chunks = Chunker(counter=counter, max_tokens=100).chunks(document(text))
    under = [chunk for chunk in chunks if chunk.headings == ("Guide", "Install")]
    assert len(under) > 1
    assert under[0].text.startswith("Guide\n\n## Install")
    assert all(chunk.text.startswith("Guide > Install\n\nWord") for chunk in under[1:])
    plain = Chunker(counter=counter, max_tokens=100, prefix_headings=False).chunks(document(text))
    assert all(chunk.prefix_chars == 0 for chunk in plain)
    assert {chunk.headings for chunk in plain} == {("Guide",), ("Guide", "Install")}


def test_breaks_are_behind_blocks_then_sentences_then_words(counter: EmbedderTokens) -> None:
    text = "\n\n".join(["One two three. " * 6, "Four five six. " * 6, "seven eight nine " * 30])
    chunks = Chunker(counter=counter, max_tokens=64).chunks(document(text, ".txt"))
    assert chunks[0].text == ("One two three. " * 6).strip()
    assert chunks[1].text.startswith("Four five six.")
    assert all(re.match(r"(Four|seven|eight|nine)", chunk.text) for chunk in chunks[1:])
    assert all(re.search(r"(six\.|seven|eight|nine)$", chunk.text) for chunk in chunks[1:])


@pytest.mark.parametrize(
    "block",
    [
        "```\n" + "\n\n".join(f"line{i}: x = 1." for i in range(4)) + "\n```",
        "| a | b |\n|---|---|\n" + "| c. | D |\n" * 6,
    ],
)
def test_code_and_tables_that_fit_stay_whole(counter: EmbedderTokens, block: str) -> None:
    chunker = Chunker(counter=counter, max_tokens=counter.count(block.strip()) + 8)
    for words in range(1, 60, 4):
        text = f"# T\n\n{paragraph(0, words)}\n\n{block}\n\n{paragraph(1, 40)}"
        found = chunker.chunks(document(text))
        assert sum(block.strip() in chunk.text for chunk in found) == 1
    assert len(Chunker(counter=counter, max_tokens=20).chunks(document(block))) > 1


def test_a_heading_is_not_left_without_what_stands_under_it(counter: EmbedderTokens) -> None:
    text = "# One\n\n" + "\n\n".join(paragraph(i, 8) for i in range(8))
    first = Chunker(counter=counter, max_tokens=64).chunks(document(text))[0]
    assert first.text.startswith("# One\n\nWord0x0.")


def test_overlap_repeats_the_end_of_the_chunk_before(counter: EmbedderTokens) -> None:
    text = paragraph(0, 100)
    plain = Chunker(counter=counter, max_tokens=80).chunks(document(text, ".txt"))
    chunks = Chunker(counter=counter, max_tokens=80, overlap_tokens=24).chunks(document(text, ".txt"))
    assert len(chunks) > len(plain)
    for before, after in itertools.pairwise(chunks):
        shared = text[after.start : before.end]
        assert 0 < counter.count(shared) - 2 <= 30
        assert shared.startswith("Word")


def test_long_headings_leave_half_of_a_chunk(counter: EmbedderTokens) -> None:
    text = f"# {paragraph(9, 40)}\n\n## Short\n\n{paragraph(1, 90)}"
    chunks = Chunker(counter=counter, max_tokens=64).chunks(document(text))
    assert uncovered(document(text).text, chunks) == ""
    assert chunks[-1].text.startswith("Short\n\n")


def test_pages_are_those_of_the_span(counter: EmbedderTokens) -> None:
    read = document("\n\n".join(paragraph(i, 20) for i in range(3)), ".txt")
    paged = replace(read, blocks=tuple(replace(block, page=i + 1) for i, block in enumerate(read.blocks)))
    (whole,) = Chunker(counter=counter, max_tokens=1000).chunks(paged)
    assert (whole.page, whole.last_page) == (1, 3)
    pages = [(chunk.page, chunk.last_page) for chunk in Chunker(counter=counter, max_tokens=60).chunks(paged)]
    assert pages[0][0] == 1
    assert pages[-1][1] == 3
    assert whole.metadata["chunk"]["last_page"] == 3


def test_the_same_text_twice_in_a_source_has_two_ids(counter: EmbedderTokens) -> None:
    text = f"# A\n\n{paragraph(1)}\n\n# A\n\n{paragraph(1)}"
    ids = [chunk.id for chunk in Chunker(counter=counter, max_tokens=200).chunks(document(text))]
    assert len(ids) == 2
    assert ids[1] == ids[0] + "-1"


def test_ids_fit_a_collection_however_long_a_path_is(counter: EmbedderTokens) -> None:
    read = next(read_bytes(b"text", ".txt", "folder/" * 1000))
    assert isinstance(read, Document)
    (chunk,) = Chunker(counter=counter).chunks(read)
    assert len(chunk.id) <= 512


def test_the_version_names_all_that_chunks_depend_on(counter: EmbedderTokens) -> None:
    chunker = Chunker(counter=counter, max_tokens=128, overlap_tokens=16)
    assert chunker.version == "airi-structure/1 max_tokens=128 overlap=16 headings=prefix"
    others = (
        replace(chunker, max_tokens=129),
        replace(chunker, overlap_tokens=0),
        replace(chunker, prefix_headings=False),
    )
    assert len({each.version for each in (chunker, *others)}) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 17}, "max_tokens is 17; it must be at least 16 and the embedder's 2 special tokens"),
        ({"max_tokens": 42, "overlap_tokens": 21}, "overlap_tokens is 21; it must be 0 to 20"),
        ({"overlap_tokens": -1}, "overlap_tokens is -1"),
    ],
)
def test_numbers_that_cannot_be(counter: EmbedderTokens, options: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        Chunker(counter=counter, **options)  # type: ignore[arg-type]


def test_a_character_longer_than_a_chunk_is_told(counters: dict[str, EmbedderTokens]) -> None:
    accents = "e" + "\u0301" * 3
    chunks = Chunker(counter=counters["bytes"], max_tokens=17).chunks(document(accents * 9, ".txt"))
    assert "".join(chunk.text for chunk in chunks) == accents * 9
    assert all(chunk.text.startswith("e") for chunk in chunks)


class Wide:
    """A tokenizer that takes 20 tokens for each character."""

    def count(self, text: str) -> int:
        return 20 * len(text)

    def starts(self, text: str) -> list[int]:
        return [place for place in range(len(text)) for _ in range(20)]


def test_what_cannot_be_cut_is_an_error_that_names_the_place() -> None:
    with pytest.raises(RequestError, match="the character at 0 is longer than 16 tokens"):
        Chunker(counter=Wide(), max_tokens=16).chunks(document("ab", ".txt"))
