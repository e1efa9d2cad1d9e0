"""Measures the demonstration model on held-out templates, names and amounts, at temperature 0.

    python -m tools.demo_model.eval --samples 400

prints the figures that stand in the model card.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

from .scoring import Example, Scores, held_out_examples, is_right, score

MODEL = Path(__file__).resolve().parents[2] / "python" / "airi" / "builtin" / "airi-demo"
SEED = 20_000
MAX_TOKENS = 96

Answerer = Callable[[list[list[dict[str, str]]]], list[str]]


def transformers_answerer(path: Path, batch: int = 32) -> Answerer:
    """Answers through transformers in float32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()

    def answer(chats: list[list[dict[str, str]]]) -> list[str]:
        texts: dict[int, str] = {}
        prompts = [
            tokenizer.apply_chat_template(c, tokenize=False, add_generation_prompt=True) for c in chats
        ]
        order = sorted(
            range(len(prompts)), key=lambda i: len(prompts[i])
        )  # equal lengths together: little padding
        for start in range(0, len(order), batch):
            chosen = order[start : start + batch]
            inputs = tokenizer([prompts[i] for i in chosen], return_tensors="pt", padding=True)
            inputs.pop("token_type_ids", None)
            with torch.inference_mode():
                out = model.generate(**inputs, max_new_tokens=MAX_TOKENS, do_sample=False)
            new = tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            texts.update(zip(chosen, new, strict=True))
        return [texts[i] for i in range(len(prompts))]

    return answer


def airi_answerer(path: Path) -> Answerer:
    """Answers through airi.LLM in float32."""
    from airi import LLM, SamplingParams

    llm = LLM(str(path), dtype="float32")
    params = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS)

    def answer(chats: list[list[dict[str, str]]]) -> list[str]:
        return [output.outputs[0].text for output in llm.chat(chats, params)]

    return answer


def evaluate(answerer: Answerer, samples: int, seed: int = SEED) -> tuple[Scores, list[tuple[Example, str]]]:
    """The scores over `samples` examples of each skill, and every example with its answer."""
    examples = held_out_examples(seed, samples)
    answers = answerer([e.messages for e in examples])
    return score(examples, answers), list(zip(examples, answers, strict=True))


def report(scores: Scores, samples: int) -> str:
    """The figures as a Markdown table."""
    rows = [
        ("intent accuracy, clear messages", f"{scores.intent_clear:.1%}"),
        ("intent accuracy, ambiguous ones included (label drawn by its share)", f"{scores.intent_all:.1%}"),
        ("expected calibration error of the stated confidence", f"{scores.calibration_error:.3f}"),
        ("extraction, figure matches exactly", f"{scores.extract_figure:.1%}"),
        ("extraction, whole reply matches exactly", f"{scores.extract_whole:.1%}"),
        ("question that the text does not answer is turned down", f"{scores.missing:.1%}"),
        ("conversation, whole reply matches exactly", f"{scores.talk:.1%}"),
    ]
    lines = [f"| held out, {samples} samples of each skill, temperature 0 | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in rows]
    lines += ["", "| stated confidence (mean) | answers | right |", "|---|---|---|"]
    lines += [f"| {b.stated:.2f} | {b.count} | {b.right:.2f} |" for b in scores.bins]
    return "\n".join(lines)


def main() -> None:
    """Prints the figures, and the first failures when asked."""
    parser = argparse.ArgumentParser(description="Evaluate the demonstration model on held-out dialogues.")
    parser.add_argument(
        "--model", type=Path, default=MODEL, help="checkpoint folder (default: the built-in one)"
    )
    parser.add_argument("--engine", choices=("transformers", "airi"), default="transformers")
    parser.add_argument("--samples", type=int, default=400, help="samples of each skill (default 400)")
    parser.add_argument(
        "--seed", type=int, default=SEED, help=f"seed of the held-out dialogues (default {SEED})"
    )
    parser.add_argument(
        "--failures", type=int, default=0, help="also print so many wrong answers of each skill"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    options = parser.parse_args()
    build = airi_answerer if options.engine == "airi" else transformers_answerer
    scores, judged = evaluate(build(options.model), options.samples, options.seed)
    print(json.dumps(dataclasses.asdict(scores)) if options.json else report(scores, options.samples))
    shown: dict[str, int] = {}
    for example, answer in judged:
        skill = example.reply.skill.value
        if not is_right(example.reply, answer) and shown.setdefault(skill, 0) < options.failures:
            shown[skill] += 1
            print(
                f"\n[{skill}] {example.messages[-1]['content']}\n  expected: {example.reply.text}\n  answered: {answer}"
            )


if __name__ == "__main__":
    main()
