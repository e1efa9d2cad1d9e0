"""`airi import`: configs of others, translated."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from airi.errors import ConfigError

__all__ = ["app"]

app = typer.Typer(add_completion=False, rich_markup_mode="markdown", no_args_is_help=True)


@app.callback()
def _import() -> None:
    """Translate the config of another gateway into one of AIRI's."""


@app.command()
def litellm(
    file: Annotated[Path, typer.Argument(help="The config of a LiteLLM proxy.")],
    *,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write, which must not exist; else stdout.")
    ] = None,
) -> None:
    """Translate a LiteLLM proxy's config: models with open weights, aliases, prices, limits, budgets.

    What has no counterpart is listed on stderr, a line each. No key or password is copied.
    """
    from airi.config.litellm import translate
    from airi.config.load import read_bounded

    found = translate(read_bounded(file), str(file))
    if output is None:
        typer.echo(found.text, nl=False)
    else:
        try:
            with output.open("x") as target:
                target.write(found.text)
        except OSError as error:
            raise ConfigError(
                f"output {output} cannot be written: {error.strerror}", field="output"
            ) from None
    for line in found.lost:
        typer.echo(line, err=True)
