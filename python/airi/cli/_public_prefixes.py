"""What prompts may begin with and share although tenants are isolated, from text that people write."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from airi.errors import ConfigError

__all__ = ["public_prefixes", "read_prefix"]

# What comes after a beginning may change its last token; what all of these leave is the beginning's own.
_CONTINUATIONS = ("a", " b", "\n\n1", "?")


def read_prefix(name: str, file: str) -> str:
    """The text of a file; ConfigError where there is none."""
    try:
        text = Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"{name} is {file!r}, which cannot be read: {reason}", field=name) from None
    if not text.strip():
        raise ConfigError(f"{name} is {file!r}, which is empty", field=name)
    return text


def public_prefixes(
    model_path: str, texts: Iterable[str], chat_template: str | None
) -> tuple[tuple[int, ...], ...]:
    """Token ids of texts as a model's prompts have them: as a system prompt, where it chats, and as they stand.

    Reads the model's tokenizer; raises CheckpointError or ConfigError.
    """
    from airi.engine.hub import resolve_model_path
    from airi.text import TemplateError, Tokenizer

    wanted = [text.strip() for text in texts]
    if not wanted:
        return ()
    tokenizer = Tokenizer.load(resolve_model_path(model_path), chat_template=chat_template)
    found: list[tuple[int, ...]] = []
    for text in wanted:
        found.append(_common([tokenizer.encode(text + more) for more in _CONTINUATIONS]))
        try:
            found.append(
                _common(
                    [
                        tokenizer.encode_chat(
                            [{"role": "system", "content": text}, {"role": "user", "content": more}]
                        )
                        for more in _CONTINUATIONS
                    ]
                )
            )
        except TemplateError:
            continue  # it takes no chats, or no system prompts
    return tuple(prefix for prefix in found if prefix)


def _common(prompts: Sequence[list[int]]) -> tuple[int, ...]:
    """The ids that all of them begin with."""
    length = 0
    for ids in zip(*prompts, strict=False):
        if len(set(ids)) > 1:
            break
        length += 1
    return tuple(prompts[0][:length])
