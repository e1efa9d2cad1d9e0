"""The timeline of a simulation as an SVG picture, drawn without a library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from airi.simulate.report import Report

__all__ = ["draw"]

_WIDTH = 960
_LEFT, _RIGHT = 72, 24
_PANEL, _GAP, _TOP, _BOTTOM = 132, 40, 64, 44
_INNER = _WIDTH - _LEFT - _RIGHT
_BLUE, _ORANGE, _GREEN, _GREY, _RED = "#2f6fb3", "#e08a1e", "#3a9a5b", "#8a8f98", "#c8413b"
_CLOCK_STEPS = (
    20.0,
    30.0,
    60.0,
    120.0,
    300.0,
    600.0,
    900.0,
    1800.0,
    3600.0,
    7200.0,
    10800.0,
    21600.0,
    43200.0,
    86400.0,
)
_STYLE = """\
text { font: 12px system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif; fill: #30343a }
.title { font-size: 15px; font-weight: 600 }
.panel { font-weight: 600 }
.tick { fill: #6b7079; font-size: 11px }
.grid { stroke: #e6e8eb; stroke-width: 1 }
.axis { stroke: #b9bec6; stroke-width: 1 }
.line { fill: none; stroke-width: 1.6; stroke-linejoin: round }
.target { stroke-dasharray: 5 4; stroke-width: 1.2; fill: none }"""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Series:
    label: str
    color: str
    values: Sequence[float | None]
    filled: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Panel:
    title: str
    series: Sequence[_Series]
    log: bool = False
    percent: bool = False
    target: float | None = None


def draw(report: Report, *, title: str) -> str:
    """The picture: requests, memory, throughput, time to first token, time between tokens, over time."""
    points = report.timeline
    slo = report.figures["slo"] or {}
    end = max(float(report.figures["simulated_s"]), 1e-6)
    panels = [
        _Panel(
            title="requests, all replicas",
            series=[
                _Series(label="waiting", color=_ORANGE, values=[p.waiting for p in points]),
                _Series(label="running", color=_BLUE, values=[p.running for p in points], filled=True),
            ],
        ),
        _Panel(
            title="use",
            series=[
                _Series(label="time in steps", color=_GREY, values=[p.busy for p in points]),
                _Series(label="KV blocks", color=_GREEN, values=[p.kv_use for p in points], filled=True),
            ],
            percent=True,
        ),
        _Panel(
            title="tokens per second",
            series=[
                _Series(
                    label="prompt, computed", color=_ORANGE, values=[p.prompt_tokens_per_s for p in points]
                ),
                _Series(label="output", color=_BLUE, values=[p.output_tokens_per_s for p in points]),
            ],
        ),
        _latency("time to first token, ms", [p.ttft_ms for p in points], slo.get("ttft_target_ms")),
        _latency("time between tokens, ms", [p.itl_ms for p in points], slo.get("itl_target_ms")),
    ]
    height = _TOP + len(panels) * (_PANEL + _GAP) - _GAP + _BOTTOM
    starts = [p.start_s for p in points]
    middles = [(s + min(s + report.width_s, end)) / 2 for s in starts]
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" '
        f'height="{height}" role="img">',
        f"<title>{escape(title)}</title><style>{_STYLE}</style>",
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text class="title" x="{_LEFT}" y="26">{escape(title)}</text>',
    ]
    for i, panel in enumerate(panels):
        out += _draw_panel(panel, middles, end, _TOP + i * (_PANEL + _GAP))
    out += _time_axis(end, _TOP + len(panels) * (_PANEL + _GAP) - _GAP)
    out.append("</svg>")
    return "\n".join(out) + "\n"


def _latency(title: str, times: Sequence[object], target: float | None) -> _Panel:
    series = [
        _Series(label=name, color=color, values=[t[name] if isinstance(t, dict) else None for t in times])
        for name, color in (("p95", _RED), ("p50", _BLUE))
    ]
    return _Panel(title=title, series=series, log=True, target=target)


def _draw_panel(panel: _Panel, middles: Sequence[float], end: float, top: int) -> list[str]:
    found = [v for s in panel.series for v in s.values if v is not None]
    low, high, ticks = _scale(panel, found)

    def y(value: float) -> float:
        linear = (value - low) / (high - low)
        share = math.log(max(value, low) / low) / math.log(high / low) if panel.log else linear
        return top + _PANEL * (1 - min(max(share, 0.0), 1.0))

    out = [f'<text class="panel" x="{_LEFT}" y="{top - 10}">{escape(panel.title)}</text>']
    for tick in ticks:
        at = f"{y(tick):.1f}"
        out.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at}" y2="{at}"/>')
        text = f"{tick:.0%}" if panel.percent else _short(tick)
        out.append(
            f'<text class="tick" x="{_LEFT - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{text}</text>'
        )
    for series in panel.series:
        for run in _runs(series.values, middles, end):
            out += _curve([(x, y(value)) for x, value in run], series, top + _PANEL)
    if panel.target is not None and low <= panel.target <= high:
        at = f"{y(panel.target):.1f}"
        out.append(
            f'<line class="target" stroke="{_GREY}" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at}" y2="{at}"/>'
        )
    out.append(
        f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{top + _PANEL}" y2="{top + _PANEL}"/>'
    )
    return out + _legend(panel, top)


def _runs(
    values: Sequence[float | None], middles: Sequence[float], end: float
) -> list[list[tuple[float, float]]]:
    """Stretches of neighbouring values as (x, value): where nothing happened, the line breaks."""
    runs: list[list[tuple[float, float]]] = [[]]
    for middle, value in zip(middles, values, strict=True):
        if value is None:
            if runs[-1]:
                runs.append([])
            continue
        runs[-1].append((_LEFT + _INNER * min(middle / end, 1.0), value))
    return [run for run in runs if run]


def _curve(points: list[tuple[float, float]], series: _Series, floor: float) -> list[str]:
    if len(points) == 1:
        ((x, y),) = points
        return [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="1.6" fill="{series.color}"/>']
    path = "M" + " L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    out = []
    if series.filled:
        area = f"{path} L{points[-1][0]:.1f} {floor} L{points[0][0]:.1f} {floor} Z"
        out.append(f'<path d="{area}" fill="{series.color}" fill-opacity="0.14"/>')
    out.append(f'<path class="line" stroke="{series.color}" d="{path}"/>')
    return out


def _legend(panel: _Panel, top: int) -> list[str]:
    out = []
    x = _WIDTH - _RIGHT
    labels = [(s.label, s.color) for s in panel.series]
    if panel.target is not None:
        labels.append((f"target {_short(panel.target)}", _GREY))
    for label, color in reversed(labels):
        x -= round(6.4 * len(label)) + 8
        out.append(f'<text x="{x}" y="{top - 10}">{escape(label)}</text>')
        x -= 18
        out.append(f'<rect x="{x}" y="{top - 16}" width="12" height="4" rx="2" fill="{color}"/>')
        x -= 12
    return out


def _time_axis(end: float, top: int) -> list[str]:
    step = next((nice for nice in _CLOCK_STEPS if nice >= end / 8), None) if end >= 120 else None
    step = step or _step(end / 8)
    out = []
    for i in range(int(end / step) + 1):
        x = _LEFT + _INNER * i * step / end
        out.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{top + 4}"/>')
        text = _clock(i * step, end)
        out.append(f'<text class="tick" x="{x:.1f}" y="{top + 18}" text-anchor="middle">{text}</text>')
    label = "simulated time, " + ("h:min" if end >= 7200 else "min:s" if end >= 120 else "s")
    out.append(f'<text class="tick" x="{_WIDTH - _RIGHT}" y="{top + 36}" text-anchor="end">{label}</text>')
    return out


def _clock(seconds: float, end: float) -> str:
    if end >= 7200:
        return f"{int(seconds // 3600)}:{int(seconds % 3600 // 60):02d}"
    if end >= 120:
        return f"{int(seconds // 60)}:{int(seconds % 60):02d}"
    return f"{seconds:g}"


def _scale(panel: _Panel, found: Sequence[float]) -> tuple[float, float, list[float]]:
    """Lowest and highest value that a panel shows, and where its lines are."""
    if panel.percent:
        return 0.0, 1.0, [0.0, 0.25, 0.5, 0.75, 1.0]
    top = max(found, default=1.0)
    if not panel.log:
        step = _step(max(top, 1e-9) / 3)
        count = max(math.ceil(top / step), 1)
        return 0.0, count * step, [i * step for i in range(count + 1)]
    shown = [v for v in (*found, panel.target or 0.0) if v > 0] or [1.0]
    low = 10.0 ** math.floor(math.log10(min(shown)))
    high = 10.0 ** math.ceil(math.log10(max(shown)))
    high = max(high, low * 10)
    exponents = range(round(math.log10(low)), round(math.log10(high)) + 1)
    return low, high, [10.0**e for e in exponents]


def _step(about: float) -> float:
    """1, 2 or 5 times a power of ten, at least `about`."""
    power = 10.0 ** math.floor(math.log10(about))
    return next(m * power for m in (1.0, 2.0, 5.0, 10.0) if m * power >= about * 0.999)


def _short(value: float) -> str:
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:g}{letter}"
    return f"{value:g}"
