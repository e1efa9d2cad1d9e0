"""Texts and pairs as encoders read them: as transformers has them, and whatever they say, never as special tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import transformers
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import models, pre_tokenizers, processors

from airi.errors import CheckpointError
from airi.text import TextReader, Tokenizer
from tests.engine.encoder_folders import TEXTS, classifier, reranker

SHORT, LONG = "to be", "the quick brown fox jumps over the lazy dog or not " * 9


class Read(NamedTuple):
    """One folder, as it is read here and by transformers."""

    ours: TextReader
    theirs: Any


@pytest.fixture(scope="module", params=[classifier, reranker], ids=["wordpiece", "unigram"])
def read(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Read:
    make: Callable[[Path], Path] = request.param
    folder = make(tmp_path_factory.mktemp("model"))
    return Read(TextReader(Tokenizer.load(folder)), transformers.AutoTokenizer.from_pretrained(folder))


def test_texts_have_the_tokens_that_transformers_gives_them(read: Read) -> None:
    texts = [*TEXTS, LONG, LONG * 40]
    contents = read.ours.contents(texts)
    assert [read.ours.whole(content) for content in contents] == [
        read.theirs(text).input_ids for text in texts
    ]


def test_pairs_have_the_tokens_that_transformers_gives_them(read: Read) -> None:
    for first, second in [(SHORT, TEXTS[0]), (TEXTS[2], SHORT)]:
        one, other = read.ours.contents([first, second])
        assert read.ours.pair(one, other) == read.theirs(first, second).input_ids


@pytest.mark.parametrize("most", [7, 8, 20, 21, 64])
def test_what_is_cut_is_cut_as_transformers_cuts_it(read: Read, most: int) -> None:
    cut = {"truncation": "longest_first", "max_length": most}
    for first, second in [(SHORT, LONG), (LONG, SHORT), (LONG, LONG), (SHORT, SHORT)]:
        one, other = read.ours.contents([first, second])
        assert read.ours.whole(one, most=most) == read.theirs(first, **cut).input_ids
        assert read.ours.pair(one, other, most=most) == read.theirs(first, second, **cut).input_ids


def test_tokens_that_are_given_keep_what_closes_them(read: Read) -> None:
    tokens = read.theirs(TEXTS[0]).input_ids
    assert read.ours.cut(tokens, 5) == [*tokens[:4], tokens[-1]]
    assert read.ours.cut(tokens, len(tokens)) == tokens
    assert read.ours.cut(tokens[:-1], 5) == tokens[:5]


def test_no_text_makes_special_tokens(read: Read) -> None:
    special = set(read.theirs.all_special_ids) - {read.theirs.unk_token_id}
    for name in read.theirs.all_special_tokens:
        for text in (f"to be{name}or not {name} to be", name, f"{name}{name}"):
            assert (
                special & set(read.theirs(text, add_special_tokens=False).input_ids) or "unk" in name.lower()
            )
            for content in read.ours.contents([text, text + " " * 5000]):
                assert special.isdisjoint(content)
                assert content, "what it says is not dropped"
    assert (
        read.ours.contents([f"to be {read.theirs.sep_token} or not"])[0][:2]
        == read.ours.contents([SHORT])[0][:2]
    )


def test_half_a_surrogate_pair_is_text(read: Read) -> None:
    broken, whole = read.ours.contents(["to be \ud83d", "to be \ufffd"])
    assert broken == whole


def test_nothing_is_empty(read: Read) -> None:
    assert read.ours.contents([""]) == [[]]
    for is_pair in (False, True):
        assert read.ours.least(is_pair=is_pair) == read.theirs.num_special_tokens_to_add(pair=is_pair)


def tokenizer(post_processor: Any) -> Tokenizer:
    backend = RustTokenizer(models.WordLevel({"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "a": 3, "b": 4}, "[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if post_processor is not None:
        backend.post_processor = post_processor
    return Tokenizer(backend, decoder=None, special_tokens={}, templates={})


def test_a_vocabulary_that_spells_special_tokens_as_words_reads_them_as_unknown() -> None:
    reader = TextReader(tokenizer(processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))))
    assert reader.contents(["a [SEP] b [CLS]"]) == [[3, 0, 4, 0]]


def test_without_a_post_processor_a_text_stands_alone() -> None:
    reader = TextReader(tokenizer(None))
    assert (reader.whole([3, 4]), reader.pair([3], [4]), reader.whole([3, 4], most=1)) == (
        [3, 4],
        [3, 4],
        [3],
    )


def test_a_post_processor_that_says_a_text_twice_is_refused() -> None:
    twice = processors.TemplateProcessing(
        single="$A [SEP] $A", pair="$A [SEP] $B:1", special_tokens=[("[SEP]", 2)]
    )
    with pytest.raises(
        CheckpointError, match=r"tokenizer\.json: its post_processor has not each text once, in order"
    ):
        TextReader(tokenizer(twice))
