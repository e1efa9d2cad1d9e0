"""Reads the files of message templates."""

from __future__ import annotations

from pathlib import Path

from .vocabulary import Split

Templates = dict[Split, tuple[str, ...]]

_MARKS = {"+": Split.TRAIN, "-": Split.HELD_OUT}


def read_templates(name: str) -> dict[str, Templates]:
    """The templates of a file beside this module, by the heading over them and by split."""
    found: dict[str, dict[Split, list[str]]] = {}
    heading = ""
    for line in (Path(__file__).parent / name).read_text(encoding="utf-8").splitlines():
        mark, _, text = line.partition(" ")
        if mark == "=":
            heading = text
            found[heading] = {split: [] for split in Split}
        elif mark in _MARKS:
            found[heading][_MARKS[mark]].append(text)
    return {key: {split: tuple(lines) for split, lines in value.items()} for key, value in found.items()}


def read_shares(heading: str) -> dict[str, float]:
    """The intents that a heading names with the share of each: {"card_lost": 1.0} for a plain name."""
    parts = (part.split() for part in heading.split(","))
    return {name: float(share[0]) if share else 1.0 for name, *share in parts}
