"""How much of their prompts do questions compute that share documents, where documents have a stable order?

Twenty questions about the same documents: for each, the six chunks of a pool with the most of its words are put into a
prompt by `build_context`, and the prompt is answered by the built-in model with its prefix cache. The peers have the
same chunks in the same words, in the orders of other packers: by score, as LangChain's and LlamaIndex's do unless told
otherwise; by score with the best ones at both ends (`LongContextReorder`); by source and place, without a memory of
earlier prompts; and, which no packer can, by how many of all twenty questions will have a chunk. Counted are the tokens
of all prompts that the engine did not find in its cache. Each order has an engine of its own.

How much can be shared is up to how often chunks repeat, which is what `--pool` is for: of 8 chunks two questions have
four in common or more, of 50 far fewer. No order helps where documents do not repeat.

What the numbers do not mean: nothing is said of answers.

    python -m benches.bench_context
"""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from airi import LLM, SamplingParams, builtin
from airi.retrieval.context import Context, ContextHit, ContextOptions, PromptMemory, build_context
from airi.retrieval.context.passages import Passage, Writer, join_neighbours
from airi.retrieval.ingest import Chunk, Chunker, Document, EmbedderTokens, read_file
from airi.text import Tokenizer
from benches.common import ROOT, plain_parser, print_rows, verdict

TARGET = 0.6
DOCUMENTS = ("python/airi/lifecycle/README.md",)
CHUNK_TOKENS = 96
WINDOW = 1024
RESERVED = 16
QUESTIONS = (
    "Who gets which release of a model?",
    "What happens to a rollout when an engine dies with the candidate?",
    "How is a session kept on the release where it began?",
    "What does promote do behind a pause or a gate?",
    "When is a version loaded, and when does it go?",
    "What do gates see of a rollout?",
    "How are answers of stable read again by the candidate?",
    "What is kept in the state, and with which revision?",
    "What happens when several gateways have different configs?",
    "Which release does a judge get for a call?",
    "How long does a version stay that is not needed any more?",
    "What happens when a process is killed in the middle of a rollout?",
    "How can a caller ask for a release with a header?",
    "Why is a draw the same in every gateway?",
    "What is a shadow step, and who pays for it?",
    "When is a candidate that was aborted still given to a call?",
    "What do engines call a version, and what do metrics of requests know?",
    "What is a rollout's document, and who can replace it?",
    "How often is a load tried that ends the process?",
    "Which release is stable when a line is first served?",
)
_WORD = re.compile(r"[a-z]{3,}")

Order = Callable[[Sequence[Passage]], list[Passage]]


def by_score(passages: Sequence[Passage]) -> list[Passage]:
    """The best one first."""
    return sorted(passages, key=lambda each: (-max(hit.score for hit in each.hits), each.place))


def ends_first(passages: Sequence[Passage]) -> list[Passage]:
    """The best ones first and last, the worst ones in the middle."""
    ranked = by_score(passages)
    return ranked[::2] + ranked[1::2][::-1]


def by_place(passages: Sequence[Passage]) -> list[Passage]:
    """By source and place."""
    return sorted(passages, key=lambda each: each.place)


HINDSIGHT = "in hindsight"
PEERS: dict[str, Order] = {"by score": by_score, "best at both ends": ends_first, "by place": by_place}


def read_chunks(folder: str) -> list[Chunk]:
    """The documents in chunks, by the tokens of the model in `folder`."""
    chunker = Chunker(counter=EmbedderTokens.load(folder), max_tokens=CHUNK_TOKENS)
    chunks: list[Chunk] = []
    for name in DOCUMENTS:
        for document in read_file(ROOT / name, name):
            assert isinstance(document, Document), str(document)
            chunks += chunker.chunks(document)
    return chunks


def find(question: str, chunks: Sequence[Chunk], count: int) -> list[ContextHit]:
    """The chunks that have most of a question's words, rare ones count more."""
    words = [Counter(_WORD.findall(chunk.text.lower())) for chunk in chunks]
    asked = sorted(set(_WORD.findall(question.lower())))
    rarity = {word: math.log(1 + len(chunks) / (1 + sum(word in each for each in words))) for word in asked}
    hits = [
        ContextHit(
            id=chunk.id,
            text=chunk.text,
            source=chunk.source,
            metadata=chunk.metadata,
            score=sum(rarity[word] * each[word] / (1 + each[word]) for word in asked),
        )
        for chunk, each in zip(chunks, words, strict=True)
    ]
    return sorted(hits, key=lambda hit: (-hit.score, hit.id))[:count]


def peer_prompt(
    question: str, hits: Sequence[ContextHit], context: Context, order: Order, tokenizer: Tokenizer
) -> list[dict[str, str]]:
    """What `context` has of the hits, in the peer's order."""
    used = {line.id for line in context.receipt.used}
    passages = order(join_neighbours(hit for hit in hits if hit.id in used))
    writer = Writer(tokenizer.token_text(each) for each in tokenizer.special_ids)
    return [{"role": "user", "content": writer.write(ContextOptions().instruction, passages) + question}]


def computed(prompts: Sequence[Any]) -> dict[str, int]:
    """Tokens of the prompts, and those that an engine of their own computes of them, one prompt after the other."""
    params = SamplingParams(max_tokens=1, temperature=0)
    tokens = cached = 0
    with LLM("airi-demo", progress=False) as llm:
        for messages in prompts:
            (output,) = llm.chat(messages, params)
            tokens += len(output.prompt_token_ids)
            cached += output.num_cached_tokens
    return {"prompt_tokens": tokens, "computed_tokens": tokens - cached}


def pool_of(chunks: Sequence[Chunk], size: int) -> list[Chunk]:
    """The chunks that all questions together find most."""
    scores: dict[str, float] = dict.fromkeys((chunk.id for chunk in chunks), 0.0)
    for question in QUESTIONS:
        for hit in find(question, chunks, len(chunks)):
            scores[hit.id] += hit.score
    return sorted(chunks, key=lambda chunk: (-scores[chunk.id], chunk.id))[:size]


def most_asked(contexts: Sequence[Context]) -> Order:
    """By how many of the contexts have a hit."""
    asked = Counter(line.id for context in contexts for line in context.receipt.used)
    return lambda passages: sorted(
        passages, key=lambda each: (-max(asked[hit.id] for hit in each.hits), each.place)
    )


def measure(
    questions: Sequence[str], pool: Sequence[Chunk], count: int, tokenizer: Tokenizer
) -> dict[str, dict[str, int]]:
    """What each order computes; RuntimeError where orders differ in more than their order."""
    memory = PromptMemory()
    found = [find(question, pool, count) for question in questions]
    contexts = [
        build_context(
            question, hits, tokenizer=tokenizer, window=WINDOW, reserved_output=RESERVED, memory=memory
        )
        for question, hits in zip(questions, found, strict=True)
    ]
    prompts: dict[str, list[Any]] = {"AIRI": [context.messages for context in contexts]}
    for name, order in {**PEERS, HINDSIGHT: most_asked(contexts)}.items():
        prompts[name] = []
        for question, hits, context in zip(questions, found, contexts, strict=True):
            prompt = peer_prompt(question, hits, context, order, tokenizer)
            if lines_of(prompt) != lines_of(context.messages):
                raise RuntimeError(f"{name} has other documents than AIRI for {question!r}")
            prompts[name].append(prompt)
    return {name: computed(each) for name, each in prompts.items()}


def lines_of(messages: Sequence[Any]) -> list[str]:
    """All lines of a prompt but their order, and the numbers of documents, which are of their order."""
    return sorted(re.sub(r'index="\d+"', "", messages[0]["content"]).split("\n"))


def main() -> None:
    parser = plain_parser(__doc__)
    parser.add_argument(
        "--pool", type=int, nargs="+", default=[8, 12, 16, 50], help="chunks; several are run"
    )
    parser.add_argument("--hits", type=int, default=6, help="for each question")
    parser.add_argument(
        "--shuffles", type=int, default=2, help="other orders of the questions, for the first pool"
    )
    options = parser.parse_args()
    folder = str(builtin.path())
    tokenizer = Tokenizer.load(folder)
    chunks = read_chunks(folder)
    rows: list[dict[str, Any]] = []
    for size, seed in [(each, 0) for each in options.pool] + [
        (options.pool[0], i + 1) for i in range(options.shuffles)
    ]:
        questions = list(QUESTIONS)
        if seed:
            random.Random(seed).shuffle(questions)
        pool = pool_of(chunks, size)
        found = measure(questions, pool, options.hits, tokenizer)
        shape = f"{len(questions)} questions, {options.hits} of {len(pool)} chunks each, order {seed}"
        question = "prefill of questions that share documents"
        rows += [
            {"question": question, "variant": name, "shape": shape, **each} for name, each in found.items()
        ]
        for name in ("by score", "best at both ends"):
            ours, theirs = found["AIRI"]["computed_tokens"], found[name]["computed_tokens"]
            title = f"prompt tokens computed, documents in a stable order against {name}"
            ratio = verdict(title, ours, theirs, TARGET, unit="tokens", smaller_is_better=True)
            rows.append({**ratio, "shape": shape})
    print_rows(rows, as_json=options.json)


if __name__ == "__main__":
    main()
