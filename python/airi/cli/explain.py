"""`airi explain`: what became of a request and why, by the gateway that answered it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

import typer

from airi.errors import AiriError

if TYPE_CHECKING:
    from airi.observability.requests import RequestRecord

__all__ = ["explain"]

_URL: Final = "http://127.0.0.1:8000"
_TIMEOUT_S: Final = 30.0


def explain(
    request: Annotated[
        str, typer.Argument(metavar="REQUEST", help="The x-request-id of an answer, or the answer's own id.")
    ],
    *,
    url: Annotated[str, typer.Option(help="The gateway that answered it.")] = _URL,
    api_key: Annotated[str | None, typer.Option(help="An operator's key.", envvar="AIRI_API_KEY")] = None,
    json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """Tell what became of a request and why: who asked, which model and replica answered, what it cost.

    A gateway keeps its last calls in its memory, without prompts and answers. Operators may ask for them.
    """
    import msgspec

    from airi._remote import OpenAIServer
    from airi.observability.requests import RequestRecord

    server = OpenAIServer(url, api_key, timeout_s=_TIMEOUT_S)
    try:
        body = server.show("admin", "requests", request)
    finally:
        server.close()
    try:
        found = msgspec.json.decode(body, type=RequestRecord)
    except msgspec.MsgspecError:
        raise AiriError(f"{url} does not answer as this version of AIRI does") from None
    if json:
        typer.echo(body.decode())
    else:
        _table(found)


def _table(record: RequestRecord) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from airi.cli._explained import lines

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for title, text in lines(record):
        table.add_row(Text(title), Text(text))
    Console(highlight=False).print(table)
