"""The models that `airi serve` is given, and what is each one's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from airi import builtin
from airi._sources import REMOTE
from airi.cli._flags import parse_by_model, parse_number, parse_size
from airi.errors import ConfigError

if TYPE_CHECKING:
    from airi.engine.options import ModelOptions

__all__ = ["ModelFlags", "named_models"]

_models = partial(typer.Option, rich_help_panel="Models")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFlags:
    """Which models, and what is each one's own."""

    models: Annotated[
        list[str] | None,
        typer.Argument(
            help="Checkpoint folders or hf://org/name[@revision], served under their base names; "
            "NAME=PATH gives another name. "
            "Left out: the small demonstration model that comes with AIRI.",
            show_default=False,
        ),
    ] = None
    served_model_name: Annotated[
        list[str] | None,
        _models(help="A further name for the model; may be repeated. With several models: MODEL=NAME."),
    ] = None
    model_weight: Annotated[
        list[str] | None,
        _models(
            help="MODEL=NUMBER: its share of device time against other models that have work, 1 unless set; may be "
            "repeated."
        ),
    ] = None
    kv_share: Annotated[
        list[str] | None,
        _models(
            help="MODEL=NUMBER: its share of --kv-memory against other models, 1 unless set; may be repeated."
        ),
    ] = None
    kv_min: Annotated[
        list[str] | None,
        _models(
            help="Part of --kv-memory that a model has whenever it needs it, such as 1GiB, or MODEL=1GiB for one of "
            "several; may be repeated. With this, --kv-max or --sleepable, memory moves between the models."
        ),
    ] = None
    kv_max: Annotated[
        list[str] | None, _models(help="Part of --kv-memory that a model has at most; otherwise as --kv-min.")
    ] = None
    sleepable: Annotated[
        list[str] | None,
        _models(
            help="A model that can be sent to sleep, which lends the memory of its weights to the others; may be "
            "repeated."
        ),
    ] = None
    public_prefix: Annotated[
        list[str] | None,
        _models(
            help="File with a system prompt, or another beginning, that API keys share in spite of "
            "--isolate-tenants; MODEL=FILE for one of several; may be repeated."
        ),
    ] = None
    chat_template: Annotated[str | None, _models(help="File that replaces the models' chat template.")] = None

    @property
    def are_given(self) -> bool:
        """Whether anything is said of models, apart from how they chat."""
        return any(getattr(self, field.name) for field in fields(self) if field.name != "chat_template")

    def options(self) -> tuple[ModelOptions, ...]:
        """The models. Raises ConfigError; CheckpointError where a public prefix needs a model's tokenizer."""
        models = named_models(self.models or [builtin.NAME], self.served_model_name or [])
        names = [model.name for model in models]
        for name in self.sleepable or ():
            if name not in names:
                raise ConfigError(
                    f"sleepable is {name!r}; give a MODEL, one of: {', '.join(names)}", field="sleepable"
                )
        own: dict[str, dict[str, Any]] = {
            name: {"sleepable": name in (self.sleepable or ())} for name in names
        }
        for field, flag, given, parse in (
            ("weight", "model_weight", self.model_weight, parse_number),
            ("kv_share", "kv_share", self.kv_share, parse_number),
            ("kv_min", "kv_min", self.kv_min, parse_size),
            ("kv_max", "kv_max", self.kv_max, parse_size),
        ):
            for name, value in parse_by_model(flag, given or (), names, parse).items():
                own[name][field] = value
        return self._with_public_prefixes(tuple(replace(model, **own[model.name]) for model in models))

    def _with_public_prefixes(self, models: tuple[ModelOptions, ...]) -> tuple[ModelOptions, ...]:
        if not self.public_prefix:
            return models
        from airi.cli._public_prefixes import public_prefixes, read_prefix

        names = [model.name for model in models]
        texts: dict[str, list[str]] = {name: [] for name in names}
        for given in self.public_prefix:
            for name, text in parse_by_model("public_prefix", [given], names, read_prefix).items():
                texts[name].append(text)
        return tuple(
            replace(model, public_prefixes=public_prefixes(model.path, texts[model.name], self.chat_template))
            for model in models
        )


def named_models(paths: Sequence[str], names: Sequence[str]) -> tuple[ModelOptions, ...]:
    """Models with their further names: NAME where there is one model, MODEL=NAME where there are several.

    A path may be NAME=PATH.
    """
    from airi.engine.options import ModelOptions

    models = [_model(given) for given in paths]
    aliases: dict[str, list[str]] = {}
    for model, given in zip(models, paths, strict=True):
        if model.name in aliases:
            path = given.removeprefix(f"{model.name}=")
            raise ConfigError(
                f"model name {model.name!r} is given twice; give one of them another: NAME={path}",
                field="models",
            )
        aliases[model.name] = []
    for given in names:
        target, separator, alias = given.rpartition("=")
        if not separator and len(models) == 1:
            target = models[0].name
        if target not in aliases or not alias:
            known = ", ".join(aliases)
            raise ConfigError(
                f"served_model_name is {given!r}; with several models give MODEL=NAME, MODEL one of: {known}",
                field="served_model_name",
            )
        if alias != target and alias not in aliases[target]:
            aliases[target].append(alias)
    return tuple(ModelOptions(path=m.path, name=m.name, aliases=tuple(aliases[m.name])) for m in models)


def _model(given: str) -> ModelOptions:
    """A model from PATH or NAME=PATH. What is a path as it stands, or can only be one, names nothing."""
    from airi.engine.options import ModelOptions

    name, separator, path = given.partition("=")
    if not (separator and name and path) or given.startswith((".", "/", *REMOTE)) or Path(given).exists():
        name, path = "", given
    return ModelOptions(path=builtin.resolve(path), name=name)
