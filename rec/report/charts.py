"""Charts as SVG that takes its colours from the page, so that one drawing suits light and dark."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from html import escape

from rec.report.contents import Curve, Point, Series

_WIDTH, _HEIGHT = 340, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 8, 10, 24
_MAP = 720
_MAX_LINE_POINTS = 400


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers within low to high.

    >>> ticks(0.12, 0.97)
    [0.2, 0.4, 0.6, 0.8]
    """
    if not high > low:
        return [low]
    raw = (high - low) / count
    power = 10 ** math.floor(math.log10(raw))
    step = power * min((m for m in (1, 2, 2.5, 5, 10) if m * power >= raw), default=10)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def number(value: float) -> str:
    """Three significant digits, thousands as k.

    >>> number(0.12345), number(1500), number(2), number(0)
    ('0.123', '1.5k', '2', '0')
    """
    if abs(value) >= 1000:
        return f"{value / 1000:.3g}k"
    return f"{value:.3g}"


def _thinned(series: Series) -> list[tuple[float, float]]:
    finite = [(float(x), float(y)) for x, y in series if math.isfinite(y)]
    step = max(1, -(-len(finite) // _MAX_LINE_POINTS))
    kept = finite[::step]
    return kept if not finite or kept[-1] == finite[-1] else [*kept, finite[-1]]


def curve_svg(curve: Curve) -> str:
    """One small chart: training as a line, validation as a line with dots."""
    lines = {"train": _thinned(curve.train), "validation": _thinned(curve.validation)}
    points = [p for line in lines.values() for p in line]
    if not points:
        return ""
    x_low, x_high = min(p[0] for p in points), max(p[0] for p in points)
    y_low, y_high = min(p[1] for p in points), max(p[1] for p in points)
    margin = (y_high - y_low) * 0.06 or abs(y_high) * 0.1 or 1.0
    y_low, y_high = y_low - margin, y_high + margin
    x_span = x_high - x_low or 1.0

    def x(value: float) -> float:
        return round(_LEFT + (value - x_low) / x_span * (_WIDTH - _LEFT - _RIGHT), 1)

    def y(value: float) -> float:
        return round(_TOP + (y_high - value) / (y_high - y_low) * (_HEIGHT - _TOP - _BOTTOM), 1)

    parts = [
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{escape(curve.name)} over training steps">'
    ]
    for value in ticks(y_low, y_high):
        parts.append(f'<path class="grid" d="M{_LEFT} {y(value)}H{_WIDTH - _RIGHT}"/>')
        parts.append(
            f'<text x="{_LEFT - 6}" y="{y(value) + 3.5}" class="end">{number(value)}</text>'
        )
    for value in ticks(x_low, x_high):
        parts.append(f'<text x="{x(value)}" y="{_HEIGHT - 6}" class="mid">{number(value)}</text>')
    for name, line in lines.items():
        path = " ".join(f"{x(a)},{y(b)}" for a, b in line)
        if len(line) > 1:
            parts.append(f'<polyline class="{name}" points="{path}"/>')
        if name == "validation" or len(line) == 1:
            parts += [
                f'<circle class="{name}" cx="{x(a)}" cy="{y(b)}" r="2.4">'
                f"<title>step {a:g}: {b:.4g}</title></circle>"
                for a, b in line
            ]
    return "".join([*parts, "</svg>"])


def large_groups(labels: Sequence[Sequence[str]], count: int = 8) -> list[str]:
    """One group for each item: the rarest of its labels that is among the `count` commonest.

    The rarest says most of the item: "Drama" then marks films that are nothing more special.
    Items with none of the commonest have "".
    """
    frequency = Counter(label for row in labels for label in set(row))
    large = dict(sorted(frequency.items(), key=lambda e: (-e[1], e[0]))[:count])
    return [
        min((label for label in row if label in large), key=lambda e: (large[e], e), default="")
        for row in labels
    ]


def map_svg(points: Sequence[Point]) -> tuple[str, list[tuple[str, int]]]:
    """The map as SVG, and the groups in the order of their colours with their sizes.

    Held-out items are rings, training items are dots; names appear under the pointer.
    """
    sizes = Counter(p.group for p in points)
    groups = sorted((g for g in sizes if g), key=lambda g: (-sizes[g], g))
    colour = {group: i + 1 for i, group in enumerate(groups)} | {"": 0}
    xs, ys = [p.x for p in points], [p.y for p in points]
    left, top = min(xs), min(ys)
    scale = (_MAP - 24) / (max(max(xs) - left, max(ys) - top) or 1.0)
    width, height = (max(240, round(24 + (max(v) - min(v)) * scale)) for v in (xs, ys))
    parts = [
        f'<svg class="map" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{len(points)} items in two dimensions">'
    ]
    for p in sorted(points, key=lambda p: (bool(p.group), p.heldout)):
        x = round(12 + (p.x - left) * scale, 1)
        y = round(12 + (p.y - top) * scale, 1)
        shape = "ring" if p.heldout else "dot"
        label = f"{p.title} · {p.group}" if p.group else p.title
        parts.append(
            f'<circle class="{shape} g{colour[p.group]}" cx="{x}" cy="{y}" '
            f'r="{3.4 if p.heldout else 2.6}"><title>{escape(label)}</title></circle>'
        )
    legend = [(group, sizes[group]) for group in groups]
    return "".join([*parts, "</svg>"]), legend
