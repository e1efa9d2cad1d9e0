"""A LiteLLM proxy's config, translated into one of AIRI's, with a line for everything that has no counterpart.

Of LiteLLM only the file is read. Its models are mostly APIs of others, while AIRI runs models itself: what has
open weights, and is named as on Hugging Face's hub, is translated.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from airi._units import parse_duration
from airi.config.document import Document, Node, Path, parse_document
from airi.config.litellm_rules import content_rules
from airi.config.mistakes import Mistake
from airi.config.variables import escape

__all__ = ["Translation", "translate"]

TENANT = "default"
"""What callers become: LiteLLM keeps its teams and keys elsewhere."""
_OPERATOR = "platform"
"""Who administers, as the master key did: no caller does."""

_OWN_SERVERS = ("hosted_vllm", "vllm", "huggingface", "openai", "custom_openai", "text-completion-openai")
"""Providers that stand for servers of open models, whose names are those of the hub."""
_HOSTS_OF_OPEN_MODELS = (
    "together_ai",
    "deepinfra",
    "anyscale",
    "nebius",
    "novita",
    "hyperbolic",
    "featherless_ai",
)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]{0,127}")
_PART = r"[A-Za-z0-9][\w.-]*"
_REPOSITORY = re.compile(rf"{_PART}/{_PART}", re.ASCII)
_VARIABLE = re.compile(r"os\.environ/([A-Za-z_][A-Za-z0-9_]*)")
_MODES = (None, "chat", "completion")
_NO_COUNTERPART = "has no counterpart"


@dataclass(frozen=True, slots=True)
class Translation:
    """A config, and what of the original is not in it."""

    text: str
    """YAML that `airi check` accepts."""
    lost: tuple[str, ...]
    """`FILE:LINE: key is not translated: why`, or `is translated inexactly: how`, by line. Never a value."""


def translate(text: str | bytes, name: str) -> Translation:
    """Translates a LiteLLM config; raises ConfigFileError for what is no YAML mapping."""
    work = _Translator(parse_document(text, name))
    config = work.translate()
    dumped = yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=110)
    lost = sorted(work.lost, key=lambda mistake: (mistake.line, len(mistake.path)))
    return Translation(dumped, tuple(map(str, lost)))


@dataclass(slots=True)
class _Translator:
    """Takes one key after another; what nobody took in the end is lost."""

    document: Document
    lost: list[Mistake] = field(default_factory=list)
    _taken: set[Path] = field(default_factory=set)
    _models: dict[str, dict[str, Any]] = field(default_factory=dict)
    _limits: dict[str, Any] = field(default_factory=dict)
    _asks_for_keys: bool = False

    def translate(self) -> dict[str, Any]:
        """The config as plain values."""
        for i in range(len(self._items("model_list"))):
            self._take_model(("model_list", i))
        if not self._models:
            self.lose(("model_list",), "no model of it can be translated; airi-demo stands in")
            self._taken.discard(("model_list",))
            self._models["airi-demo"] = {"name": "airi-demo", "source": "airi-demo"}
        self._take_aliases()
        server = self._server()
        self._take_limits()
        content = content_rules(self)
        self._take_prometheus()
        config: dict[str, Any] = {"version": 1}
        if server:
            config["server"] = server
        config["models"] = list(self._models.values())
        if self._asks_for_keys or self._limits:
            config["tenants"] = [self._tenant(), {"name": _OPERATOR, "groups": ["operators"]}]
        if content:
            config["content"] = content
        above = {path[:length] for path in self._taken for length in range(len(path))}
        self._lose_the_rest((), self.document.root, above)
        return config

    # -- reading -------------------------------------------------------------------------------

    def take(self, *path: str | int) -> Any:
        """The value at a path, which counts as translated; None where there is none."""
        node = self.document.find(path)
        if node is None:
            return None
        self._taken.add(path)
        return node.plain()

    def lose(self, path: Path, why: str) -> None:
        """Says why something is not translated, once for all that is below it."""
        self._taken.add(path)
        self.lost.append(
            Mistake(self.document.name, self.document.line(path), path, f"is not translated: {why}")
        )

    def bend(self, path: Path, how: str) -> None:
        """Says how something that is translated means another thing here."""
        self.lost.append(
            Mistake(self.document.name, self.document.line(path), path, f"is translated inexactly: {how}")
        )

    def _items(self, *path: str | int) -> list[Node]:
        node = self.document.find(path)
        return [] if node is None or node.items is None else node.items

    def _lose_the_rest(self, path: Path, node: Node, above: set[Path]) -> None:
        if path in self._taken or node.is_null:
            return
        if path not in above:
            self.lose(path, _NO_COUNTERPART)
        else:
            for key, child in node.children():
                self._lose_the_rest((*path, key), child, above)

    # -- models --------------------------------------------------------------------------------

    def _take_model(self, path: Path) -> None:
        name = self.take(*path, "model_name")
        at = (*path, "litellm_params")
        model = self.take(*at, "model")
        mode = self.take(*path, "model_info", "mode")
        source = _source(model) if isinstance(model, str) else None
        why = None
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            why = "its name is a pattern, or one that no model has here"
        elif mode not in _MODES:
            why = "this version of AIRI has models for chat and completions"
        elif source is None:
            why = "it is an API of others, or not named as on the hub; AIRI runs models itself"
        elif name in self._models:
            why = "a further deployment of a model; this version of AIRI runs one of each"
        if why is not None or source is None:
            self.lose(path, why or "")
            return
        found: dict[str, Any] = {"name": name, "source": source}
        price = self._price(path)
        if price:
            found["price"] = price
        self._models[name] = found
        self._take_own_limits(at, name)
        for key in ("api_base", "api_key", "api_version", "base_url", "organization", "drop_params"):
            if self.document.find((*at, key)) is not None:
                self.lose((*at, key), "not needed, as AIRI runs the model itself")

    def _price(self, path: Path) -> dict[str, float]:
        price: dict[str, float] = {}
        for theirs, ours in (
            ("input_cost_per_token", "input_per_1m"),
            ("output_cost_per_token", "output_per_1m"),
        ):
            for part in ("model_info", "litellm_params"):
                value = self.take(*path, part, theirs)
                if _is_number(value) and 0 <= value < 1000:
                    price[ours] = round(value * 1e6, 9)
        return price

    def _take_own_limits(self, path: Path, name: str) -> None:
        own = self._counts(path, {"rpm": "rpm_limit", "tpm": "tpm_limit"})
        own |= self._counts(path, {"max_parallel_requests": "max_parallel_requests"})
        own |= self._budget(path, [name])
        if own:
            self._limits.setdefault("models", {})[name] = own

    def _take_aliases(self) -> None:
        used = set(self._models)
        for at in (("router_settings", "model_group_alias"), ("litellm_settings", "model_alias_map")):
            self._take_alias_map(at, used)

    def _take_alias_map(self, at: Path, used: set[str]) -> None:
        node = self.document.find(at)
        for alias, child in node.children() if node is not None else ():
            target = child.plain()
            if isinstance(target, dict):
                target = target.get("model")
            path = (*at, alias)
            if not isinstance(target, str) or target not in self._models:
                self.lose(path, "an alias of a model that is not translated")
            elif not isinstance(alias, str) or not _NAME.fullmatch(alias) or alias in used:
                self.lose(path, "a name that another model has, or that none can have here")
            else:
                self._taken.add(path)
                used.add(alias)
                self._models[target].setdefault("aliases", []).append(alias)

    # -- the rest ------------------------------------------------------------------------------

    def _server(self) -> dict[str, str]:
        server: dict[str, str] = {}
        url = self.take("general_settings", "database_url")
        if isinstance(url, str):
            variable = _VARIABLE.fullmatch(url)
            name = variable[1] if variable else "DATABASE_URL"
            server["state"] = f"${{{name}:-sqlite:///./airi.db}}"
            if variable is None:
                self.lose(("general_settings", "database_url"), f"it may hold a password; put it into {name}")
        counters = self._counters()
        if counters is not None:
            server["shared_counters"] = counters
        return server

    def _counters(self) -> str | None:
        """Redis, where several proxies count in one."""
        at = ("router_settings",)
        url, host = self.take(*at, "redis_url"), self.take(*at, "redis_host")
        port, password = self.take(*at, "redis_port"), self.take(*at, "redis_password")
        if isinstance(url, str):
            variable = _VARIABLE.fullmatch(url)
            if variable is None and "@" in url:
                self.lose((*at, "redis_url"), "it may hold a password; put it into REDIS_URL")
            if variable is None and "@" not in url and _REDIS.fullmatch(url):
                return escape(url)
            return f"${{{variable[1] if variable else 'REDIS_URL'}:-}}"
        if not isinstance(host, str):
            return None
        for name, value, plain in (("redis_host", host, _HOST), ("redis_port", str(port or 6379), _PORT)):
            if not (_VARIABLE.fullmatch(value) or plain.fullmatch(value)):
                self.lose((*at, name), "it is none")
                return None
        secret = ""
        if isinstance(password, str):
            variable = _VARIABLE.fullmatch(password)
            secret = f":${{{variable[1] if variable else 'REDIS_PASSWORD'}:-}}@"
            if variable is None:
                self.lose((*at, "redis_password"), "put it into REDIS_PASSWORD")
        return f"redis://{secret}{_in_url(host, 'localhost')}:{_in_url(str(port or 6379), '6379')}"

    def _take_limits(self) -> None:
        at = ("general_settings",)
        if self.take(*at, "master_key") is not None:
            self._asks_for_keys = True
            why = f"keys are not copied; make one with `airi keys create {TENANT}`, for /admin one of {_OPERATOR}"
            self.lose((*at, "master_key"), why)
        names = ("max_parallel_requests", "global_max_parallel_requests")
        self._limits |= self._counts(at, dict.fromkeys(names, "max_parallel_requests"))
        self._limits |= self._budget(("litellm_settings",), list(self._models))

    def _counts(self, path: Path, names: dict[str, str]) -> dict[str, int]:
        found: dict[str, int] = {}
        for theirs, ours in names.items():
            value = self.take(*path, theirs)
            if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53:
                found[ours] = min(value, found.get(ours, value))
            elif value is not None:
                self.lose((*path, theirs), "not a whole number")
        return found

    def _budget(self, path: Path, models: list[str]) -> dict[str, Any]:
        amount, duration = self.take(*path, "max_budget"), self.take(*path, "budget_duration")
        if amount is None:
            return {}
        free = [name for name in models if "price" not in self._models[name]]
        if free or not _is_number(amount) or not 0 <= amount < 1e9:
            self.lose(
                (*path, "max_budget"), f"no price is given for {', '.join(free)}" if free else "not an amount"
            )
            return {}
        seconds = {"1mo": "30d"}.get(str(duration), duration)
        if duration is not None and (not isinstance(seconds, str) or not parse_duration(seconds)):
            self.lose((*path, "budget_duration"), "not a duration such as 30d; the budget is for good")
            seconds = None
        elif seconds != duration:
            self.bend((*path, "budget_duration"), f"a month becomes {seconds}")
        period = {} if seconds is None else {"budget_duration": seconds}
        return {"max_budget": float(amount)} | period

    def _take_prometheus(self) -> None:
        for kind in ("callbacks", "success_callback", "failure_callback"):
            for i, node in enumerate(self._items("litellm_settings", kind)):
                if node.value == "prometheus":
                    self.take("litellm_settings", kind, i)
        for key in ("turn_off_message_logging", "redact_messages_in_exceptions"):
            if self.document.find(("litellm_settings", key)) is not None:
                self.take("litellm_settings", key)  # as it always is here

    def _tenant(self) -> dict[str, Any]:
        return {"name": TENANT} | ({"limits": self._limits} if self._limits else {})


def _source(model: str) -> str | None:
    """Where the weights of a model are that LiteLLM calls so; None where they are nobody's to have."""
    provider, _, rest = model.partition("/")
    if provider not in (*_OWN_SERVERS, *_HOSTS_OF_OPEN_MODELS):
        return None
    if provider == "huggingface" and rest.count("/") == 2:
        rest = rest.partition("/")[2]
    return f"hf://{rest}" if _REPOSITORY.fullmatch(rest) else None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*|\[[0-9A-Fa-f:.]+\]")
_PORT = re.compile(r"[0-9]{1,4}|[1-5][0-9]{4}")
_REDIS = re.compile(rf"rediss?://({_HOST.pattern})(:({_PORT.pattern}))?(/[0-9]*)?")


def _in_url(text: str, default: str) -> str:
    variable = _VARIABLE.fullmatch(text)
    return f"${{{variable[1]}:-{default}}}" if variable else escape(text)
