"""The built-in checkpoint is small, complete, and answers held-out questions as the model card says.

Thresholds hold for the stated sample, 60 examples of each skill; the model card's figures come from a larger one.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from safetensors import safe_open
from tokenizers import Tokenizer

from tools.demo_model import scoring
from tools.demo_model.eval import SEED, airi_answerer, evaluate
from tools.demo_model.generate import Reply, Skill

SAMPLES = 60


def test_the_checkpoint_is_complete_and_below_ten_megabytes(checkpoint: Path) -> None:
    names = {path.name for path in checkpoint.iterdir()}
    assert names >= {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "MODEL_CARD.md",
    }
    assert sum(path.stat().st_size for path in checkpoint.iterdir()) <= 10 * 2**20


def test_the_weights_are_bfloat16_and_two_to_four_million(checkpoint: Path) -> None:
    with safe_open(checkpoint / "model.safetensors", "pt") as weights:
        slices = [weights.get_slice(name) for name in weights.keys()]  # noqa: SIM118 - not a dict
        assert {s.get_dtype() for s in slices} == {"BF16"}
        count = 0
        for s in slices:
            size = 1
            for dim in s.get_shape():
                size *= dim
            count += size
    assert 2_000_000 <= count <= 4_000_000


def test_config_tokenizer_and_generation_config_agree(checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    generation = json.loads((checkpoint / "generation_config.json").read_text())
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert tokenizer.get_vocab_size() == config["vocab_size"]
    assert [tokenizer.id_to_token(i) for i in generation["eos_token_id"]] == ["<|im_end|>", "<|endoftext|>"]
    assert tokenizer.id_to_token(config["eos_token_id"]) == "<|im_end|>"


def test_every_digit_is_a_token_of_its_own(checkpoint: Path) -> None:
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    tokens = tokenizer.encode("It costs 1,250.75 EUR at 17:30.").tokens
    assert [t for t in tokens if any(c.isdigit() for c in t)] == list("1250751730")


def test_the_figures_of_the_model_card_reach_their_targets(checkpoint: Path) -> None:
    card = (checkpoint / "MODEL_CARD.md").read_text()

    def figure(name: str) -> float:
        found = re.search(rf"\| {name} \| ([\d.]+)% \|", card)
        assert found, f"the card has no row {name!r}"
        return float(found[1])

    assert figure("intent accuracy, clear messages") >= 95
    assert figure("extraction, figure matches exactly") >= 85


@pytest.fixture(scope="module")
def scores(checkpoint: Path) -> scoring.Scores:
    return evaluate(airi_answerer(checkpoint), SAMPLES, SEED + 1)[0]


def test_held_out_messages_get_the_right_intent(scores: scoring.Scores) -> None:
    assert scores.intent_clear >= 0.92


def test_held_out_figures_are_copied_exactly(scores: scoring.Scores) -> None:
    assert scores.extract_figure >= 0.85


def test_questions_the_text_does_not_answer_are_turned_down(scores: scoring.Scores) -> None:
    assert scores.missing >= 0.85


def test_greetings_and_refusals_come_out_whole(scores: scoring.Scores) -> None:
    assert scores.talk >= 0.75


def test_a_wrong_figure_or_intent_is_judged_wrong() -> None:
    fee = Reply(skill=Skill.EXTRACT, text="The fee for a card is 7.50 EUR.", expected="7.50 EUR")
    assert scoring.is_right(fee, "The fee for a new card is 7.50 EUR.")
    assert not scoring.is_right(fee, "The fee for a card is 7.5 EUR.")
    assert not scoring.is_right(fee, "The fee for a card? The text does not say.")
    lost = Reply(
        skill=Skill.INTENT, text="intent: card_lost (confidence 0.97)", expected="card_lost", confidence=0.97
    )
    assert scoring.is_right(lost, "intent: card_lost (confidence 0.60)")
    assert not scoring.is_right(lost, "intent: card_stolen (confidence 0.97)")
    assert not scoring.is_right(lost, "card_lost")
