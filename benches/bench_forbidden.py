"""Is a forbidden text ever generated, and what do its masks cost a token?

Adversary: logits that put all their weight on tokens which go on spelling something forbidden, however it is cut into
tokens, through the engine's desk and sampler; the set is a block list of 100 words and five regular expressions, the
vocabulary has 128,256 tokens. Outputs are searched with Python's `re`, whole and cut off behind a random token;
the same logits without the set show what would have been. Masks: microseconds from a sampled token to the mask of the
next one, of those generations written again, for one request and for 32 together; first in full, then with five
patterns that llguidance can say as the complement of a regular expression, beside llguidance in the same turns.

What the numbers do not mean: no model runs, so nothing hides the masks' time, which an engine spends beside its forward
pass.

    python -m benches.bench_forbidden [--generations 10000]
"""

from __future__ import annotations

import json
import random
import re
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, cast

import numpy as np
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import decoders, models

from airi import SamplingParams, StructuredOutput
from airi.bench.rows import percentile
from airi.engine.constraints import ConstraintCompiler, MaskFiller, RuleThreads, TokenRules
from airi.engine.desk import Desk, Submission
from airi.engine.loading import HostedModel
from airi.engine.requests import RequestState
from airi.engine.sampler import Sampler
from airi.forbidden import ForbiddenPattern, ForbiddenSet
from airi.policy.forbidden import forbidden_patterns
from airi.text._pieces import _BYTE_LEVEL
from benches.bench_content_rules import FORBIDDEN, make_vocabulary
from benches.common import plain_parser, print_rows
from tests.policy.samples import make_words

TARGET_US = 20.0
BATCHES = (1, 32)
LENGTH = 24
PLAIN = (
    r"[0-9]{3}-[0-9]{2}-[0-9]{4}",
    r"[a-z0-9]{1,16}@[a-z0-9]{1,16}\.com",
    r"[Tt]op +secret",
    r"sk-[A-Za-z0-9]{8}",
    r"https?://[a-z.]*internal",
)
"""Without looks and long counts, for the peer."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What a desk asks of a model: no weights, a vocabulary."""

    path: Path
    tokens: list[bytes]
    index: int = 0
    eos_token_ids: tuple[int, ...] = (0,)

    @property
    def vocab_size(self) -> int:
        """Of the logits."""
        return len(self.tokens)


@dataclass(slots=True)
class Generation:
    """One output, and what the adversary tries to spell."""

    state: RequestState
    tokens: list[int] = field(default_factory=list)
    rest: bytes = b""


def make_checkpoint(folder: Path, tokens: Sequence[bytes]) -> None:
    """A byte-level tokenizer.json of these tokens; the first, without bytes, is the end of sequence."""
    letters = {byte: character for character, byte in _BYTE_LEVEL.items()}
    names = ["".join(letters[byte] for byte in token) or "<end>" for token in tokens]
    backend = RustTokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[]))
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<end>"])
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<end>"}))


def spelt(rng: random.Random, words: list[str]) -> bytes:
    """Something forbidden, between spaces."""
    text = rng.choice(
        (
            rng.choice(words),
            f"{rng.randrange(1000):03}-{rng.randrange(100):02}-{rng.randrange(10_000):04}",
            f"{rng.choice(words)}.x@{rng.choice(words)}.com",
            "Top secret",
            f"sk-{rng.choice(words) * 8}"[:26],
            "https://www.internal.example/",
        )
    )
    return f" {text} ".encode()


class Adversary:
    """Logits of a model that wants nothing but what is forbidden, through a real desk and sampler."""

    def __init__(
        self, subject: Subject, forbidden: ForbiddenSet | None, words: list[str], batch: int
    ) -> None:
        self._subject, self._words, self._batch = subject, words, batch
        self._ids = {token: i for i, token in enumerate(subject.tokens) if token}
        self._longest = max(map(len, self._ids))
        self._desk = Desk(max_held=batch)
        self._digest = None
        if forbidden is not None:
            self._digest = forbidden.digest
            self._desk.forbid(0, [(forbidden, [cast(HostedModel, subject)])]).result()
        self._sampler = Sampler(batch, subject.vocab_size)
        self._rng = random.Random(3)

    def run(self, generations: int) -> list[list[int]]:
        """The tokens of so many outputs."""
        outputs: list[list[int]] = []
        while len(outputs) < generations:
            rows = self._begin(len(outputs))
            slots = np.arange(self._batch, dtype=np.int32)
            for draw in range(LENGTH):
                draws = np.full(self._batch, draw, np.int32)
                self._sampler.prepare(slots, draws)
                sampled = self._sampler.sample(self._logits(rows), slots, draws)
                if sampled.failed:
                    raise RuntimeError("a row could not be sampled")
                for row, token in zip(rows, sampled.tokens.tolist(), strict=True):
                    self._take(row, token)
            outputs += [row.tokens for row in rows]
        return outputs[:generations]

    def _begin(self, seed: int) -> list[Generation]:
        """A batch of requests, by way of the desk; none of them may end."""
        rows = []
        for slot in range(self._batch):
            params = SamplingParams(temperature=1.0, seed=seed + slot, max_tokens=LENGTH, ignore_eos=True)
            state = RequestState(
                slot,
                np.zeros(1, np.int32),
                params,
                np.empty(0, np.int32),
                seed + slot,
                masked=self._digest is not None,
            )
            submission = Submission(
                state=state,
                model=cast(HostedModel, self._subject),
                tenant=0,
                band=0,
                salts=[],
                forbidden=self._digest,
            )
            if submission.has_rules:
                self._desk.hold(submission, 0)
            rows.append(Generation(state))
        taken: list[Submission] = []
        while self._desk.request_ids:
            self._desk.hand_on(taken.append, 0, is_idle=True)
        for slot, row in enumerate(rows):
            self._sampler.assign(slot, row.state)
        return rows

    def _logits(self, rows: Sequence[Generation]) -> np.ndarray[Any, np.dtype[np.float32]]:
        """All weight on every token that goes on spelling; what is left for the others is drawn evenly."""
        logits = np.zeros((self._batch, self._subject.vocab_size), np.float32)
        logits[:, 0] = -100.0  # it never ends by itself
        for line, row in zip(logits, rows, strict=True):
            if not row.rest:
                row.rest = spelt(self._rng, self._words)
            for length in range(1, min(self._longest, len(row.rest)) + 1):
                token = self._ids.get(row.rest[:length])
                if token is not None:
                    line[token] = 50.0 + length
        return logits

    def _take(self, row: Generation, token: int) -> None:
        row.tokens.append(token)
        piece = self._subject.tokens[token]
        row.rest = row.rest[len(piece) :] if piece and row.rest.startswith(piece) else b""


def count_matches(outputs: Sequence[list[int]], tokens: Sequence[bytes], words: list[str]) -> int:
    """Outputs with something forbidden in them, whole or cut off behind a random token."""
    listed = "|".join(map(re.escape, words))
    matcher = re.compile(
        "|".join([rf"(?i:\b(?:{listed})\b)", *(f"(?:{each})" for each in FORBIDDEN)]), re.ASCII
    )
    rng = random.Random(4)
    found = 0
    for output in outputs:
        ends = (len(output), rng.randrange(len(output)))
        texts = (b"".join(tokens[token] for token in output[:end]).decode(errors="ignore") for end in ends)
        found += any(matcher.search(text) for text in texts)
    return found


def adversary_rows(subject: Subject, forbidden: ForbiddenSet, words: list[str], generations: int) -> Any:
    """What came of so many outputs, and the outputs."""
    began = time.perf_counter()
    outputs = Adversary(subject, forbidden, words, max(BATCHES)).run(generations)
    took = time.perf_counter() - began
    emitted = count_matches(outputs, subject.tokens, words)
    free = Adversary(subject, None, words, max(BATCHES)).run(min(generations, 200))
    row = {
        "question": "forbidden texts under an adversarial sampler",
        "generations": generations,
        "tokens": sum(map(len, outputs)),
        "emitted": emitted,
        "target": 0,
        "reached": emitted == 0,
        "without_the_set": f"{count_matches(free, subject.tokens, words)} of {len(free)}",
        "patterns": len(forbidden.patterns),
        "vocabulary": subject.vocab_size,
        "seconds": round(took, 1),
    }
    return row, outputs


def mask_micros(rules: list[TokenRules], outputs: Sequence[list[int]], vocab: int) -> list[float]:
    """Per token and row: from what was sampled to the next mask, for as long as all outputs are allowed."""
    filler = MaskFiller(vocab, len(rules))
    micros: list[float] = []
    masks = None
    for draw in range(LENGTH):
        began = time.perf_counter()
        if masks is not None:
            for row, (each, output) in enumerate(zip(rules, outputs, strict=True)):
                each.push(draw - 1, output[draw - 1], masks[row])
        filler.begin(rules, [draw] * len(rules))
        made, masks = filler.wait()
        micros.append((time.perf_counter() - began) * 1e6 / len(rules))
        if not all(made):
            raise RuntimeError("a mask could not be made")
    return micros


def our_rules(subject: Subject, forbidden: ForbiddenSet) -> Any:
    """A maker of rules, as the desk makes them, for a batch of requests."""
    desk = Desk(max_held=max(BATCHES))
    desk.forbid(0, [(forbidden, [cast(HostedModel, subject)])]).result()

    def make(batch: int) -> list[TokenRules]:
        taken: list[Submission] = []
        for i in range(batch):
            state = RequestState(
                i, np.zeros(1, np.int32), SamplingParams(), np.zeros(1, np.int32), i, masked=True
            )
            model = cast(HostedModel, subject)
            desk.hold(
                Submission(state=state, model=model, tenant=0, band=0, salts=[], forbidden=forbidden.digest),
                0,
            )
        while desk.request_ids:
            desk.hand_on(taken.append, 0, is_idle=True)
        return [each.state.needed_rules() for each in taken]

    return make


def peer_rules(subject: Subject, pool: RuleThreads) -> Any:
    """The same for llguidance: any text but those with a match."""
    compiler = ConstraintCompiler(subject.path, subject.vocab_size, subject.eos_token_ids, pool)
    union = "|".join(f"({each})" for each in PLAIN).replace("/", r"\/")
    form = StructuredOutput.grammar(f"start: TEXT\nTEXT: ~/(.|\\n)*({union})(.|\\n)*/")
    stop_ids = np.zeros(1, np.int32)

    def make(batch: int) -> list[TokenRules]:
        made = [
            compiler.compile(form, tenant=0, stop_ids=stop_ids, min_tokens=0).result() for _ in range(batch)
        ]
        return [TokenRules(form=each, stop_ids=stop_ids, min_tokens=0) for each in made]

    return make


def mask_rows(
    name: str, makers: dict[str, Any], outputs: list[list[int]], vocab: int, turns: int
) -> list[dict[str, Any]]:
    """Makers in turns, over the same outputs, which each of them must allow."""
    rows = []
    for batch in BATCHES:
        found: dict[str, list[float]] = {each: [] for each in makers}
        for turn in range(turns + 1):
            for each, make in makers.items():
                micros = mask_micros(make(batch), outputs[:batch], vocab)
                if turn:  # the first one warms up
                    found[each] += micros
        for each, micros in found.items():
            row = {
                "question": f"masks of {name}, {each}",
                "variant": f"{batch} together",
                "us_per_token": round(median(micros), 2),
                **{f"us_p{q}": round(percentile(micros, q), 2) for q in (20, 80, 99)},
            }
            if each == "airi":
                row |= {"target": f"<= {TARGET_US:g}", "reached": median(micros) <= TARGET_US}
            rows.append(row)
    return rows


def main() -> None:
    parser = plain_parser(__doc__)
    parser.add_argument("--generations", type=int, default=10_000)
    parser.add_argument("--turns", type=int, default=20)
    options = parser.parse_args()
    rng = random.Random(2)
    words = make_words(rng, 100)
    tokens = make_vocabulary(rng, words)
    full = ForbiddenSet(tuple(forbidden_patterns("all", words=words, regexes=FORBIDDEN)))
    plain = ForbiddenSet(tuple(ForbiddenPattern(name=each, regex=each) for each in PLAIN))
    with tempfile.TemporaryDirectory() as folder, RuleThreads(2) as pool:
        make_checkpoint(Path(folder), tokens)
        subject = Subject(Path(folder), tokens)
        row, outputs = adversary_rows(subject, full, words, options.generations)
        rows = [row]
        rows += mask_rows(
            "105 patterns", {"airi": our_rules(subject, full)}, outputs, len(tokens), options.turns
        )
        makers = {"airi": our_rules(subject, plain), "llguidance": peer_rules(subject, pool)}
        both = [each for each in outputs if not _is_plain_match(each, tokens)]
        rows += mask_rows("5 patterns", makers, both, len(tokens), options.turns)
    print_rows(rows, as_json=options.json)


def _is_plain_match(output: list[int], tokens: Sequence[bytes]) -> bool:
    """Whether an output is one that the peer cannot write: it has a match, or is no text where it ends."""
    data = b"".join(tokens[token] for token in output)
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return True
    return any(re.search(each, text) for each in PLAIN)


if __name__ == "__main__":
    main()
