"""Reading the tokenizer's files of a checkpoint folder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from airi.errors import CheckpointError

__all__ = ["SPECIAL_NAMES", "read_json", "read_templates", "read_text", "special_tokens"]

SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_TEMPLATE_FOLDERS = ("additional_chat_templates", "chat_templates")


def tokenizer_sha256(folder: str | Path) -> str:
    """SHA-256 of a checkpoint's tokenizer.json, in hexadecimal; CheckpointError where it cannot be read."""
    file = Path(folder) / "tokenizer.json"
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror}") from None


def read_text(path: Path) -> str:
    """The file as UTF-8 text; CheckpointError names a file that cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise CheckpointError(f"{path}: cannot be read: {reason}") from None


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`, {} where there is no such file."""
    if not path.is_file():
        return {}
    try:
        data = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        where = f"line {error.lineno} column {error.colno}"
        raise CheckpointError(f"{path}: broken JSON at {where}: {error.msg}") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: must hold a JSON object, found {type(data).__name__}")
    return data


def special_tokens(config: dict[str, Any]) -> dict[str, str]:
    """Named special tokens (bos_token, eos_token, ...) of a tokenizer_config.json: name -> content."""
    named = {}
    for name in SPECIAL_NAMES:
        value = config.get(name)
        if isinstance(value, dict):
            value = value.get("content")
        if isinstance(value, str) and value:
            named[name] = value
    return named


def read_templates(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    """Chat templates by name, "default" for the unnamed one; where there are files, only files count."""
    found: dict[str, str] = {}
    for name in _TEMPLATE_FOLDERS:
        found |= {path.stem: read_text(path) for path in sorted((folder / name).glob("*.jinja"))}
    single = folder / "chat_template.jinja"
    if single.is_file():
        found["default"] = read_text(single)
    for source in (config, read_json(folder / "chat_template.json")):
        value = source.get("chat_template")
        if found or not value:
            continue
        if isinstance(value, str):
            found["default"] = value
        elif isinstance(value, list):
            found = dict(_named_template(item, folder) for item in value)
    return found


def has_chat_template(folder: Path) -> bool:
    """Whether a checkpoint has any. Raises CheckpointError for files that cannot be read."""
    return bool(read_templates(folder, read_json(folder / "tokenizer_config.json")))


def _named_template(item: Any, folder: Path) -> tuple[str, str]:
    match item:
        case {"name": str(name), "template": str(template)}:
            return name, template
    raise CheckpointError(
        f"{folder}: chat_template must be a text, or a list of objects with name and template"
    )
