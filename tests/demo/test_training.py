"""The training script runs, learns, resumes where it stopped and writes a checkpoint others can load."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from tools.demo_model import induction, packing
from tools.demo_model.chat_format import END, SPECIAL_TOKENS, pieces, save_tokenizer, train_tokenizer
from tools.demo_model.generate import Generator
from tools.demo_model.model import Decoder, ModelConfig
from tools.demo_model.packing import batches
from tools.demo_model.train import Phase, Training, TrainingOptions
from tools.demo_model.vocabulary import Split

SMALL = ModelConfig(
    vocab_size=512, hidden_size=64, intermediate_size=96, num_layers=2, num_heads=2, num_kv_heads=1
)
OPTIONS = TrainingOptions(
    steps=4,
    tokens_per_step=512,
    phases=(
        Phase(start=0, read_back=0.0, repeat_every=0),
        Phase(start=1, read_back=0.5, repeat_every=2),
    ),
    warmup=1,
    decay=1,
    workers=1,
    compile=False,
)


@pytest.fixture(autouse=True)
def _few_dialogues(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are packed from chunks of dialogues; no test reads a whole chunk of the size that training takes."""
    monkeypatch.setattr(packing, "DIALOGUES_PER_CHUNK", 300)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(SMALL.vocab_size, 300, seed=1)


def test_two_training_steps_lower_the_loss_of_a_batch(tokenizer: Tokenizer) -> None:
    training = Training(OPTIONS, SMALL, tokenizer)
    batch = next(batches(OPTIONS.seed, tokenizer, OPTIONS.tokens_per_step))
    with torch.no_grad():
        before = float(training.loss(batch))
    training.run(2)
    assert training.step == 2
    with torch.no_grad():
        assert float(training.loss(batch)) < before


def test_a_resumed_run_reaches_the_weights_of_an_uninterrupted_one(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    whole = Training(OPTIONS, SMALL, tokenizer)
    whole.run(4)
    first = Training(OPTIONS, SMALL, tokenizer)
    first.run(2)
    first.save_state(tmp_path / "state.pt")
    second = Training(OPTIONS, SMALL, tokenizer)
    second.load_state(tmp_path / "state.pt")
    second.run(4)
    for name, weight in whole.model.state_dict().items():
        torch.testing.assert_close(second.model.state_dict()[name], weight, rtol=0, atol=0)


def test_a_batch_asks_for_whole_replies_and_nothing_else(tokenizer: Tokenizer) -> None:
    first_chunk = islice(Generator(1_000_003, Split.TRAIN).dialogues(), packing.DIALOGUES_PER_CHUNK)
    replies = {text.removesuffix(END) for d in first_chunk for text, ours in pieces(d) if ours}
    for batch in islice(batches(1, tokenizer, 512), 20):
        text = tokenizer.decode(batch.targets.tolist(), skip_special_tokens=False)
        assert text.endswith(END)
        assert set(text.removesuffix(END).split(END)) <= replies


def test_each_prediction_sits_on_the_token_before_its_target(tokenizer: Tokenizer) -> None:
    for batch in islice(batches(1, tokenizer, 512), 20):
        inside = (batch.picked + 1) % batch.tokens.shape[
            1
        ] != 0  # the target of a row's last token lies outside
        assert torch.equal(batch.tokens.flatten()[batch.picked[inside] + 1], batch.targets[inside])


def test_every_asked_token_of_a_repeat_follows_the_same_token_as_before(tokenizer: Tokenizer) -> None:
    for batch in islice(batches(1, tokenizer, 512, repeat_every=1), 20):
        assert int(batch.tokens[batch.segments >= 0].min()) >= len(SPECIAL_TOKENS)
        tokens, segments = batch.tokens.flatten().tolist(), batch.segments.flatten().tolist()
        for place, target in zip(batch.picked.tolist(), batch.targets.tolist(), strict=True):
            start = segments.index(segments[place], place // 256 * 256)
            followers = [
                tokens[i + 1] for i in range(start, place) if tokens[i] == tokens[place] and i + 1 <= place
            ]
            assert target in followers


def test_every_third_batch_repeats_and_the_others_are_the_dialogues_in_order(tokenizer: Tokenizer) -> None:
    plain = batches(1, tokenizer, 512)
    mixed = list(islice(batches(1, tokenizer, 512, repeat_every=3), 6))
    for number, batch in enumerate(mixed):
        if number % 3 != 2:
            assert torch.equal(batch.tokens, next(plain).tokens)
    skipped = list(islice(batches(1, tokenizer, 512, repeat_every=3, skip=4), 2))
    for got, want in zip(skipped, mixed[4:], strict=True):
        assert torch.equal(got.tokens, want.tokens)


def test_the_start_weights_predict_what_followed_a_token_before() -> None:
    torch.manual_seed(1)
    config = ModelConfig()
    model = Decoder(config)
    body = torch.randint(3, config.vocab_size, (1, 24))
    tokens = torch.cat((body, body), dim=1)
    places = torch.arange(48)[None]

    def rank_of_the_follower() -> float:
        """The mean share of the vocabulary that scores above the token to come, over the second half."""
        with torch.no_grad():
            scores = model.logits(model(tokens, places, torch.zeros_like(tokens)))[24:47]
        right = scores.gather(1, tokens[0, 25:, None])
        return float((scores > right).float().mean())

    assert rank_of_the_follower() > 0.3
    induction.lay_out(model)
    assert rank_of_the_follower() < 0.15


def test_dialogues_in_one_row_do_not_see_each_other(tokenizer: Tokenizer) -> None:
    torch.manual_seed(0)
    model = Decoder(SMALL)
    alone = torch.randint(3, 500, (1, 10))
    other = torch.randint(3, 500, (1, 14))
    packed = torch.cat((other, alone), dim=1)
    places = torch.cat((torch.arange(14), torch.arange(10)))[None]
    parts = torch.cat((torch.zeros(14), torch.ones(10))).long()[None]
    with torch.no_grad():
        want = model(alone, torch.arange(10)[None], torch.zeros(1, 10, dtype=torch.int64))
        got = model(packed, places, parts)[14:]
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_transformers_computes_the_same_logits_from_the_saved_folder(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = Decoder(SMALL)
    model.save(tmp_path)
    save_tokenizer(tokenizer, tmp_path, SMALL.max_position_embeddings)
    weights = load_file(tmp_path / "model.safetensors")
    assert {w.dtype for w in weights.values()} == {torch.bfloat16}
    model.load_state_dict({k.removeprefix("model."): v.float() for k, v in weights.items()})
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    ids = torch.randint(3, 500, (2, 33))
    with torch.no_grad():
        ours = model.logits(model(ids, torch.arange(33).expand(2, 33), torch.zeros_like(ids))).view(2, 33, -1)
        torch.testing.assert_close(ours, theirs(ids).logits, rtol=1e-4, atol=1e-4)
    assert json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"] == [2, 0]


def test_the_chat_template_renders_what_training_saw(tokenizer: Tokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    save_tokenizer(tokenizer, tmp_path, SMALL.max_position_embeddings)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for dialogue in islice(Generator(2, Split.TRAIN).dialogues(), 50):
        text = "".join(piece for piece, _ in pieces(dialogue)) + "\n"
        rendered = theirs.apply_chat_template(dialogue.messages(), tokenize=False)
        assert rendered == text
        ids = [i for piece, _ in pieces(dialogue) for i in tokenizer.encode(piece).ids]
        assert theirs(rendered)["input_ids"] == [*ids, *tokenizer.encode("\n").ids]
        prompt = theirs.apply_chat_template(
            dialogue.messages()[:-1], tokenize=False, add_generation_prompt=True
        )
        assert text.startswith(prompt)
