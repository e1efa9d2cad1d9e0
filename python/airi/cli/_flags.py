"""Flags in groups, and how their texts are read."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints

import typer

from airi import _units as units
from airi.errors import ConfigError

if TYPE_CHECKING:
    from airi.engine.targets import TargetMs

_UNSAID = ("DEFAULT", "DEFAULT_MAP")

__all__ = [
    "given_names",
    "parse_by_model",
    "parse_number",
    "parse_size",
    "parse_target",
    "said_names",
    "takes_groups",
]

_Value = TypeVar("_Value")


def takes_groups(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose flags are the fields of the dataclasses that `command` takes, in their order.

    A parameter that is a `typer.Context` is given that.
    """
    groups = get_type_hints(command, include_extras=True)
    del groups["return"]
    contexts = [name for name, group in groups.items() if group is typer.Context]
    for name in contexts:
        del groups[name]
    flags: dict[str, inspect.Parameter] = {}
    for group in groups.values():
        if not is_dataclass(group):
            raise TypeError(f"{command.__name__} takes {group}, which is no dataclass")
        hints = get_type_hints(group, include_extras=True)
        for field in fields(group):
            if field.name in flags or field.default is MISSING:
                raise TypeError(f"flag {field.name} of {command.__name__} is given twice, or has no default")
            flags[field.name] = inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=field.default,
                annotation=hints[field.name],
            )

    def run(**given: Any) -> None:
        command(
            **{name: given[name] for name in contexts},
            **{
                name: group(**{field.name: given[field.name] for field in fields(group)})
                for name, group in groups.items()
            },
        )

    run.__name__, run.__doc__ = command.__name__, command.__doc__
    context = inspect.Parameter.KEYWORD_ONLY
    flags |= {name: inspect.Parameter(name, context, annotation=typer.Context) for name in contexts}
    run.__annotations__ = {name: flag.annotation for name, flag in flags.items()}
    run.__signature__ = inspect.Signature(list(flags.values()))  # type: ignore[attr-defined]
    return run


def said_names(context: typer.Context, *, unless_exported: tuple[str, ...] = ()) -> list[str]:
    """Names of all flags that were given, on the command line or by the environment, whatever they say.

    `unless_exported`: flags that only the command line can give, as their variables are others' here.
    """
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return [
        name
        for name, source in sources.items()
        if source is not None
        and source.name not in _UNSAID
        and not (source.name == "ENVIRONMENT" and name in unless_exported)
    ]


def given_names(group: Any) -> list[str]:
    """Names of a group's flags that say something else than their defaults."""
    return [field.name for field in fields(group) if getattr(group, field.name) != field.default]


def parse_size(name: str, text: str) -> int:
    """Bytes of a size such as 8GiB, 500MB or 4096; ConfigError names what is accepted."""
    size = units.parse_size(text)
    if size is None:
        raise ConfigError(f"{name} is {text!r}; give bytes or a size such as 8GiB or 500MB", field=name)
    return size


def parse_number(name: str, text: str) -> float:
    """A number; ConfigError for anything else."""
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"{name} is {text!r}; give a number", field=name) from None


def parse_target(name: str, given: Sequence[str]) -> TargetMs:
    """A target from MS, which is for every priority that has none of its own, and PRIORITY=MS."""
    from airi.sampling_params import MAX_PRIORITY

    everyone: float | None = None
    own: dict[int, float] = {}
    for text in given:
        priority, separator, millis = text.rpartition("=")
        try:
            if separator:
                own[int(priority)] = float(millis)
            else:
                everyone = float(millis)
        except ValueError:
            raise ConfigError(
                f"{name} is {text!r}; give milliseconds, or PRIORITY=MS such as -4=5000", field=name
            ) from None
    if everyone is None or not own:
        return tuple(own.items()) or everyone
    rest = dict.fromkeys(range(-MAX_PRIORITY, MAX_PRIORITY + 1), everyone)
    return tuple((rest | own).items())


def parse_by_model(
    name: str, given: Sequence[str], models: Sequence[str], parse: Callable[[str, str], _Value]
) -> Mapping[str, _Value]:
    """What models get of a flag that is VALUE, for all that have none of their own, or MODEL=VALUE."""
    everyone: dict[str, _Value] = {}
    own: dict[str, _Value] = {}
    for text in given:
        model, separator, value = text.partition("=")
        if separator and "/" not in model and "." not in model and model not in models:
            raise ConfigError(
                f"{name} is {text!r}; give a value, or MODEL=VALUE, MODEL one of: {', '.join(models)}",
                field=name,
            )
        if model in models and separator:
            own[model] = parse(name, value)
        else:
            everyone = dict.fromkeys(models, parse(name, text))
    return everyone | own
