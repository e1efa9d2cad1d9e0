"""`airi search`: what a collection has for a question."""

from __future__ import annotations

from contextlib import closing
from typing import Annotated, Any, Literal

import typer

from airi.cli._collections import CONFIG, CollectionArgument, ConfigFlag, KeyFlag, UrlFlag
from airi.errors import AiriError, RequestError

__all__ = ["search"]

_SHOWN = 300


def search(
    collection: CollectionArgument,
    query: Annotated[str, typer.Argument(metavar="QUERY", help="A question, or words.")],
    *,
    config: ConfigFlag = CONFIG,
    url: UrlFlag = None,
    api_key: KeyFlag = None,
    mode: Annotated[
        Literal["vector", "text", "hybrid"], typer.Option(help="By meaning, by words, or by both.")
    ] = "hybrid",
    k: Annotated[int, typer.Option("-k", help="Rows at most.")] = 5,
    filter: Annotated[str | None, typer.Option(help='Of metadata: \'{"lang": "de"}\'.')] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object for each row.")] = False,
) -> None:
    """Show the rows of a served collection that fit a question best."""
    from airi._remote import OpenAIServer
    from airi.cli._collections import server_of
    from airi.config import load

    asked = {"collection": collection, "query": query, "mode": mode, "top_k": k, "filter": _filter(filter)}
    # With a URL nothing else is asked of the config, which may be on another machine.
    server = server_of(load(config), None, api_key) if url is None else OpenAIServer(url, api_key)
    with closing(server):
        try:
            rows = list(server.ask("POST", "/retrieve", asked)["data"])
            lines = [_line(row, as_json=json, number=number) for number, row in enumerate(rows, 1)]
        except (LookupError, TypeError):
            raise AiriError(f"{server.url} does not answer as AIRI does") from None
    for line in lines:
        typer.echo(line)


def _filter(written: str | None) -> dict[str, Any] | None:
    import msgspec

    if written is None:
        return None
    try:
        return msgspec.json.decode(written, type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise RequestError(f"filter is no JSON object: {error}", field="filter") from None


def _line(row: dict[str, Any], *, as_json: bool, number: int) -> str:
    import msgspec

    if as_json:
        fields = {name: row[name] for name in ("id", "score", "source", "time", "text", "metadata")}
        return msgspec.json.encode(fields).decode()
    text = " ".join(row["text"].split())
    shown = f"   {text[:_SHOWN]}{'…' if len(text) > _SHOWN else ''}"
    return f"{number}. {row['source'] or row['id']} ({row['score']:.3f})\n{shown}"
