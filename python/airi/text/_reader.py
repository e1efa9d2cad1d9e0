"""Texts as the inputs of models that read them whole: one text or a pair, with the special tokens around it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, Final

from tokenizers import Tokenizer as RustTokenizer

from airi.errors import CheckpointError
from airi.text._tokenizer import SHORT, Tokenizer, without_surrogates

__all__ = ["TextReader"]

_SAMPLES: Final = ("a", "0", ".", "的")


class TextReader:
    """Tokenises texts for encoders, with the special tokens that tokenizer.json puts around one text and around two.

    What a text says is never read as a special token: names of such tokens are tokenised as any other words, and where
    a vocabulary has no other pieces for them they are unknown.

    Thread safety: all methods may be called from several threads.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Raises CheckpointError where tokenizer.json puts a text elsewhere than between special tokens."""
        self._backend: RustTokenizer = RustTokenizer.from_str(tokenizer.to_json())
        self._backend.encode_special_tokens = True
        unknown = _unknown(self._backend)
        self._instead = [] if unknown is None else [unknown]
        self._around_one = self._around(None)
        self._around_two = self._around("pair")
        written = {token for part in (*self._around_one, *self._around_two) for token in part}
        self._special = (written | tokenizer.special_ids) - {unknown}

    def contents(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without any around it; empty for a text in which nothing is to read."""
        try:
            found = self._contents(texts)
        except (TypeError, UnicodeEncodeError):
            found = self._contents([without_surrogates(text) for text in texts])
        return [ids if self._special.isdisjoint(ids) else self._unnamed(ids) for ids in found]

    def least(self, *, is_pair: bool) -> int:
        """Special tokens around a text, or a pair."""
        return sum(map(len, self._around_two if is_pair else self._around_one))

    def whole(self, content: Sequence[int], *, most: int | None = None) -> list[int]:
        """A text's tokens with those around it; cut at its end to `most` in all, of which `least` stay."""
        before, after = self._around_one
        if most is not None:
            content = content[: max(0, most - self.least(is_pair=False))]
        return [*before, *content, *after]

    def pair(self, first: Sequence[int], second: Sequence[int], *, most: int | None = None) -> list[int]:
        """As `whole`, of two texts. The longer is cut first, as `transformers` does by `longest_first`."""
        before, between, after = self._around_two
        if most is not None:
            room = max(0, most - self.least(is_pair=True))
            kept = _longest_first(len(first), len(second), room)
            first, second = first[: kept[0]], second[: kept[1]]
        return [*before, *first, *between, *second, *after]

    def cut(self, tokens: Sequence[int], most: int) -> list[int]:
        """Tokens that have those around them already, cut to `most`; what closes them stays."""
        after = self._around_one[-1]
        closing = after if after and list(tokens[-len(after) :]) == after else []
        if len(tokens) <= most:
            return list(tokens)
        return [*tokens[: max(0, most - len(closing))], *closing]

    def _contents(self, texts: Sequence[str]) -> list[list[int]]:
        if sum(map(len, texts)) <= SHORT:
            encodings = [self._backend.encode(text, add_special_tokens=False) for text in texts]
        else:
            encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def _unnamed(self, ids: Iterable[int]) -> list[int]:
        """Without special tokens that a vocabulary's own pieces have spelled."""
        return [token for each in ids for token in (self._instead if each in self._special else [each])]

    def _around(self, pair: str | None) -> list[list[int]]:
        """What stands before, between and behind the texts, by tokenising a sample."""
        wanted = [0] if pair is None else [0, 1]
        for sample in _SAMPLES:
            encoding = self._backend.encode(sample, None if pair is None else sample)
            marks, texts = encoding.special_tokens_mask, encoding.sequence_ids
            parts, seen = [[]], []  # type: tuple[list[list[int]], list[int | None]]
            last: int | None = -1  # no text: None is one that the processor has said again
            for token, mark, text in zip(encoding.ids, marks, texts, strict=True):
                if mark:
                    parts[-1].append(token)
                elif text != last:
                    seen.append(text)
                    parts.append([])
                last = -1 if mark else text
            if seen == wanted:
                return parts
            if seen:
                break
        raise CheckpointError("tokenizer.json: its post_processor has not each text once, in order")


def _longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """How much of two texts stays: as much of both, or all of the shorter."""
    if first + second <= room:
        return first, second
    half = room // 2
    if first <= second:
        kept = min(first, half)
        return kept, min(second, room - kept)
    kept = min(second, half)
    return min(first, room - kept), kept


def _unknown(backend: RustTokenizer) -> int | None:
    """The token for what the vocabulary has no pieces for."""
    model: dict[str, Any] = json.loads(backend.to_str())["model"]
    found = model.get("unk_id")
    if found is None and isinstance(model.get("unk_token"), str):
        found = backend.token_to_id(model["unk_token"])
    return found if isinstance(found, int) else None
