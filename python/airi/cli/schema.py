"""`airi schema`: what configs, and the policies in them, may say."""

from __future__ import annotations

import json
from typing import Annotated

import typer

__all__ = ["schema"]

_ABOUT = """\
// What a config's policies may speak of. A Model is one of its models by name, a Tenant one of its tenants, a Group one
// that tenants or tokens have; max_tokens is what each of n answers may have, region the tenant's or a token's.
// Beside any policies "judge" and "classify" are permitted, "admin" and "promote" forbidden to all but
// Group::"operators".
"""


def schema(
    *,
    cedar: Annotated[
        bool, typer.Option("--cedar", help="What `policies` may speak of, as a schema of Cedar, instead.")
    ] = False,
) -> None:
    """Print the JSON Schema of configs, for editors: `airi schema > airi.schema.json`."""
    if cedar:
        from airi.policy.schema import parsed_schema

        typer.echo(_ABOUT + str(parsed_schema()).replace("__cedar::", ""), nl=False)
        return
    from airi.config.json_schema import json_schema

    typer.echo(json.dumps(json_schema(), indent=2, ensure_ascii=False))
