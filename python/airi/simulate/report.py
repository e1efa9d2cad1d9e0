"""What a simulation found, as numbers with names and units."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from airi._core.sim import LogHistogram
from airi.simulate.options import SimulationOptions

__all__ = ["Report", "TimelinePoint"]

_QUANTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}
_REFUSALS = ("queue_full", "too_long", "never_fits", "empty")


@dataclass(frozen=True, slots=True, kw_only=True)
class TimelinePoint:
    """One stretch of simulated time; counts of requests are means over the stretch and sums over replicas."""

    start_s: float
    running: float
    waiting: float
    kv_use: float
    """Share of all KV blocks that requests held."""
    busy: float
    """Share of time in steps, mean over replicas."""
    accepted: int
    finished: int
    refused: int
    prompt_tokens_per_s: float
    """Computed ones."""
    output_tokens_per_s: float
    """By decodes: the first token of a request counts as part of its prefill."""
    ttft_ms: Mapping[str, float] | None
    """p50, p95 of first tokens that came out in it; None where none did."""
    itl_ms: Mapping[str, float] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The result of a simulation. `figures` is what `airi simulate --json` prints.

    `prefix_hit_rate`: prompt tokens found in the prefix cache when a request was first admitted, over all
    prompt tokens so admitted; `loaded_tokens` of the `cached_tokens` were not on the device, and came from a tier.
    `tiers`, None without them: how many blocks the tiers of all replicas hold at most (`host_kv_blocks`,
    `disk_kv_blocks`) and held at the end (`_used`); blocks copied from device to host (`stores`), host to device
    (`loads`), host to disk (`spills`) and disk to host (`fetches`), as far as the scheduler has heard of it;
    `dropped_stores` found no room; `swaps`: preempted requests whose blocks were kept in the host. SLO attainment
    counts refused requests as misses; a request attains the ITL target when its mean gap does, `worst_itl` asks that
    of every gap.
    """

    figures: Mapping[str, Any]
    timeline: tuple[TimelinePoint, ...]
    width_s: float
    """Of a stretch of the timeline."""

    @classmethod
    def of(
        cls, results: Mapping[str, Any], options: SimulationOptions, *, requests: int, wall_s: float
    ) -> Report:
        """Names the core's figures."""
        counts, fleet = results["counts"], results["fleet"]
        seconds = max(fleet["end_us"], 1) / 1e6
        figures = {
            "settings": _settings(options),
            "requests": _requests(counts, requests),
            "prefix_hit_rate": _share(fleet["hit_tokens"], fleet["query_tokens"]),
            "prompt_tokens": fleet["query_tokens"],
            "cached_tokens": fleet["hit_tokens"],
            "loaded_tokens": fleet["loaded_tokens"],
            "output_tokens": counts["generated_tokens"],
            "ttft_ms": _times(results["ttft"]),
            "itl_ms": _times(results["itl"]),
            "e2e_ms": _times(results["e2e"]),
            "slo": _slo(counts, options, requests),
            "throughput": {
                "requests_per_s": _round(counts["finished"] / seconds),
                "prompt_tokens_per_s": _round(fleet["query_tokens"] / seconds),
                "output_tokens_per_s": _round(counts["generated_tokens"] / seconds),
            },
            "memory": {
                "kv_blocks": fleet["capacity"],
                "kv_use_mean": _round(fleet["mean_kv"]),
                "kv_use_peak": _round(fleet["peak_kv"]),
                "evicted_blocks": fleet["evictions"],
            },
            "tiers": _tiers(fleet, options),
            "preemptions": fleet["preemptions"],
            "steps": fleet["steps"],
            "busy": _round(fleet["busy"]),
            "replica_requests": fleet["accepted"],
            "tenants": [_tenant(t, options) for t in results["tenants"]],
            "simulated_s": _round(seconds),
            "wall_s": _round(wall_s),
        }
        width_us = results["timeline_width_us"]
        points = _timeline(
            results["timeline"], width_us, fleet["end_us"], fleet["capacity"], options.replicas
        )
        return cls(figures=figures, timeline=points, width_s=width_us / 1e6)


def _settings(options: SimulationOptions) -> dict[str, Any]:
    return {
        "replicas": options.replicas,
        "router": options.router,
        "block_size": options.block_size,
        "kv_blocks": options.blocks,
        "host_kv_blocks": options.host_kv_blocks,
        "disk_kv_blocks": options.disk_kv_blocks,
        "max_num_seqs": options.max_num_seqs,
        "max_batch_tokens": options.max_batch_tokens,
        "admission": options.admission,
        "step_time": options.step_time if isinstance(options.step_time, str) else options.times.source,
    }


def _tiers(fleet: Mapping[str, Any], options: SimulationOptions) -> dict[str, int] | None:
    if not options.has_tiers:
        return None
    found = fleet["tiers"]
    counts = ("stores", "loads", "spills", "fetches", "dropped_stores")
    return {
        "host_kv_blocks": options.host_kv_blocks * options.replicas,
        "host_kv_blocks_used": found.host_blocks,
        "disk_kv_blocks": options.disk_kv_blocks * options.replicas,
        "disk_kv_blocks_used": found.disk_blocks,
        **{name: getattr(found, name) for name in counts},
        "swaps": fleet["swaps"],
    }


def _requests(counts: Mapping[str, int], requests: int) -> dict[str, Any]:
    refused = {why: counts[f"refused_{why}"] for why in _REFUSALS}
    return {
        "read": requests,
        "accepted": counts["accepted"],
        "finished": counts["finished"],
        "failed": counts["failed"],
        "refused": sum(refused.values()),
        "refused_by_reason": refused,
    }


def _slo(counts: Mapping[str, int], options: SimulationOptions, requests: int) -> dict[str, Any] | None:
    if options.ttft_ms is None and options.itl_ms is None:
        return None
    return {
        "ttft_target_ms": options.ttft_ms,
        "itl_target_ms": options.itl_ms,
        "ttft": _share(counts["within_ttft"], requests),
        "itl": _share(counts["within_itl"], requests),
        "both": _share(counts["within_both"], requests),
        "ttft_and_worst_itl": _share(counts["within_worst_itl"], requests),
    }


def _tenant(found: Mapping[str, Any], options: SimulationOptions) -> dict[str, Any]:
    computed = found["prompt_tokens"] - found["cached_tokens"]
    prices = {"w_prompt": 1, "w_decode": 2, "w_hit": 0} | dict(options.runtime)
    service = (
        computed * prices["w_prompt"]
        + found["cached_tokens"] * prices["w_hit"]
        + found["generated_tokens"] * prices["w_decode"]
    )
    row = {
        "tenant": found["tenant"],
        "requests": found["requests"],
        "refused": found["refused"],
        "finished": found["finished"],
        "prompt_tokens": found["prompt_tokens"],
        "cached_tokens": found["cached_tokens"],
        "output_tokens": found["generated_tokens"],
        "service": service,
        "ttft_ms": _times(found["ttft"]),
    }
    if options.ttft_ms is not None or options.itl_ms is not None:
        row["slo"] = _share(found["attained"], found["requests"])
    return row


def _times(found: LogHistogram) -> dict[str, float] | None:
    if not found.count:
        return None
    times = {"mean": found.mean} | {name: found.quantile(q) for name, q in _QUANTILES.items()}
    return {name: _round(us / 1000) for name, us in (times | {"max": found.max}).items()}


def _timeline(
    buckets: list[dict[str, Any]], width_us: int, end_us: int, blocks: int, replicas: int
) -> tuple[TimelinePoint, ...]:
    points = []
    for i, bucket in enumerate(buckets):
        start = i * width_us
        time = max(min(width_us, end_us - start), 1)
        points.append(
            TimelinePoint(
                start_s=start / 1e6,
                running=bucket["running_us"] / time,
                waiting=bucket["waiting_us"] / time,
                kv_use=bucket["active_block_us"] / (time * blocks),
                busy=bucket["busy_us"] / (time * replicas),
                accepted=bucket["accepted"],
                finished=bucket["finished"],
                refused=bucket["refused"],
                prompt_tokens_per_s=bucket["prefill_tokens"] / time * 1e6,
                output_tokens_per_s=bucket["decode_tokens"] / time * 1e6,
                ttft_ms=_pair(bucket["ttft"]),
                itl_ms=_pair(bucket["itl"]),
            )
        )
    return tuple(points)


def _pair(found: LogHistogram) -> dict[str, float] | None:
    if not found.count:
        return None
    return {name: found.quantile(_QUANTILES[name]) / 1000 for name in ("p50", "p95")}


def _share(part: int, whole: int) -> float | None:
    return _round(part / whole) if whole else None


def _round(value: float) -> float:
    return float(f"{value:.6g}")
