"""What the parts of a config say of each other: names that must be there, and must differ."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from airi._hosts import is_loopback
from airi.config.collections import wrong_collections
from airi.config.document import Document, Path
from airi.config.mistakes import Mistake, shown
from airi.config.models import EngineSettings, Model
from airi.config.releases import wrong_releases
from airi.config.routes import MOST_LABELS, Classifier
from airi.config.rules import ContentRule, ForbidRule
from airi.config.schema import Config

__all__ = ["ENGINE_WIDE", "wrong_references"]

ENGINE_WIDE = tuple(name for name in EngineSettings.model_fields if name not in ("dtype", "max_model_len"))
"""Settings that all models of an engine share."""

_OF_ENGINE = ("source", "versions", "chat_template", "engine", "resources", "slo")
"""Keys of a model that say how this server's engine runs it."""
_Report = Callable[..., None]


def wrong_references(config: Config, document: Document) -> list[Mistake]:
    """Every mistake of a config whose parts are each right by themselves."""
    mistakes: list[Mistake] = []

    def report(path: Path, accepted: str, *, value: str | None = None) -> None:
        mistakes.append(document.mistake(path, accepted, value=value))

    for check in (
        *(_names, _models, wrong_releases, _engine_wide, _server),
        *(_tenants, _policies, _content, _routes, wrong_collections),
    ):
        check(config, report)
    return mistakes


def _unique(names: Iterable[tuple[Path, str]], what: str, report: _Report) -> None:
    seen: dict[str, Path] = {}
    for path, name in names:
        if name in seen:
            report(path, f"a name that no other {what} has")
        seen.setdefault(name, path)


def _names(config: Config, report: _Report) -> None:
    def models() -> Iterator[tuple[Path, str]]:
        for i, model in enumerate(config.models):
            yield ("models", i, "name"), model.name
            for k, alias in enumerate(model.aliases):
                yield ("models", i, "aliases", k), alias
        for i, route in enumerate(config.routes):
            yield ("routes", i, "name"), route.name

    _unique(models(), "model, alias or route", report)
    _unique(
        ((("tenants", i, "name"), tenant.name) for i, tenant in enumerate(config.tenants)), "tenant", report
    )
    for side in ("input", "output", "forbid"):
        rules = enumerate(getattr(config.content, side))
        _unique(((("content", side, i, "name"), rule.name) for i, rule in rules), f"rule of {side}", report)


def _models(config: Config, report: _Report) -> None:
    if not config.models:
        report(("models",), "at least one model", value="empty")
    local = [model for model in config.models if model.upstream is None]
    templates = {model.chat_template for model in local if model.task == "chat"}
    for i, model in enumerate(config.models):
        at: Path = ("models", i)
        if model.upstream is not None:
            _upstream(at, model, report)
            continue
        if (model.source is None) == (not model.versions):
            both = "both source and versions" if model.source else "without source"
            report((*at, "source"), "source, or versions", value=both)
        memory = model.resources.kv_memory
        if memory.min is not None and memory.max is not None and memory.min > memory.max:
            report((*at, "resources", "kv_memory", "min"), "at most kv_memory.max")
        if model.task != "chat" and model.chat_template is not None:
            report((*at, "chat_template"), "a model for chat beside it")
        elif len(templates) > 1 and model.chat_template is not None:
            report((*at, "chat_template"), "the same file for all models, or none")
        parallel = config.engine.tensor_parallel_size or model.engine.tensor_parallel_size or 1
        if parallel > 1 and (memory.min or memory.max or model.resources.sleepable):
            report((*at, "resources"), "neither kv_memory nor sleepable, with tensor_parallel_size above 1")


def _upstream(at: Path, model: Model, report: _Report) -> None:
    """What only a model of the engine has is not taken for something that another server minds."""
    for name in _OF_ENGINE:
        if name in model.model_fields_set:
            report((*at, name), f"a model without {name}, as another server runs it")
    if model.task != "chat":
        report((*at, "task"), "chat, where another server runs it")


def _engine_wide(config: Config, report: _Report) -> None:
    for name in ENGINE_WIDE:
        first: tuple[str, object] | None = None
        given: list[tuple[Path, object]] = [(("engine", name), getattr(config.engine, name))]
        for i, model in enumerate(config.models):
            given.append((("models", i, "engine", name), getattr(model.engine, name)))
        for path, value in given:
            if value is None:
                continue
            if first is None:
                first = ("engine" if path[0] == "engine" else f"models[{path[1]}]", value)
            elif first[1] != value:
                report(path, f"{_as_yaml(first[1])} as in {first[0]}: models on one device share it")
    engine = config.engine
    if (engine.disk_kv_path is None) != (engine.disk_kv_memory is None):
        missing = "disk_kv_path" if engine.disk_kv_path is None else "disk_kv_memory"
        report(("engine", missing), "disk_kv_path and disk_kv_memory, or neither")
    if engine.disk_kv_memory is not None and engine.host_kv_memory is None:
        report(("engine", "host_kv_memory"), "some, as the disk is reached through host memory")


def _as_yaml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _server(config: Config, report: _Report) -> None:
    if not config.tenants and not is_loopback(config.server.host):
        accepted = "127.0.0.1, ::1 or localhost, unless tenants says who may call"
        report(("server", "host"), accepted)


def _tenants(config: Config, report: _Report) -> None:
    models = [model.name for model in config.models]
    elsewhere = {model.name for model in config.models if model.upstream is not None}
    priced = {model.name for model in config.models if model.price is not None}
    issuers: set[tuple[str, str]] = set()
    for i, tenant in enumerate(config.tenants):
        if tenant.max_priority is not None and tenant.max_priority < tenant.priority:
            report(("tenants", i, "max_priority"), f"{tenant.priority}, which is its priority, or more")
        at: Path = ("tenants", i, "limits")
        for name, limits in tenant.limits.models.items():
            if name in elsewhere and limits.max_device_seconds is not None:
                accepted = f"nothing: {name} takes no time of a device here"
                report((*at, "models", name, "max_device_seconds"), accepted)
            if name not in models:
                report(
                    (*at, "models", name), _one_of(models), value="the limit of a model that is not served"
                )
            elif limits.max_budget is not None and name not in priced:
                report(
                    (*at, "models", name, "max_budget"), f"a budget for a model with a price; {name} has none"
                )
        budgets: list[tuple[Path, float | None]] = [(at, tenant.limits.max_budget)]
        budgets += [((*at, "classes", name), of.max_budget) for name, of in tenant.limits.classes.items()]
        for path, budget in budgets:
            if budget is not None and priced != set(models):
                free = ", ".join(name for name in models if name not in priced)
                report((*path, "max_budget"), f"a budget where every model has a price; none have: {free}")
        oidc = tenant.auth.oidc
        if oidc is not None:
            if (oidc.issuer, oidc.audience) in issuers:
                report(("tenants", i, "auth", "oidc"), "an issuer and audience that no other tenant has")
            issuers.add((oidc.issuer, oidc.audience))


def _policies(config: Config, report: _Report) -> None:
    policies = config.policies
    if policies is not None and (policies.text is None) == (policies.file is None):
        given = "both text and file" if policies.text is not None else "without text"
        report(("policies",), "text or file", value=given)


def _content(config: Config, report: _Report) -> None:
    chats = _chats(config)
    known = {
        "models": [name for model in config.models for name in (model.name, *model.aliases)],
        "tenants": [tenant.name for tenant in config.tenants],
    }
    for side in ("input", "output", "forbid"):
        for i, rule in enumerate(getattr(config.content, side)):
            at: Path = ("content", side, i)
            if not rule.has_patterns:
                last = "regexes or judge" if isinstance(rule, ContentRule) else "or regexes"
                report(at, f"a rule with detectors, words, file, {last}", value="a rule without patterns")
            for field, names in known.items():
                for k, name in enumerate(getattr(rule, field)):
                    if name not in names:
                        report((*at, field, k), _one_of(names))
            if not isinstance(rule, ContentRule):
                _forbids(config, at, rule, report)
                continue
            if rule.judge is not None and rule.judge not in chats:
                report((*at, "judge"), _one_of(chats))
            if rule.judge is not None and (side, rule.action) == ("input", "redact"):
                report((*at, "action"), "block, annotate or audit: a judge says nothing of parts of a prompt")
            if rule.judge is None and rule.question is not None:
                report((*at, "question"), "a question beside the judge that is asked it")


def _forbids(config: Config, at: Path, rule: ForbidRule, report: _Report) -> None:
    """No text can be kept out of answers whose tokens another server chooses."""
    for model in config.models:
        if model.upstream is None:
            continue
        named = [k for k, name in enumerate(rule.models) if name in (model.name, *model.aliases)]
        what = f"models that this server's engine runs; another server chooses the tokens of {model.name}"
        for k in named:
            report((*at, "models", k), what)
        if not rule.models:
            report((*at, "models"), what, value="all models")


def _routes(config: Config, report: _Report) -> None:
    names = {name: model for model in config.models for name in (model.name, *model.aliases)}
    for i, route in enumerate(config.routes):
        _classifier(("routes", i, "classifier"), route.classifier, _chats(config), report)
        tasks = {names[name].task: name for _, name in route.models if name in names}
        if len(tasks) > 1:
            (first, one), (second, other), *_ = sorted(tasks.items())
            accepted = f"models of one task; {one} is for {first} and {other} for {second}"
            report(("routes", i), accepted, value=route.name)
        for path, name in route.models:
            model = names.get(name)
            if model is None:
                report(("routes", i, *path), _one_of(list(names)))
            elif route.max_cost_per_request is not None and model.price is None:
                accepted = f"a ceiling where all its models have a price; {name} has none"
                report(("routes", i, "max_cost_per_request"), accepted)


def _classifier(at: Path, classifier: Classifier | None, names: list[str], report: _Report) -> None:
    if classifier is None:
        return
    if classifier.model not in names:  # a route is none, so that none asks itself
        report((*at, "model"), _one_of(names))
    if not 2 <= len(classifier.labels) <= MOST_LABELS:
        report(
            (*at, "labels"),
            f"2 to {MOST_LABELS} labels, each with its model",
            value=str(len(classifier.labels)),
        )
    seen: set[str] = set()
    for label in classifier.labels:
        if label.casefold() in seen:
            report(
                (*at, "labels", label), "labels that differ in more than upper and lower case", value=label
            )
        seen.add(label.casefold())


def _chats(config: Config) -> list[str]:
    """Names and aliases of models that can be asked in words."""
    return [name for model in config.models if model.task == "chat" for name in (model.name, *model.aliases)]


def _one_of(names: list[str]) -> str:
    return f"one of: {', '.join(shown(name, quoted=False) for name in names[:20])}" if names else "none"
