"""Decision records as sentences: why a request waits, when it ran, for whom it made way, how it ended."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from airi._core import Decision

__all__ = ["explain", "sentence"]

_MADE_WAY = "taken off after {b:,} tokens were computed: "

_SENTENCES: dict[Decision, str] = {
    Decision.SUBMITTED: "submitted: a prompt of {a:,} tokens, at most {b:,} to generate",
    Decision.QUEUED_TURN: "queued: not its turn, request {a} stands first; {b:,} wait",
    Decision.QUEUED_SLOTS: "queued: every slot is taken, {a:,} requests run",
    Decision.QUEUED_BLOCKS: "queued: waits for {a:,} blocks, {b:,} free",
    Decision.QUEUED_BUDGET: "queued: the step is full, it takes at most {a:,} tokens",
    Decision.QUEUED_BARRED: "queued: the step took others of its level ({a}) off and admits none in their place",
    Decision.QUEUED_PREFIX: "queued: request {a} computes its prefix; held for at most {b:,} steps",
    Decision.QUEUED_QUOTA: "queued: waits for {a:,} blocks, {b:,} free or not protected by others' quotas",
    Decision.QUEUED_BEST_EFFORT: "queued: cannot have its first token in time; lets others pass for {a:,} us",
    Decision.ADMITTED: "admitted: {a:,} tokens hit, {b:,} blocks promised",
    Decision.CHUNKED: "computing {a:,} tokens of the prompt, {b:,} left for later steps",
    Decision.PREEMPTED_MEMORY: _MADE_WAY + "request {a} needed a block",
    Decision.PREEMPTED_URGENT: _MADE_WAY + "request {a} is more urgent",
    Decision.PREEMPTED_GAP: _MADE_WAY + "the tenant of request {a} has been served too much less",
    Decision.PREEMPTED_SLAB: _MADE_WAY + "another model has a claim to the memory",
    Decision.PREEMPTED_SLEEP: _MADE_WAY + "its model was told to sleep",
    Decision.FINISHED_STOP: "finished: a stop token after {a:,}",
    Decision.FINISHED_LENGTH: "finished: the limit of {a:,} tokens",
    Decision.FINISHED_CANCELLED: "cancelled after {a:,} tokens",
    Decision.FINISHED_DEADLINE: "ended at its deadline after {a:,} tokens",
    Decision.FINISHED_FAILED: "ended after {a:,} tokens: running the model failed",
    Decision.FINISHED_NEVER_FITS: "ended after {a:,} tokens: quotas or models since keep from it the memory it needs",
    Decision.FINISHED_NAN: "ended after {a:,} tokens: the model gave not-a-number logits",
    Decision.REFUSED_QUEUE_FULL: "refused: {a:,} requests wait already",
    Decision.REFUSED_TOO_LONG: "refused: needs {a:,} tokens, a request has at most {b:,}",
    Decision.REFUSED_NEVER_FITS: "refused: needs {a:,} blocks, there are {b:,}",
    Decision.REFUSED_DUPLICATE_ID: "refused: another request has its id",
    Decision.REFUSED_MODEL_GONE: "refused: its model is being removed, or has been",
}


def sentence(record: np.void) -> str:
    """One decision record as a clause without a full stop; a code of a newer core is given as its number."""
    code, a, b = int(record["decision"]), int(record["a"]), int(record["b"])
    try:
        text = _SENTENCES[Decision(code)]
    except (ValueError, KeyError):
        return f"decision {code} ({a}, {b})"
    return text.format(a=a, b=b)


def explain(
    records: NDArray[np.void],
    request_id: int,
    *,
    missed: int = 0,
    clock: Callable[[int], str] | None = None,
) -> list[str]:
    """What became of a request, one line per decision, oldest first; empty where the records do not name it.

    `records` are those of `Runtime.read_decisions`, of which `missed` older ones were overwritten. Times are
    milliseconds since the request's first record, or what `clock` makes of microseconds.
    """
    own = records[records["request_id"] == request_id]
    if not len(own):
        return []
    began = int(own["at_us"][0])
    stamp = clock or (lambda at_us: f"{(at_us - began) / 1000:+.1f} ms")
    lines = [f"{stamp(int(record['at_us']))}  {sentence(record)}" for record in own]
    entered = {int(Decision.SUBMITTED), *(int(d) for d in Decision if d.name.startswith("REFUSED"))}
    if missed and int(own["decision"][0]) not in entered:
        lines.insert(0, "(older records are overwritten)")
    return lines
