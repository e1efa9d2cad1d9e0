"""What does governance cost the gateway: CPU per request with keys, limits, policies, content rules and an audit log.

    python -m benches.bench_governance [--litellm-python PATH] [--json]

The gateway runs in front of an engine without a model (as in bench_gateway), plain and with a config: ten tenants
with a hundred keys each in SQLite, limits of every kind but device time, eight policies of Cedar of which three have
conditions, a rule for prompts (cards and account numbers, block), one for answers (all personal data, redact), and an
audit log; once with limits counted in the process and once in a redis-server that is started here. Requests ask for
64 tokens, over eight connections of eight tenants, streamed and not; streams twice: from an engine at full speed, whose
tokens leave in few writes, and paced, where each token is an event of its own. All variants take turns.

CPU is of the gateway's process, user and system. `per_core_s` is requests per second of it: a core that does nothing
else. Of LiteLLM the proxy is measured in front of our plain gateway, with a master key: its keys, limits and budgets
need a database that it brings no client for, so it does less.

Checked first: a request without a key, one that a policy forbids, one over a limit and a prompt with a card number are
refused, and the audit log tells of each. Does not mean: latency under load, what redis-server uses, or what a
detector costs where there is something to find.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from airi import builtin
from airi.bench.server import free_port, server_process, wait_until_ready
from airi.policy.keys import create_key
from airi.state import open_store
from benches.bench_gateway import Target, our_gateway, streams, whole_requests
from benches.common import add_peer_flag, plain_parser, print_rows
from tests.policy.redis_server import running_redis

TARGET_MS = 0.8
TARGET_PER_S = 1000
TENANTS = 10
MODEL = "bench"
POLICIES = """
@id("tenants-may-chat")
permit (principal in Group::"tenants", action in [Action::"chat", Action::"completion"], resource);
@id("all-see-models")
permit (principal, action in [Action::"list_models", Action::"tokenize"], resource);
@id("gold-sees-metrics")
permit (principal in Group::"gold", action == Action::"metrics", resource);
@id("gold-may-embed")
permit (principal in Group::"gold", action in [Action::"embed", Action::"rerank"], resource);
@id("short-answers")
forbid (principal, action in [Action::"chat", Action::"completion"], resource)
    when { context.max_tokens > 4096 } unless { principal in Group::"gold" };
@id("no-tools-for-batch")
forbid (principal in Group::"batch", action == Action::"chat", resource) when { context.tools };
@id("no-urgent-batch")
forbid (principal in Group::"batch", action, resource) when { context has priority && context.priority > 10 };
@id("no-promotions")
forbid (principal, action == Action::"promote", resource);
"""


def config_text(folder: Path, port: int, *, redis: str | None = None, requests: int = 10**9) -> str:
    """The config that is measured, as JSON, which is YAML. The last tenant may send one request a minute."""
    limits = {
        "rpm_limit": requests,
        "tpm_limit": 10**12,
        "max_parallel_requests": 10**6,
        "max_budget": 10**6,
        "budget_duration": "30d",
    }
    tenants: list[dict[str, Any]] = [
        {"name": f"tenant-{i}", "groups": ["tenants", "gold" if i % 2 else "batch"], "limits": dict(limits)}
        for i in range(TENANTS)
    ]
    tenants[-1]["limits"]["rpm_limit"] = 1
    server = {"port": port, "state": f"sqlite:///{folder}/airi.db"}
    if redis is not None:
        server["shared_counters"] = redis
    config = {
        "version": 1,
        "server": server,
        "models": [
            {"name": MODEL, "source": builtin.NAME, "price": {"input_per_1m": 0.1, "output_per_1m": 0.4}}
        ],
        "tenants": tenants,
        "policies": {"engine": "cedar", "text": POLICIES},
        "content": {
            "input": [{"name": "no-cards", "detectors": ["payment_card", "iban"], "action": "block"}],
            "output": [{"name": "personal-data", "detectors": ["pii"], "action": "redact"}],
        },
        "observability": {"audit": str(folder / "audit.jsonl")},
    }
    return json.dumps(config)


async def make_keys(state: str, each: int) -> list[str]:
    """One key of each tenant, of `each` that it has."""
    async with await open_store(state) as store:
        keys = [[await create_key(store, f"tenant-{i}") for _ in range(each)] for i in range(TENANTS)]
    return [of_tenant[each // 2].text for of_tenant in keys]


@contextmanager
def governed_gateway(
    *, step_us: int, redis: str | None = None, keys: int = 100
) -> Iterator[tuple[Target, str, Path]]:
    """A stub engine and a governed gateway; the key of the tenant that may send one request, and the audit log."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder, port = Path(name), free_port()
        endpoint = f"ipc://{folder}/engine"
        stub = [sys.executable, "-m", "airi.transport.stub", "--endpoint", endpoint, "--name", MODEL]
        stub += ["--model-path", str(builtin.path()), "--max-model-len", "8192", "--step-us", str(step_us)]
        *texts, last = asyncio.run(make_keys(f"sqlite:///{folder}/airi.db", keys))
        (folder / "airi.yaml").write_text(config_text(folder, port, redis=redis))
        command = [sys.executable, "-m", "airi", "serve", str(folder / "airi.yaml"), "--engine", endpoint]
        log = stack.enter_context((folder / "log").open("w+b"))
        stack.enter_context(server_process(stub, log))
        gateway = stack.enter_context(server_process(command, log))
        wait_until_ready(gateway, f"http://127.0.0.1:{port}/ready", log)
        label = "airi, governed" + (", limits in Redis" if redis else "")
        target = Target(label, f"http://127.0.0.1:{port}/v1", MODEL, gateway.pid, keys=tuple(texts))
        yield target, last, folder / "audit.jsonl"


def status_of(target: Target, key: str, content: str = "Hi", **fields: Any) -> int:
    """What a chat is answered with."""
    body = {"model": target.model, "messages": [{"role": "user", "content": content}], "max_tokens": 4}
    request = urllib.request.Request(
        f"{target.url}/chat/completions",
        json.dumps(body | fields).encode(),
        {"authorization": f"Bearer {key}", "content-type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


def check_governed(target: Target, limited: str, audit: Path) -> None:
    """RuntimeError where a gateway lets through what its config refuses: then it does not do what is measured."""
    given, batch = target.keys[1], target.keys[0]
    found = {
        "a key": status_of(target, given),
        "no key": status_of(target, given[:-1] + ("a" if given[-1] != "a" else "b")),
        "a policy": status_of(target, batch, max_tokens=5000),
        "a limit": (status_of(target, limited), status_of(target, limited))[1],
        "a rule": status_of(target, given, "My card is 4111 1111 1111 1111."),
    }
    expected = {"a key": 200, "no key": 401, "a policy": 403, "a limit": 429, "a rule": 400}
    if found != expected:
        raise RuntimeError(f"the gateway answers {found}; expected {expected}")
    lines = [json.loads(line) for line in audit.read_text().splitlines()]
    if not any("short-answers" in line.get("policies", ()) and not line["allowed"] for line in lines):
        raise RuntimeError("the audit log has no line of a denial")


@contextmanager
def litellm_proxy(python: str, upstream: str) -> Iterator[Target]:
    """LiteLLM's proxy in front of an OpenAI server, with a master key and its own defaults."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder, port, key = Path(name), free_port(), "sk-master-of-a-bench"
        config = {
            "model_list": [
                {
                    "model_name": MODEL,
                    "litellm_params": {"model": f"openai/{MODEL}", "api_base": upstream, "api_key": "x"},
                }
            ],
            "general_settings": {"master_key": key},
            "litellm_settings": {"telemetry": False},
        }
        (folder / "config.yaml").write_text(json.dumps(config))
        command = [str(Path(python).parent / "litellm"), "--config", str(folder / "config.yaml")]
        command += ["--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
        log = stack.enter_context((folder / "log").open("w+b"))
        environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"}
        environment.pop("PYTHONPATH", None)
        proxy = stack.enter_context(server_process(command, log, environment))
        wait_until_ready(proxy, f"http://127.0.0.1:{port}/health/liveliness", log)
        yield Target("LiteLLM, a master key", f"http://127.0.0.1:{port}/v1", MODEL, proxy.pid, keys=(key,))


def measure(
    target: Target, arguments: argparse.Namespace, *, paced: bool, share: float = 1
) -> dict[str, float]:
    """CPU per request in milliseconds, by question. A `share` of the requests, for who is slower."""
    if paced:
        run = streams(
            target, connections=16, tokens=arguments.tokens, rounds=max(1, int(arguments.rounds * share))
        )
        return {"streamed, a token at a time": arguments.tokens / asyncio.run(run)["tokens_per_cpu_s"] * 1e3}
    requests = max(80, int(arguments.requests * share))
    whole = asyncio.run(whole_requests(target, requests=requests, connections=8, tokens=arguments.tokens))
    run = streams(target, connections=16, tokens=arguments.tokens, rounds=max(1, requests // 32))
    return {
        "not streamed": whole["cpu_ms"],
        "streamed, in few writes": arguments.tokens / asyncio.run(run)["tokens_per_cpu_s"] * 1e3,
    }


def rows_of(turns: dict[str, dict[str, list[float]]]) -> list[dict[str, Any]]:
    """A row per server and question, from CPU milliseconds of each turn; `airi` is the plain gateway."""
    rows: list[dict[str, Any]] = []
    for server, found in turns.items():
        for question, values in found.items():
            cpu_ms = statistics.median(values)
            row: dict[str, Any] = {
                "question": f"gateway CPU per request, {question}",
                "server": server,
                "cpu_ms": round(cpu_ms, 3),
                "cpu_ms_each": [round(value, 3) for value in values],
                "per_core_s": round(1e3 / cpu_ms),
                "to_plain": round(cpu_ms / statistics.median(turns["airi"][question]), 2),
            }
            if server == "airi, governed" and question == "not streamed":
                row["target"] = f"<= {TARGET_MS} ms, >= {TARGET_PER_S} requests/s on one core"
                row["reached"] = cpu_ms <= TARGET_MS and 1e3 / cpu_ms >= TARGET_PER_S
            rows.append(row)
    return rows


def take_turns(arguments: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """CPU milliseconds of each turn, by server and question."""
    found: dict[str, dict[str, list[float]]] = {}
    for step_us in (0, arguments.step_us):
        with ExitStack() as stack:
            plain = stack.enter_context(our_gateway(builtin.path(), step_us=step_us))
            targets = [(plain, 1.0)]
            redis = stack.enter_context(running_redis())
            for url in (None, redis.url):
                target, limited, audit = stack.enter_context(governed_gateway(step_us=step_us, redis=url))
                check_governed(target, limited, audit)
                targets.append((target, 1.0))
            if arguments.litellm_python is not None:
                targets.append(
                    (stack.enter_context(litellm_proxy(arguments.litellm_python, plain.url)), 0.05)
                )
            for _ in range(arguments.turns):
                for target, share in targets:
                    print(f"{target.name}, a step every {step_us} us", file=sys.stderr)
                    of_server = found.setdefault(target.name, {})
                    for question, cpu_ms in measure(
                        target, arguments, paced=step_us > 0, share=share
                    ).items():
                        of_server.setdefault(question, []).append(cpu_ms)
    return found


def main() -> None:
    """All servers in turns."""
    parser = plain_parser(__doc__)
    parser.add_argument("--requests", type=int, default=4000, help="that do not stream, in each turn")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of an answer")
    parser.add_argument("--rounds", type=int, default=20, help="of 16 paced streams, in each turn")
    parser.add_argument("--step-us", type=int, default=5000, help="pace of the engine")
    parser.add_argument("--turns", type=int, default=3)
    add_peer_flag(parser, "litellm")
    arguments = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    print_rows(rows_of(take_turns(arguments)), as_json=arguments.json)


if __name__ == "__main__":
    main()
