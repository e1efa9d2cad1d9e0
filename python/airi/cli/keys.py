"""`airi keys`: make, show and end API keys."""

from __future__ import annotations

import asyncio
import json as jsonlib
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from airi._units import moment
from airi.errors import ConfigError

if TYPE_CHECKING:
    from airi.config import ConfigFile
    from airi.policy.keys import NewKey
    from airi.state import KeyRecord, Store

T = TypeVar("T")

app = typer.Typer(invoke_without_command=True, add_completion=False, rich_markup_mode="markdown")

StoreFlag = Annotated[
    str | None,
    typer.Option(
        "--store",
        envvar="AIRI_STATE",
        show_envvar=True,
        help="Database of the keys: sqlite:///PATH or postgresql://..., the one that `airi serve --state` names; left "
        "out: what the config says, without one sqlite:///./airi.db. A relative PATH is from the working directory, "
        "one that the config says from the config's.",
    ),
]
ConfigFlag = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="Config that names the database, tenants and what their keys begin with; left out: airi.yaml of this "
        "folder, where there is one.",
    ),
]
JsonFlag = Annotated[bool, typer.Option("--json", help="One JSON object, or a list of them, on stdout.")]
KeyArgument = Annotated[
    str, typer.Argument(metavar="ID", help="Public id of the key, as `airi keys list` shows it.")
]
_WIDEST = 240
_CONFIG = Path("airi.yaml")


@app.callback()
def keys(context: typer.Context) -> None:
    """Make, show and end the API keys that `airi serve --state` accepts.

    A key is shown once, when it is made; only a digest of it is kept. It speaks for its tenant, with the
    tenant's groups, limits, weight and priority. Servers that run notice within seconds.
    """
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def create(
    tenant: Annotated[str, typer.Argument(help="Whose key it is; a new name makes a new tenant.")],
    *,
    prefix: Annotated[
        str | None,
        typer.Option(
            help="What the key begins with; left out: sk-airi, or what a config says of the tenant."
        ),
    ] = None,
    expires: Annotated[
        str | None,
        typer.Option(help="How long it is accepted, such as 90d or 12h; left out: until it is revoked."),
    ] = None,
    config: ConfigFlag = None,
    store: StoreFlag = None,
    json: JsonFlag = False,
) -> None:
    """Make a key for a tenant. The key, and nothing else, goes to stdout, this once."""
    from airi.policy.keys import create_key, seconds_of

    lifetime_s = None if expires is None else seconds_of("expires", expires)
    file = _config(config)
    begins = prefix or _prefix_of(file, tenant, must_have=config is not None or store is None)
    new = _with(file, store, lambda opened: create_key(opened, tenant, prefix=begins, lifetime_s=lifetime_s))
    _show_new(new, as_json=json)


@app.command("list")
def list_(
    *,
    tenant: Annotated[str | None, typer.Option(help="Only keys of this tenant.")] = None,
    config: ConfigFlag = None,
    store: StoreFlag = None,
    json: JsonFlag = False,
) -> None:
    """Show all keys, without what is secret about them."""
    from airi.policy.keys import described, list_keys

    records = _with(_config(config), store, lambda opened: list_keys(opened, tenant=tenant))
    now = time.time()
    if json:
        typer.echo(jsonlib.dumps([described(record, now) for record in records]))
    else:
        _table(records, now)


@app.command()
def revoke(
    key: KeyArgument, *, config: ConfigFlag = None, store: StoreFlag = None, json: JsonFlag = False
) -> None:
    """End a key for good."""
    from airi.policy.keys import described, key_id_of, revoke_key

    key_id = key_id_of(key)
    record = _with(_config(config), store, lambda opened: revoke_key(opened, key_id))
    shown = described(record, time.time())
    if json:
        typer.echo(jsonlib.dumps(shown))
    typer.echo(f"key {record.id} of {record.tenant} was revoked at {shown['revoked']}", err=True)


@app.command()
def rotate(
    key: KeyArgument,
    *,
    overlap: Annotated[
        str, typer.Option(help="How long the key itself goes on, such as 24h; 0s ends it now.")
    ] = "24h",
    expires: Annotated[
        str | None,
        typer.Option(help="How long the new key is accepted; left out: for as long as the key was."),
    ] = None,
    config: ConfigFlag = None,
    store: StoreFlag = None,
    json: JsonFlag = False,
) -> None:
    """Make a key that takes another's place. The new key, and nothing else, goes to stdout, this once."""
    from airi.policy.keys import key_id_of, rotate_key, seconds_of

    key_id, overlap_s = key_id_of(key), seconds_of("overlap", overlap)
    lifetime_s = None if expires is None else seconds_of("expires", expires)
    new = _with(
        _config(config),
        store,
        lambda opened: rotate_key(opened, key_id, overlap_s=overlap_s, lifetime_s=lifetime_s),
    )
    _show_new(new, as_json=json)


def _config(path: Path | None) -> ConfigFile | None:
    """The config that is meant, where there is one."""
    from airi.config import load

    return load(path or _CONFIG) if path is not None or _CONFIG.is_file() else None


def _prefix_of(file: ConfigFile | None, tenant: str, *, must_have: bool) -> str:
    """What the keys of a tenant begin with; ConfigError where a config that `must_have` the tenant does not."""
    from airi.policy.tenants import DEFAULT_PREFIX

    if file is None:
        return DEFAULT_PREFIX
    tenants = {entry.name: entry.auth.key_prefix for entry in file.config.tenants}
    if tenant not in tenants and must_have:
        known = f"one of: {', '.join(tenants)}" if tenants else "a tenant, once the file has some"
        raise ConfigError(
            f"tenant is {tenant!r}, which {file.path} does not have; accepted: {known}", field="tenant"
        )
    return tenants.get(tenant, DEFAULT_PREFIX)


def _with(file: ConfigFile | None, store: str | None, work: Callable[[Store], Awaitable[T]]) -> T:
    """Runs `work` over the store that is said, else the config's."""
    from airi.state import DEFAULT_URL, open_store

    url = store or (DEFAULT_URL if file is None else file.state)

    async def run() -> T:
        async with await open_store(url) as opened:
            return await work(opened)

    return asyncio.run(run())


def _show_new(new: NewKey, *, as_json: bool) -> None:
    from airi.policy.keys import described

    record = new.record
    if as_json:
        typer.echo(jsonlib.dumps({**described(record, time.time()), "key": new.text}))
        return
    until = "until it is revoked" if record.expires is None else f"until {moment(record.expires)}"
    typer.echo(f"key {record.id} of {record.tenant}, accepted {until}; it is not shown again:", err=True)
    typer.echo(new.text)


def _table(records: list[KeyRecord], now: float) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("ID", "TENANT", "PREFIX", "STATE", "CREATED", "ENDS"):
        table.add_column(title, no_wrap=True)
    for record in records:
        state = record.state(now)
        if record.replaced_by is not None:
            state += f" to {record.replaced_by}"
        ends = "-" if record.ends is None else moment(record.ends)
        table.add_row(record.id, record.tenant, record.prefix, state, moment(record.created), ends)
    # As wide as it comes out: an id that is cut to the terminal's width names nothing.
    Console(width=_WIDEST).print(table)
