"""`airi keys`: make, show and end API keys."""

from __future__ import annotations

import asyncio
import json as jsonlib
import re
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from airi.errors import ConfigError

if TYPE_CHECKING:
    from airi.policy.keys import NewKey
    from airi.state import KeyRecord, Store

T = TypeVar("T")

app = typer.Typer(invoke_without_command=True, add_completion=False, rich_markup_mode="markdown")

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}

StoreFlag = Annotated[
    str,
    typer.Option(
        "--store",
        envvar="AIRI_STATE",
        show_envvar=True,
        help="Database of the keys: sqlite:///PATH or postgresql://..., the one that `airi serve --state` names; or a "
        "config, such as airi.yaml, which names it.",
    ),
]
JsonFlag = Annotated[bool, typer.Option("--json", help="One JSON object, or a list of them, on stdout.")]
KeyArgument = Annotated[
    str, typer.Argument(metavar="ID", help="Public id of the key, as `airi keys list` shows it.")
]
_WIDEST = 240
_DEFAULT_STORE = "sqlite:///./airi.db"


@app.callback()
def keys(context: typer.Context) -> None:
    """Make, show and end the API keys that `airi serve --state` accepts.

    A key is shown once, when it is made; only a digest of it is kept. Servers that run notice within
    seconds.
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
    store: StoreFlag = _DEFAULT_STORE,
    json: JsonFlag = False,
) -> None:
    """Make a key for a tenant. The key, and nothing else, goes to stdout, this once."""
    from airi.policy.keys import create_key

    lifetime_s = None if expires is None else _seconds("expires", expires)
    begins = prefix or _prefix_of(store, tenant)
    new = _with(store, lambda opened: create_key(opened, tenant, prefix=begins, lifetime_s=lifetime_s))
    _show_new(new, as_json=json)


@app.command("list")
def list_(
    *,
    tenant: Annotated[str | None, typer.Option(help="Only keys of this tenant.")] = None,
    store: StoreFlag = _DEFAULT_STORE,
    json: JsonFlag = False,
) -> None:
    """Show all keys, without what is secret about them."""
    from airi.policy.keys import list_keys

    records = _with(store, lambda opened: list_keys(opened, tenant=tenant))
    now = time.time()
    if json:
        typer.echo(jsonlib.dumps([_described(record, now) for record in records]))
    else:
        _table(records, now)


@app.command()
def revoke(key: KeyArgument, *, store: StoreFlag = _DEFAULT_STORE, json: JsonFlag = False) -> None:
    """End a key for good."""
    from airi.policy.keys import key_id_of, revoke_key

    key_id = key_id_of(key)
    record = _with(store, lambda opened: revoke_key(opened, key_id))
    if json:
        typer.echo(jsonlib.dumps(_described(record, time.time())))
    typer.echo(f"key {record.id} of {record.tenant} was revoked at {_moment(record.revoked)}", err=True)


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
    store: StoreFlag = _DEFAULT_STORE,
    json: JsonFlag = False,
) -> None:
    """Make a key that takes another's place. The new key, and nothing else, goes to stdout, this once."""
    from airi.policy.keys import key_id_of, rotate_key

    key_id, overlap_s = key_id_of(key), _seconds("overlap", overlap)
    lifetime_s = None if expires is None else _seconds("expires", expires)
    new = _with(store, lambda opened: rotate_key(opened, key_id, overlap_s=overlap_s, lifetime_s=lifetime_s))
    _show_new(new, as_json=json)


def _is_config(store: str) -> bool:
    return store.lower().endswith((".yaml", ".yml")) and "://" not in store


def _prefix_of(store: str, tenant: str) -> str:
    """What the keys of a tenant begin with; ConfigError where a config does not have the tenant."""
    from airi.policy.tenants import DEFAULT_PREFIX

    if not _is_config(store):
        return DEFAULT_PREFIX
    from airi.config import load

    tenants = {entry.name: entry.auth.key_prefix for entry in load(store).config.tenants}
    if tenant not in tenants:
        known = f"one of: {', '.join(tenants)}" if tenants else "a tenant, once the file has some"
        raise ConfigError(
            f"tenant is {tenant!r}, which {store} does not have; accepted: {known}", field="tenant"
        )
    return tenants[tenant]


def _url_of(store: str) -> str:
    """The database that is meant."""
    if not _is_config(store):
        return store
    from airi.config import load

    return load(store).config.server.state


def _with(url: str, work: Callable[[Store], Awaitable[T]]) -> T:
    """Runs `work` over the store."""
    from airi.state import open_store

    async def run() -> T:
        async with await open_store(_url_of(url)) as store:
            return await work(store)

    return asyncio.run(run())


def _seconds(name: str, text: str) -> int:
    """A duration such as 90d, in seconds."""
    match = re.fullmatch(r"(\d{1,9})([smhdw])", text.strip())
    if match is None:
        raise ConfigError(
            f"{name} is {text!r}; give a whole number and a unit, one of {', '.join(_UNITS)}, such as 90d",
            field=name,
        )
    return int(match[1]) * _UNITS[match[2]]


def _show_new(new: NewKey, *, as_json: bool) -> None:
    record = new.record
    if as_json:
        typer.echo(jsonlib.dumps({**_described(record, time.time()), "key": new.text}))
        return
    until = "until it is revoked" if record.expires is None else f"until {_moment(record.expires)}"
    typer.echo(f"key {record.id} of {record.tenant}, accepted {until}; it is not shown again:", err=True)
    typer.echo(new.text)


def _described(record: KeyRecord, now: float) -> dict[str, Any]:
    times = {
        name: None if at is None else _moment(at)
        for name in ("created", "expires", "revoked", "retires")
        for at in [getattr(record, name)]
    }
    return {
        "id": record.id,
        "tenant": record.tenant,
        "prefix": record.prefix,
        "state": record.state(now),
        **times,
        "replaced_by": record.replaced_by,
    }


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
        ends = "-" if record.ends is None else _moment(record.ends)
        table.add_row(record.id, record.tenant, record.prefix, state, _moment(record.created), ends)
    # As wide as it comes out: an id that is cut to the terminal's width names nothing.
    Console(width=_WIDEST).print(table)


def _moment(at: int | None) -> str:
    return "" if at is None else datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
