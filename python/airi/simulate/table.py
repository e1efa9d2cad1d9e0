"""A report for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from airi.simulate.report import Report

__all__ = ["show"]

_MOST_TENANTS = 20
_STATISTICS = ("mean", "p50", "p90", "p95", "p99", "max")


def show(report: Report, trace: str, tenant_names: Mapping[int, str]) -> None:
    """Prints tables to stdout."""
    console = Console()
    console.print(_figures(report.figures, trace))
    console.print(_times(report.figures))
    tenants = report.figures["tenants"]
    if len(tenants) > 1:
        console.print(_tenants(tenants, tenant_names))


def _figures(f: Mapping[str, Any], trace: str) -> Table:
    table = Table(title=trace, show_header=False, title_justify="left")
    requests, settings = f["requests"], f["settings"]
    table.add_row("fleet", f"{settings['replicas']} x {settings['step_time']}, router {settings['router']}")
    table.add_row("KV memory", _memory(settings))
    table.add_row("requests", f"{requests['read']:,} read, {requests['finished']:,} finished")
    refused = ", ".join(
        f"{n:,} {why.replace('_', ' ')}" for why, n in requests["refused_by_reason"].items() if n
    )
    if refused:
        table.add_row("refused", refused)
    if f["prefix_hit_rate"] is not None:
        table.add_row("prefix hit rate", _hits(f))
    rates = f["throughput"]
    table.add_row(
        "throughput",
        f"{rates['requests_per_s']:,.2f} requests/s, {rates['prompt_tokens_per_s']:,.0f} prompt and "
        f"{rates['output_tokens_per_s']:,.0f} output tokens/s",
    )
    memory = f["memory"]
    table.add_row("KV use", f"mean {memory['kv_use_mean']:.1%}, peak {memory['kv_use_peak']:.1%}")
    if f["tiers"] is not None:
        table.add_row("blocks copied", _copies(f["tiers"]))
    table.add_row("preemptions", f"{f['preemptions']:,}")
    table.add_row("busy", f"{f['busy']:.1%} of the time, {f['steps']:,} steps")
    if f["slo"] is not None:
        table.add_row("within targets", _attainment(f["slo"]))
    table.add_row("time", f"{f['simulated_s']:,.1f} s simulated in {f['wall_s']:,.1f} s")
    return table


def _memory(settings: Mapping[str, Any]) -> str:
    shown = f"{settings['kv_blocks']:,} blocks of {settings['block_size']} tokens each"
    for place, name in (("in host memory", "host_kv_blocks"), ("on disk", "disk_kv_blocks")):
        if settings[name]:
            shown += f", {settings[name]:,} {place}"
    return shown


def _hits(f: Mapping[str, Any]) -> str:
    shown = f"{f['prefix_hit_rate']:.1%} of {f['prompt_tokens']:,} prompt tokens"
    if f["tiers"] is None:
        return shown
    return f"{shown}, {f['loaded_tokens'] / f['prompt_tokens']:.1%} loaded"


def _copies(tiers: Mapping[str, int]) -> str:
    shown = f"{tiers['stores']:,} to host memory, {tiers['loads']:,} back"
    if tiers["disk_kv_blocks"]:
        shown += f"; {tiers['spills']:,} on to disk, {tiers['fetches']:,} back"
    return shown


def _attainment(slo: Mapping[str, Any]) -> str:
    shown = [f"{_percent(slo['both'])} of requests"]
    if slo["ttft_target_ms"] is not None:
        shown.append(f"TTFT {slo['ttft_target_ms']:g} ms: {_percent(slo['ttft'])}")
    if slo["itl_target_ms"] is not None:
        shown.append(f"mean ITL {slo['itl_target_ms']:g} ms: {_percent(slo['itl'])}")
    return ", ".join(shown)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _times(f: Mapping[str, Any]) -> Table:
    table = Table("milliseconds", *_STATISTICS)
    for name, label in (("ttft_ms", "first token"), ("itl_ms", "between tokens"), ("e2e_ms", "end to end")):
        table.add_row(label, *_row(f[name], _STATISTICS))
    return table


def _row(times: Mapping[str, float] | None, names: tuple[str, ...]) -> list[str]:
    return ["-" if times is None else f"{times[name]:,.1f}" for name in names]


def _tenants(tenants: list[Mapping[str, Any]], names: Mapping[int, str]) -> Table:
    most = sorted(tenants, key=lambda t: (-t["service"], t["tenant"]))[:_MOST_TENANTS]
    title = "tenants" if len(most) == len(tenants) else f"{len(most)} of {len(tenants):,} tenants, by service"
    # Nine columns of figures: where a terminal is too narrow they go on in the next line, never cut.
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=0, collapse_padding=True)
    headings = (
        "tenant",
        "requests",
        "refused",
        "prompt",
        "cached",
        "output",
        "service",
        "TTFT p50",
        "p99 ms",
    )
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for tenant in most:
        counts = [
            tenant[k]
            for k in ("requests", "refused", "prompt_tokens", "cached_tokens", "output_tokens", "service")
        ]
        table.add_row(
            str(names.get(tenant["tenant"], tenant["tenant"])),
            *[f"{n:,}" for n in counts],
            *_row(tenant["ttft_ms"], ("p50", "p99")),
        )
    return table
