"""Files become chunks: readers, chunks along a text's structure, and what to add and remove of a source."""

from __future__ import annotations

from airi.retrieval.ingest.chunker import Chunk, Chunker
from airi.retrieval.ingest.counting import EmbedderTokens, TokenCounter
from airi.retrieval.ingest.documents import Block, Document, Failure
from airi.retrieval.ingest.jsonl import JsonlFields
from airi.retrieval.ingest.plans import Plan, Shelf, plan_for
from airi.retrieval.ingest.reading import SUFFIXES, read_bytes, read_file
from airi.retrieval.ingest.running import Report, ingest
from airi.retrieval.ingest.walking import Found, find_files

__all__ = [
    "SUFFIXES",
    "Block",
    "Chunk",
    "Chunker",
    "Document",
    "EmbedderTokens",
    "Failure",
    "Found",
    "JsonlFields",
    "Plan",
    "Report",
    "Shelf",
    "TokenCounter",
    "find_files",
    "ingest",
    "plan_for",
    "read_bytes",
    "read_file",
]
