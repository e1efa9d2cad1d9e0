"""`airi verify`: whether an answer is what its certificates say."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["verify"]


def verify(
    response: Annotated[Path, typer.Argument(help="An answer as JSON, or a stream as it came.")],
    *,
    config: Annotated[Path, typer.Option(help="The config that it was served with.")] = Path("airi.yaml"),
    model: Annotated[str | None, typer.Option(help="Its model; left out: the one that it names.")] = None,
    tenant: Annotated[str, typer.Option(help="Whose key it was asked with.")] = "",
    request: Annotated[
        Path | None, typer.Option(help="The body that was sent, where its prompt is echoed.")
    ] = None,
) -> None:
    """Check the certificates of an answer: that the config's forbidden texts held, and that none is in it.

    The automaton is made anew from the config and follows the text. An echoed prompt may hold anything if `--request`
    has it, else it counts as answer. Calls of tools are verified by the text that they were made of, which the
    certificate has; that they are those of the text is not. Prints `verified`, or one line that says what differs;
    status 1 then. Certificates are not signed: this tells of the text, not who made it.
    """
    from airi.config import load
    from airi.config.verify import Difference, verify_answer

    try:
        count = verify_answer(response, load(config), model=model, tenant=tenant, request=request)
    except Difference as difference:
        typer.echo(str(difference))
        raise typer.Exit(1) from None
    typer.echo(f"verified: {count} certificate{'s' * (count != 1)}")
