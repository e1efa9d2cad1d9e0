"""`airi rollout`: move traffic from one release of a line to the next."""

from __future__ import annotations

import asyncio
import getpass
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from airi.errors import ConfigError

if TYPE_CHECKING:
    from airi.config import ConfigFile
    from airi.lifecycle.operators import Operator
    from airi.lifecycle.rollouts import Line
    from airi.lifecycle.status import LineStatus

T = TypeVar("T")

app = typer.Typer(invoke_without_command=True, add_completion=False, rich_markup_mode="markdown")

ConfigFlag = Annotated[
    Path, typer.Option("--config", help="The config that is served, which says steps, gates and the state.")
]
StoreFlag = Annotated[
    str | None,
    typer.Option(
        "--store",
        envvar="AIRI_STATE",
        show_envvar=True,
        help="Database of the releases; left out: what the config says.",
    ),
]
JsonFlag = Annotated[bool, typer.Option("--json", help="JSON on stdout.")]
LineArgument = Annotated[
    str, typer.Argument(metavar="LINE", help="A model with several versions, or an alias with releases.")
]
_CONFIG = Path("airi.yaml")
_SHOWN_EVENTS = 5


@app.callback()
def rollout(context: typer.Context) -> None:
    """Move traffic from one release of a line to the next, by the steps and gates of a config.

    What is said is kept in the state; gateways that run follow within seconds.
    """
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def start(
    line: LineArgument,
    *,
    candidate: Annotated[
        str | None,
        typer.Option(help="The release to try; left out: the config's, or the only other one."),
    ] = None,
    config: ConfigFlag = _CONFIG,
    store: StoreFlag = None,
    json: JsonFlag = False,
) -> None:
    """Begin a rollout."""
    from airi.config import load
    from airi.config.rollouts import plan_of

    file = load(config)
    plan = plan_of(file.config, line)
    _change(file, store, lambda who: who.start(line, plan, candidate=candidate, who=_user()), as_json=json)


@app.command()
def promote(
    line: LineArgument,
    *,
    full: Annotated[bool, typer.Option("--full", help="The candidate is stable at once.")] = False,
    config: ConfigFlag = _CONFIG,
    store: StoreFlag = None,
    json: JsonFlag = False,
) -> None:
    """Go on behind what a rollout waits for: a pause, a gate that cannot tell yet, one that has failed."""
    from airi.lifecycle.machine import Command

    said = Command.PROMOTE_FULL if full else Command.PROMOTE
    _change(_config(config, store), store, lambda who: who.say(line, said, who=_user()), as_json=json)


@app.command()
def abort(
    line: LineArgument,
    *,
    config: ConfigFlag = _CONFIG,
    store: StoreFlag = None,
    json: JsonFlag = False,
) -> None:
    """Give stable all traffic again."""
    from airi.lifecycle.machine import Command

    _change(
        _config(config, store), store, lambda who: who.say(line, Command.ABORT, who=_user()), as_json=json
    )


@app.command()
def status(
    line: Annotated[
        str | None, typer.Argument(metavar="[LINE]", help="Only this line, with what has happened.")
    ] = None,
    *,
    config: ConfigFlag = _CONFIG,
    store: StoreFlag = None,
    json: JsonFlag = False,
) -> None:
    """Show lines, the releases that they are served with, and their rollouts."""
    import msgspec

    from airi.lifecycle.status import line_status

    async def work(who: Operator) -> list[LineStatus]:
        lines = who.lines.all if line is None else [who.lines.find(line)]
        return [line_status(each, who.releases.of(each.name)) for each in lines]

    found = _with(_config(config, store), store, work)
    if json:
        typer.echo(msgspec.json.encode(found if line is None else found[0]).decode())
    elif line is None:
        _table(found)
    else:
        _details(found[0])


@app.command()
def retire(
    model: Annotated[str, typer.Argument(metavar="MODEL")],
    version: Annotated[str, typer.Argument(metavar="VERSION", help="One that no line is served with.")],
    *,
    config: ConfigFlag = _CONFIG,
    store: StoreFlag = None,
    json: JsonFlag = False,
) -> None:
    """Have a version of a model never loaded again; its record stays."""
    import msgspec

    from airi.lifecycle.status import VersionStatus, version_status

    async def work(who: Operator) -> VersionStatus:
        return version_status(await who.retire(model, version))

    found = _with(_config(config, store), store, work)
    typer.echo(msgspec.json.encode(found).decode() if json else f"{model}@{version}: {found.state}")


def _config(path: Path, store: str | None) -> ConfigFile | None:
    """The config, which may be missing where the state is said."""
    from airi.config import load

    return load(path) if path != _CONFIG or path.is_file() or store is None else None


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user without a name
        return "somebody"


def _change(
    file: ConfigFile | None,
    store: str | None,
    work: Callable[[Operator], Awaitable[Line]],
    *,
    as_json: bool,
) -> None:
    import msgspec

    from airi.lifecycle.status import line_status

    async def run(who: Operator) -> LineStatus:
        line = await work(who)
        return line_status(line, who.releases.of(line.name))

    found = _with(file, store, run)
    if as_json:
        typer.echo(msgspec.json.encode(found).decode())
    else:
        _details(found)


def _with(file: ConfigFile | None, store: str | None, work: Callable[[Operator], Awaitable[T]]) -> T:
    """Runs `work` for an operator who has just looked at the state that is said, else the config's."""
    from airi.config.bring_up import now_ms
    from airi.config.rollouts import releases_of
    from airi.lifecycle.operators import Operator
    from airi.state import open_store

    url = store or (None if file is None else file.state)
    if url is None:
        raise ConfigError("the state is not said; give --config or --store", field="store")

    async def run() -> T:
        async with await open_store(url) as opened:
            names = None if file is None else releases_of(file.config)
            operator = Operator(opened, now_ms, only=names)
            await operator.refresh()
            return await work(operator)

    return asyncio.run(run())


def _table(lines: list[LineStatus]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("LINE", "STABLE", "CANDIDATE", "WEIGHT", "ROLLOUT", "WAITS FOR"):
        table.add_column(title, no_wrap=title != "WAITS FOR", overflow="fold")
    for line in lines:
        table.add_row(
            line.line,
            line.stable,
            line.candidate or "-",
            f"{line.weight:g} %",
            _phase(line),
            line.waits_for or "-",
        )
    Console(width=240).print(table)


def _details(line: LineStatus) -> None:
    from rich.console import Console

    console = Console(width=240, highlight=False)
    console.print(f"{line.line}: stable {line.stable}", markup=False)
    if line.candidate is not None:
        console.print(f"  candidate {line.candidate}, {line.weight:g} %: {_phase(line)}", markup=False)
    if line.waits_for:
        console.print(f"  waits for {line.waits_for}", markup=False)
    for i, step in enumerate(line.steps, start=1):
        console.print(f"  {'>' if i == line.step else ' '} {i}. {step}", markup=False)
    for event in line.events[-_SHOWN_EVENTS:]:
        console.print(f"  {event.at} {event.what}", markup=False)


def _phase(line: LineStatus) -> str:
    if line.phase is None:
        return "none yet"
    return line.phase if line.step is None else f"{line.phase}, step {line.step} of {len(line.steps)}"
