"""What xgrammar says of documents, with its defaults but for `strict_mode`, which closes objects a schema leaves open.

Takes a file of JSON: cases, each a schema and documents with whether they are valid. A document is written as it came
and with keys in the order in which the schema has them; either being accepted is an acceptance.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import xgrammar


def in_order(value: Any, words: str) -> Any:
    """The same with keys as the schema's text has them."""
    if isinstance(value, list):
        return [in_order(item, words) for item in value]
    if not isinstance(value, dict):
        return value

    def place(key: str) -> int:
        at = words.find(json.dumps(key, ensure_ascii=False) + ":")
        return at if at >= 0 else len(words)

    return {key: in_order(value[key], words) for key in sorted(value, key=place)}


def writings(document: Any, schema: Any) -> Iterator[str]:
    """Texts of a document."""
    yield json.dumps(document, ensure_ascii=False)
    yield json.dumps(in_order(document, json.dumps(schema, ensure_ascii=False)), ensure_ascii=False)


def accepts(compiled: Any, text: str) -> bool:
    """Whether the grammar takes a text, to its end."""
    matcher = xgrammar.GrammarMatcher(compiled, terminate_without_stop_token=True)
    return bool(matcher.accept_string(text)) and bool(matcher.is_terminated())


def main() -> None:
    cases: list[dict[str, Any]] = json.loads(Path(sys.argv[1]).read_text())
    vocabulary = [bytes([byte]) for byte in range(256)] + [b"</s>"]
    tokens = xgrammar.TokenizerInfo(vocabulary, stop_token_ids=[256])
    compiler = xgrammar.GrammarCompiler(tokens, max_threads=1, cache_enabled=False)
    found = dict.fromkeys(("schemas", "taken", "valid", "valid_accepted", "invalid", "invalid_rejected"), 0)
    for case in cases:
        found["schemas"] += 1
        try:
            compiled = compiler.compile_json_schema(json.dumps(case["schema"]), strict_mode=False)
        except Exception:  # whatever it raises, the schema is refused
            continue
        found["taken"] += 1
        for valid, document in case["tests"]:
            accepted = any(accepts(compiled, text) for text in writings(document, case["schema"]))
            kind, right = ("valid", "valid_accepted") if valid else ("invalid", "invalid_rejected")
            found[kind] += 1
            found[right] += accepted == valid
    print(json.dumps(found | {"version": metadata.version("xgrammar")}))


if __name__ == "__main__":
    main()
