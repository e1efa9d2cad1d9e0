"""Decision records as sentences."""

from __future__ import annotations

import string

import numpy as np
import pytest
from numpy.typing import NDArray

from airi import _core
from airi._core import Decision
from airi.observability import explain, sentence
from airi.observability.explain import _SENTENCES

Entry = tuple[int, int, Decision, int, int]
"""request, at_us, decision, a, b"""


def records(*entries: Entry) -> NDArray[np.void]:
    fields = [("request_id", "i8"), ("tenant", "i8"), ("at_us", "i8"), ("model", "i4"), ("decision", "i4")]
    dtype = np.dtype([*fields, ("a", "i8"), ("b", "i8")])
    return np.array([(r, 0, at, 0, int(d), a, b) for r, at, d, a, b in entries], dtype)


def test_a_request_that_waited_and_made_way_is_told_in_order() -> None:
    found = records(
        (7, 1_000, Decision.SUBMITTED, 20, 8),
        (8, 1_000, Decision.SUBMITTED, 1, 1),
        (7, 1_000, Decision.QUEUED_BLOCKS, 12, 3),
        (7, 3_500, Decision.ADMITTED, 16, 7),
        (7, 4_500, Decision.PREEMPTED_GAP, 8, 24),
        (7, 9_000, Decision.FINISHED_LENGTH, 8, 16),
    )
    assert explain(found, 7) == [
        "+0.0 ms  submitted: a prompt of 20 tokens, at most 8 to generate",
        "+0.0 ms  queued: waits for 12 blocks, 3 free",
        "+2.5 ms  admitted: 16 tokens hit, 7 blocks promised",
        "+3.5 ms  taken off after 24 tokens were computed: the tenant of request 8 has been served too much less",
        "+8.0 ms  finished: the limit of 8 tokens",
    ]
    assert explain(found, 9) == []


def test_what_is_overwritten_is_said_only_where_something_is_missing() -> None:
    late = records((7, 0, Decision.ADMITTED, 0, 1))
    assert explain(late, 7, missed=5)[0] == "(older records are overwritten)"
    whole = records((7, 0, Decision.SUBMITTED, 1, 1))
    refused = records((7, 0, Decision.REFUSED_QUEUE_FULL, 4096, 0))
    assert explain(whole, 7, missed=5) == ["+0.0 ms  submitted: a prompt of 1 tokens, at most 1 to generate"]
    assert explain(refused, 7, missed=5) == ["+0.0 ms  refused: 4,096 requests wait already"]


@pytest.mark.parametrize("decision", list(Decision))
def test_every_decision_has_a_sentence_of_its_own_numbers(decision: Decision) -> None:
    used = {name for _, name, _, _ in string.Formatter().parse(_SENTENCES[decision]) if name}
    said = sentence(records((1, 0, decision, 123, 456))[0])
    assert ("123" in said, "456" in said) == ("a" in used, "b" in used)
    assert len(set(_SENTENCES.values())) == len(Decision)


def test_a_code_of_a_newer_core_is_given_as_its_number() -> None:
    found = records((1, 0, Decision.SUBMITTED, 5, 6))
    found["decision"] = 99
    assert sentence(found[0]) == "decision 99 (5, 6)"


def test_times_may_be_told_by_another_clock() -> None:
    found = records((1, 5, Decision.FINISHED_STOP, 2, 0))
    assert explain(found, 1, clock=str) == ["5  finished: a stop token after 2"]


def test_the_columns_are_those_of_the_core() -> None:
    config = _core.RuntimeConfig(
        arena_bytes=_core.GRANULE_BYTES,
        slab_bytes=_core.GRANULE_BYTES,
        hash_key=bytes(16),
        decision_records=4,
    )
    model = _core.ModelConfig(
        block_size=8, bytes_per_block=_core.GRANULE_BYTES, max_model_len=8, max_num_seqs=1, max_batch_tokens=8
    )
    one = np.zeros(1, np.int32)
    arrays = _core.StepBuffers(
        request_ids=np.zeros(1, np.int64), slots=one.copy(), query_start=np.zeros(2, np.int32),
        seq_lens=one.copy(), row_flags=np.zeros(1, np.uint8), draw_index=one.copy(),
        tokens=np.zeros(8, np.int32), positions=np.zeros(8, np.int32),
        deltas=np.zeros((model.max_deltas, 3), np.int32),
    )  # fmt: skip
    runtime = _core.Runtime(config, [model], [arrays])
    assert runtime.read_decisions(0)[0].dtype.names == records().dtype.names
