"""Gateways whose model writes calls, for tests; the stub writes what a model of each form writes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from airi.text import Tokenizer

from .conftest import TEMPLATE, Gateway, StartGateway

HERMES = (
    'Let me see.\n<tool_call>\n{"name": "look", "arguments": {"city": "Köln 🙂"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "other", "arguments": {}}\n</tool_call>'
)
ANSWERS = {
    "hermes": ("<tool_call>", HERMES),
    "mistral": ("[TOOL_CALLS]", HERMES.replace("<tool_call>", "[TOOL_CALLS]").replace("</tool_call>", "")),
    "llama3_json": (
        '"parameters": dictionary',
        '{"name": "look", "parameters": {"city": "Köln 🙂"}}; {"name": "other", "parameters": {}}',
    ),
    "pythonic": ("[func_name1(", '[look(city="Köln 🙂"), other()]'),
    "json": ("", '[{"name": "look", "arguments": {"city": "Köln 🙂"}}, {"name": "other", "arguments": {}}]'),
}
"""By form: words of a template that tell of it, and an answer."""


def start_calling(
    start_gateway: StartGateway,
    model_folder: Path,
    tokenizer: Tokenizer,
    folder: Path,
    form: str = "hermes",
    **stub: Any,
) -> Gateway:
    """A gateway whose model writes calls in a form, and stops behind them."""
    words, answer = ANSWERS[form]
    answer = stub.pop("answer", answer)
    model = folder / form
    shutil.copytree(model_folder, model, dirs_exist_ok=True)
    config = {"eos_token": "<|im_end|>", "chat_template": f"{{# {words} #}}{TEMPLATE}"}
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    length = len(tokenizer.encode(answer, add_special_tokens=False))
    return start_gateway(model_path=str(model), answer=answer, **{"stop_after": length + 1, **stub})
