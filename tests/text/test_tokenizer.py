"""Ids are those of transformers' fast tokenizers; broken files are named in one line."""

from __future__ import annotations

import json
import shutil
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from airi.errors import CheckpointError
from airi.text import Tokenizer
from tests.text.conftest import CORPUS

if TYPE_CHECKING:
    from tests.text.conftest import Pair

shared = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)


def edited(pair: Pair, folder: Path, **changes: Any) -> Path:
    """A copy of the tokenizer with other fields in tokenizer_config.json; None takes one away."""
    shutil.copytree(pair.folder, folder, dirs_exist_ok=True)
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    return folder


def their_reading(folder: Path) -> Any:
    return transformers.PreTrainedTokenizerFast.from_pretrained(folder)


@shared
@given(text=st.text(max_size=30), add=st.booleans())
def test_ids_and_text_equal_transformers(pair: Pair, *, text: str, add: bool) -> None:
    ids = pair.ours.encode(text, add_special_tokens=add)
    assert ids == pair.theirs(text, add_special_tokens=add)["input_ids"]
    for skip in (True, False):
        theirs = pair.theirs.decode(ids, skip_special_tokens=skip)
        assert pair.ours.decode(ids, skip_special_tokens=skip) == theirs


def test_a_long_text_has_the_ids_and_the_text_that_transformers_gives_it(pair: Pair) -> None:
    text = "".join(CORPUS)[:50_000]
    for add in (True, False):
        ids = pair.ours.encode(text, add_special_tokens=add)
        assert ids == pair.theirs(text, add_special_tokens=add)["input_ids"]
        for skip in (True, False):
            theirs = pair.theirs.decode(ids, skip_special_tokens=skip)
            assert pair.ours.decode(ids, skip_special_tokens=skip) == theirs


@pytest.mark.parametrize("way", ["encode", "decode"])
def test_other_threads_go_on_while_a_long_text_is_worked_on(pairs: dict[str, Pair], way: str) -> None:
    tokenizer = pairs["byte-level"].ours
    text = "".join(CORPUS) * 30
    given = text if way == "encode" else tokenizer.encode(text) * 4
    begun = threading.Event()

    def work() -> None:
        begun.set()
        getattr(tokenizer, way)(given)

    thread = threading.Thread(target=work)
    thread.start()
    begun.wait()
    ticks = 0
    while thread.is_alive():
        time.sleep(0.001)
        ticks += 1
    # Where the lock is held, this thread sleeps about once before, and once after.
    assert ticks > 10


@pytest.mark.parametrize("bos", [None, True, False])
@pytest.mark.parametrize("eos", [None, True, False])
@pytest.mark.parametrize("name", ["byte-level", "gemma"])
def test_add_bos_and_add_eos_of_the_config_count_as_in_transformers(
    pairs: dict[str, Pair], tmp_path: Path, name: str, *, bos: bool | None, eos: bool | None
) -> None:
    folder = edited(pairs[name], tmp_path / "t", add_bos_token=bos, add_eos_token=eos)
    ours, theirs = Tokenizer.load(folder), their_reading(folder)
    for text in ("", "Item 1"):
        for add in (True, False):
            ids = theirs(text, add_special_tokens=add)["input_ids"]
            assert ours.encode(text, add_special_tokens=add) == ids


def test_tokens_of_the_config_are_added_as_in_transformers(pairs: dict[str, Pair], tmp_path: Path) -> None:
    size = pairs["byte-level"].ours.vocab_size
    added = {"__type": "AddedToken", "special": True}
    folder = edited(
        pairs["byte-level"],
        tmp_path / "t",
        added_tokens_decoder={
            str(size + 1): {"content": "<plain>", "special": False, "normalized": False},
            str(size): {"content": "<tool>", "special": True, "lstrip": False, "rstrip": True},
        },
        additional_special_tokens=[
            "<image>",
            {"__type": "AddedToken", "content": "<audio>", "special": True, "lstrip": True},
        ],
        pad_token=added | {"content": "<pad>"},
    )
    ours, theirs = Tokenizer.load(folder), their_reading(folder)
    text = "a <tool> b<plain>c <image> d <audio>e<pad>"
    ids = ours.encode(text)
    assert ids == theirs(text)["input_ids"]
    for skip in (True, False):
        assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip)
        stream = ours.stream([], skip_special_tokens=skip)
        assert stream.push(ids) == theirs.decode(ids, skip_special_tokens=skip)
    assert ours.special_tokens["pad_token"] == "<pad>"


def test_special_tokens_map_is_read_where_the_config_has_none(pairs: dict[str, Pair], tmp_path: Path) -> None:
    folder = edited(pairs["gemma"], tmp_path / "t", bos_token=None, eos_token=None)
    (folder / "special_tokens_map.json").write_text('{"bos_token": {"content": "<s>"}, "eos_token": "</s>"}')
    tokenizer = Tokenizer.load(folder)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (1, 2)


def test_a_folder_without_tokenizer_config_still_loads(pairs: dict[str, Pair], tmp_path: Path) -> None:
    shutil.copy(pairs["gemma"].folder / "tokenizer.json", tmp_path)
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.encode("Item") == pairs["gemma"].ours.encode("Item")
    assert tokenizer.bos_id is None
    assert tokenizer.chat_template is None


def test_truncation_and_padding_of_the_file_are_ignored(pairs: dict[str, Pair], tmp_path: Path) -> None:
    folder = edited(pairs["gemma"], tmp_path / "t")
    file = folder / "tokenizer.json"
    data = json.loads(file.read_text())
    data["truncation"] = {"max_length": 4, "direction": "Right", "strategy": "LongestFirst", "stride": 0}
    file.write_text(json.dumps(data))
    assert len(Tokenizer.load(folder).encode("one two three four five six")) > 4


def test_half_a_surrogate_pair_is_encoded_as_a_replacement_character(pairs: dict[str, Pair]) -> None:
    tokenizer = pairs["byte-level"].ours
    assert tokenizer.encode("a\ud83db") == tokenizer.encode("a�b")
    assert tokenizer.encode("a\ud83d\ude42b") == tokenizer.encode("a🙂b")
    long = "word " * 2000
    assert tokenizer.encode(long + "a\ud83db") == tokenizer.encode(long + "a\ufffdb")


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("tokenizer.json", None, "tokenizer.json is missing"),
        ("tokenizer.json", "{}", "tokenizer.json: not a tokenizer"),
        ("tokenizer.json", '{"version": "1.0", "model": {"type"', "tokenizer.json: not a tokenizer"),
        ("tokenizer.json", b"\xff\xfe", "tokenizer.json: cannot be read: it is not UTF-8 text"),
        ("tokenizer_config.json", "{", "tokenizer_config.json: broken JSON at line 1 column 2"),
        ("tokenizer_config.json", "[]", "must hold a JSON object, found list"),
    ],
)
def test_missing_and_broken_files_are_named(
    pairs: dict[str, Pair], tmp_path: Path, file: str, content: str | bytes | None, says: str
) -> None:
    folder = edited(pairs["gemma"], tmp_path / "t")
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CheckpointError, match=says) as caught:
        Tokenizer.load(folder)
    assert "\n" not in str(caught.value)


def test_a_missing_tokenizer_names_the_folder_and_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"tokenizer\.model alone is not enough"):
        Tokenizer.load(tmp_path)
    with pytest.raises(CheckpointError, match="no such folder"):
        Tokenizer.load(tmp_path / "nowhere")
