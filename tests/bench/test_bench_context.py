"""The bench of prompts that share documents: orders differ in nothing else, and what is counted is computed."""

from __future__ import annotations

from airi import builtin
from airi.retrieval.context.passages import join_neighbours
from airi.text import Tokenizer
from benches.bench_context import QUESTIONS, ends_first, find, measure, pool_of, read_chunks
from tests.retrieval.context.helpers import hit


def test_the_best_ones_stand_at_both_ends() -> None:
    passages = join_neighbours(hit(name, score) for name, score in zip("abcde", (3, 1, 5, 2, 4), strict=True))
    assert [each.source[0] for each in ends_first(passages)] == ["c", "a", "b", "d", "e"]


def test_orders_of_the_same_documents_compute_what_their_prefixes_do_not_share() -> None:
    folder = str(builtin.path())
    chunks = read_chunks(folder)
    assert len({chunk.id for chunk in chunks}) == len(chunks)
    assert len(find(QUESTIONS[0], chunks, 4)) == 4
    found = measure(QUESTIONS[:3], chunks, 4, Tokenizer.load(folder))
    assert {chunk.id for chunk in pool_of(chunks, 8)} <= {chunk.id for chunk in chunks}
    assert all(0 < each["computed_tokens"] <= each["prompt_tokens"] for each in found.values())
    again = measure([QUESTIONS[0]] * 3, chunks, 4, Tokenizer.load(folder))
    assert again["AIRI"]["computed_tokens"] < again["AIRI"]["prompt_tokens"] / 2
