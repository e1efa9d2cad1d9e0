"""What do texts of a given form cost, and what do their forms say of public schemas?

Masks: microseconds from a sampled token to the mask of the next one, for one request and for 32 together, over schemas
whose documents are written again token by token; the tokenizer is of a checkpoint with a vocabulary of its size.
Overhead: what a token of the built-in model takes longer with a form than without, in one engine, in turns, at 1 and 32
requests; masks are computed while the model runs, on the same cores. Verdicts: over a folder of schemas with documents
(JSONSchemaBench's `maskbench/data`, or `tests/draft2020-12` of the JSON-Schema-Test-Suite), how many schemas are
taken, and whether forms agree with what the folder says of each document, in any order of its keys.

Refusals that name the keyword at fault are counted. xgrammar, where its environment is given, says the same of the same
schemas: what is not right there is a text that its user gets, or one that its user can not get.

What the numbers do not mean: the overhead on a device, whose cores are free; that a document is likely.

    python -m benches.bench_structured --schemas FOLDER [--sample 1000] [--tokenizer CHECKPOINT]
        [--xgrammar-python PATH] [--only verdicts]
"""

from __future__ import annotations

import json
import random
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from airi import SamplingParams, StructuredOutput, builtin
from airi.bench.rows import percentile
from airi.engine import Engine, EngineOptions, ModelOptions
from airi.engine.constraints.compiler import ConstraintCompiler
from airi.engine.constraints.masks import MaskFiller
from airi.engine.constraints.rules import TokenRules
from airi.engine.constraints.threads import RuleThreads
from airi.engine.constraints.tokens import TokenTable
from airi.text import Tokenizer
from benches.common import plain_parser, print_rows, run_contestant
from benches.schema_verdicts import Case, Verdicts, judge, names_keyword, read_cases

BATCHES = (1, 32)
PROMPT = list(range(20, 60))
TARGET_TAKEN = 0.92
EXAMPLE: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "items": {"type": "array", "items": {"type": "object", "properties": {
            "id": {"type": "integer", "minimum": 1, "maximum": 9999},
            "kind": {"enum": ["buy", "sell", "hold"]},
            "note": {"type": "string", "maxLength": 60},
        }, "required": ["id", "kind", "note"], "additionalProperties": False}, "minItems": 20},
    },
    "required": ["name", "items"],
    "additionalProperties": False,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Written:
    """A form, and tokens of a document that has it."""

    form: StructuredOutput
    tokens: list[int]


def documents(cases: list[Case], text: Tokenizer, least: int, count: int) -> list[Written]:
    """Valid documents of at least so many tokens, with their schemas as forms."""
    found = []
    for case in cases:
        form = StructuredOutput(kind="json_schema", text=json.dumps(case.schema))
        for valid, document in case.tests:
            tokens = text.encode(json.dumps(document, ensure_ascii=False), add_special_tokens=False)
            if valid and len(tokens) >= least:
                found.append(Written(form, tokens))
                break
        if len(found) == count:
            break
    return found


def mask_rows(path: Path, cases: list[Case]) -> list[dict[str, Any]]:
    """Times of masks over the documents."""
    text = Tokenizer.load(path)
    vocab, eos = text.vocab_size, (text.eos_id or 0,)
    began = time.perf_counter()
    TokenTable.load(path, vocab, eos)
    table_s = time.perf_counter() - began
    rows: list[dict[str, Any]] = []
    with RuleThreads(1) as pool:
        compiler = ConstraintCompiler(path, vocab, eos, pool)
        for batch in BATCHES:
            compiled, micros = _write_again(compiler, documents(cases, text, 8, 64), vocab, batch, eos)
            rows.append(
                {
                    "question": f"mask, vocabulary of {vocab:,}",
                    "variant": f"{batch} together",
                    "steps": len(micros),
                    **{f"us_p{q}": round(percentile(micros, q), 1) for q in (20, 50, 80, 99)},
                    "compile_ms_p50": round(percentile(compiled, 50) * 1e3, 2),
                    "tokenizer_ms": round(table_s * 1e3),
                }
            )
    return rows


def _write_again(
    compiler: ConstraintCompiler, written: list[Written], vocab: int, batch: int, eos: tuple[int, ...]
) -> tuple[list[float], list[float]]:
    filler = MaskFiller(vocab, batch)
    compiled, micros = [], []
    stop_ids = np.array(eos, np.int32)
    for start in range(0, len(written) - batch + 1, batch):
        group = written[start : start + batch]
        rules = []
        for each in group:
            began = time.perf_counter()
            try:
                made_of = compiler.compile(each.form, tenant=0, stop_ids=stop_ids, min_tokens=0).result()
            except ValueError:
                continue  # refused: what is counted below
            compiled.append(time.perf_counter() - began)
            rules.append(TokenRules(form=made_of, stop_ids=stop_ids, min_tokens=0))
        rows = list(zip(rules, group, strict=False))
        for draw in range(min((len(each.tokens) for _, each in rows), default=0)):
            began = time.perf_counter()
            filler.begin([each for each, _ in rows], [draw] * len(rows))
            made, masks = filler.wait()
            micros.append((time.perf_counter() - began) * 1e6)
            kept = []
            for (bound, each), mask, could in zip(rows, masks, made, strict=True):
                token = each.tokens[draw]
                if could and int(mask[token >> 5]) >> (token & 31) & 1:
                    bound.push(draw, token, mask)
                    kept.append((bound, each))
            if len(kept) < len(rows):  # a document in another order of keys or with other tokens
                break
    return compiled, micros


def overhead_rows(turns: int, tokens: int) -> list[dict[str, Any]]:
    """Microseconds per token with a form and without, in turns."""
    options = EngineOptions(models=(ModelOptions(path=builtin.resolve(None)),), max_num_seqs=max(BATCHES))
    engine = Engine(options)
    form = StructuredOutput.json_schema(EXAMPLE)
    rows = []
    for batch in BATCHES:
        took: dict[bool, list[float]] = {True: [], False: []}
        for turn in range(turns + 1):
            for bound in (True, False):
                micros = _step_micros(engine, form if bound else None, batch, tokens, seed=turn)
                if turn:  # the first one warms up
                    took[bound].append(micros)
        free, bound_ = (percentile(took[each], 50) for each in (False, True))
        rows.append(
            {
                "question": "step of the built-in model",
                "variant": f"{batch} requests",
                "us_free": round(free, 1),
                "us_form": round(bound_, 1),
                "us_more": round(bound_ - free, 1),
                "us_more_per_token": round((bound_ - free) / batch, 1),
                "turns": turns,
            }
        )
    engine.close()
    return rows


def _step_micros(
    engine: Engine, form: StructuredOutput | None, batch: int, tokens: int, *, seed: int
) -> float:
    """Of the median step in which every request decodes."""
    for i in range(batch):
        params = SamplingParams(
            max_tokens=tokens,
            structured=form,
            seed=seed * batch + i,
            ignore_eos=form is None,
            temperature=1.0,
        )
        engine.add_request(i, 0, PROMPT, params)
    micros, before = [], 0.0
    while engine.has_work():
        given = engine.step_columns()
        now = time.perf_counter()
        if len(given.request_ids) == batch and before:
            micros.append((now - before) * 1e6)
        before = now
        if any(each.error for each in given.others):
            raise SystemExit("a request failed")
    return percentile(micros, 50)


def verdict_rows(folder: Path, cases: list[Case]) -> tuple[list[dict[str, Any]], Verdicts]:
    """Counts over the folder."""
    from llguidance import LLTokenizer

    tokens, verdicts = SimpleNamespace(tokenizer=LLTokenizer("byte")), Verdicts()
    for case in cases:
        judge(case, tokens, verdicts)
    share = verdicts.taken / max(verdicts.schemas, 1)
    named = sum(names_keyword(why) for _, why in verdicts.refusals)
    row = {
        "question": f"verdicts over {folder.name}",
        "schemas": verdicts.schemas,
        "taken": verdicts.taken,
        "taken_share": round(share, 4),
        "valid_accepted": f"{verdicts.valid_accepted}/{verdicts.valid}",
        "invalid_rejected": f"{verdicts.invalid_rejected}/{verdicts.invalid}",
        "gave_up": verdicts.gave_up,
        "wrong": len(verdicts.wrong),
        "refusals_naming_keyword": f"{named}/{len(verdicts.refusals)}",
        "target": f"no wrong verdict, >= {TARGET_TAKEN:.0%} taken",
        "reached": not verdicts.wrong and share >= TARGET_TAKEN,
    }
    return [row], verdicts


def xgrammar_row(python: str, folder: Path, cases: list[Case]) -> dict[str, Any]:
    """What xgrammar says of the same."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump([{"schema": case.schema, "tests": case.tests} for case in cases], file)
        file.flush()
        found = run_contestant(python, "xgrammar_verdicts", [file.name])
    return {
        "question": f"verdicts over {folder.name}",
        "peer": f"xgrammar {found['version']}",
        "schemas": found["schemas"],
        "taken": found["taken"],
        "taken_share": round(found["taken"] / max(found["schemas"], 1), 4),
        "valid_accepted": f"{found['valid_accepted']}/{found['valid']}",
        "invalid_rejected": f"{found['invalid_rejected']}/{found['invalid']}",
    }


def main() -> None:
    parser = plain_parser(__doc__, "xgrammar")
    parser.add_argument("--schemas", type=Path, help="a folder of schemas with tests")
    parser.add_argument("--sample", type=int, help="so many of the schemas, drawn with a fixed seed")
    parser.add_argument("--tokenizer", type=Path, help="a checkpoint folder; left out: the built-in model's")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--only", choices=("verdicts",), help="leave times out")
    parser.add_argument("--show", action="store_true", help="list refusals and wrong verdicts")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    if options.schemas is not None:
        cases = list(read_cases(options.schemas))
        if options.sample is not None:
            cases = random.Random(0).sample(cases, min(options.sample, len(cases)))
        rows, verdicts = verdict_rows(options.schemas, cases)
        if options.show:
            for name, why in verdicts.refusals:
                print(f"refused  {name}  {why}")
            for name, valid, document in verdicts.wrong:
                print(f"wrong  {name}  {'valid' if valid else 'invalid'}  {document}")
        if options.xgrammar_python is not None:
            rows.append(xgrammar_row(options.xgrammar_python, options.schemas, cases))
        if options.only is None:
            rows += mask_rows(options.tokenizer or Path(builtin.resolve(None)), cases)
    if options.only is None:
        rows += overhead_rows(options.turns, options.tokens)
    print_rows(rows, as_json=options.json)


if __name__ == "__main__":
    main()
