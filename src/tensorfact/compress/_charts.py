"""Small charts as inline SVG strings. Colours are CSS classes of `_page.py`, so one drawing serves light and dark."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape

__all__ = ["DEPTHS", "Frame", "depth_class", "linear_ticks", "log_ticks", "polyline"]

DEPTHS = 8
"""Steps of the colour ramp from the first block to the last (classes ``d0`` to ``d7``)."""


def depth_class(position: int, count: int) -> str:
    """Colour class of item `position` of `count`."""
    return f"d{round((DEPTHS - 1) * position / max(1, count - 1))}"


def linear_ticks(top: float, most: int = 4) -> list[float]:
    """Round values from 0 to at least `top`, at most `most` intervals."""
    if not (math.isfinite(top) and top > 0):
        return [0.0, 1.0]
    step = 10.0 ** math.floor(math.log10(top / most))
    while top / step > most:
        step *= 2.5 if f"{step:e}".startswith("2") else 2.0
    return [i * step for i in range(math.ceil(top / step - 1e-9) + 1)]


def log_ticks(low: float, high: float = 1.0) -> list[float]:
    """1, 2, 5 in every decade from below `low` to `high`; only the decades where that is more than six values."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    fine = [digit * 10.0**power for power in range(first, last + 1) for digit in (1, 2, 5)]
    start = max((tick for tick in fine if tick <= low * 1.001), default=fine[0])
    fine = [tick for tick in fine if start * 0.999 <= tick <= high * 1.001]
    if len(fine) <= 6:
        return fine
    stride = max(1, math.ceil((last - first) / 5))
    return [10.0**power for power in range(last, first - 1, -stride)][::-1]


def polyline(points: Sequence[tuple[float, float]], css: str, tip: str = "") -> str:
    """Open line through `points` (pixels), with a tooltip."""
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return f'<path class="{css}" d="{path}">{_tip(tip)}</path>'


def _tip(text: str) -> str:
    return f"<title>{escape(text)}</title>" if text else ""


def short(value: float) -> str:
    """Tick label: no trailing zeros, no exponent between 0.001 and 99999."""
    if 1e3 <= abs(value) < 1e5:
        return f"{value:.0f}"
    return f"{value:.3g}" if value == 0 or 1e-3 <= abs(value) < 1e3 else f"{value:.0e}".replace("e-0", "e-")


@dataclass(slots=True)
class Frame:
    """Axes of one chart, in pixels of the viewBox, and the marks drawn so far.

    `x` and `y` are (low, high) in data units; `log_y` and `log_x` choose the scale.
    """

    x: tuple[float, float]
    y: tuple[float, float]
    width: float = 270
    height: float = 150
    left: float = 38
    right: float = 8
    top: float = 8
    bottom: float = 20
    log_y: bool = False
    log_x: bool = False
    parts: list[str] = field(default_factory=list)

    def px(self, value: float) -> float:
        """Horizontal pixel of a data value."""
        share = _share(value, self.x, self.log_x)
        return self.left + share * (self.width - self.left - self.right)

    def py(self, value: float) -> float:
        """Vertical pixel of a data value."""
        return self.height - self.bottom - _share(value, self.y, self.log_y) * (self.height - self.top - self.bottom)

    def y_axis(self, ticks: Sequence[float], label: Callable[[float], str] = short) -> None:
        """Horizontal grid lines with labels."""
        end = self.width - self.right
        for tick in ticks:
            y = self.py(tick)
            self.parts.append(f'<path class="grid" d="M{self.left:g} {y:.1f}H{end:g}"/>')
            self.parts.append(f'<text class="t e" x="{self.left - 5:g}" y="{y + 3.5:.1f}">{escape(label(tick))}</text>')

    def x_axis(self, ticks: Sequence[tuple[float, str]]) -> None:
        """Labels under the chart; the first and last keep inside it."""
        for i, (tick, label) in enumerate(ticks):
            anchor = "s" if i == 0 and len(ticks) > 1 else "e" if i == len(ticks) - 1 and len(ticks) > 1 else "m"
            place = f'x="{self.px(tick):.1f}" y="{self.height - self.bottom + 14:.1f}"'
            self.parts.append(f'<text class="t {anchor}" {place}>{escape(label)}</text>')

    def line(self, points: Sequence[tuple[float, float]], css: str, tip: str = "") -> None:
        """Line through data points."""
        if len(points) > 1:
            self.parts.append(polyline([(self.px(x), self.py(y)) for x, y in points], css, tip))

    def dot(self, x: float, y: float, css: str, tip: str = "", radius: float = 2.8) -> None:
        """Circle at a data point."""
        place = f'cx="{self.px(x):.1f}" cy="{self.py(y):.1f}" r="{radius:g}"'
        self.parts.append(f'<circle class="{css}" {place}>{_tip(tip)}</circle>')

    def bar(self, x: float, span: float, top: float, css: str, tip: str = "") -> None:
        """Bar of data width `span` centred at `x`, from the bottom of the chart to `top`."""
        left, right, y = self.px(x - span / 2), self.px(x + span / 2), self.py(top)
        box = f'x="{left:.1f}" y="{y:.1f}" width="{max(1.0, right - left):.1f}" height="{self.py(self.y[0]) - y:.1f}"'
        self.parts.append(f'<rect class="{css}" {box}>{_tip(tip)}</rect>')

    def rule(self, x: float, css: str, tip: str = "") -> None:
        """Vertical line over the whole height."""
        place = f"M{self.px(x):.1f} {self.top:g}V{self.height - self.bottom:g}"
        self.parts.append(f'<path class="{css}" d="{place}">{_tip(tip)}</path>')

    def level(self, y: float, css: str, tip: str = "") -> None:
        """Horizontal line over the whole width."""
        place = f"M{self.left:g} {self.py(y):.1f}H{self.width - self.right:g}"
        self.parts.append(f'<path class="{css}" d="{place}">{_tip(tip)}</path>')

    def text(self, x: float, y: float, words: str, css: str = "t", *, dx: float = 0.0, dy: float = 0.0) -> None:
        """Words at a data point, moved by (dx, dy) pixels."""
        place = f'x="{self.px(x) + dx:.1f}" y="{self.py(y) + dy:.1f}"'
        self.parts.append(f'<text class="{css}" {place}>{escape(words)}</text>')

    def svg(self, label: str) -> str:
        """The finished drawing; `label` is what a screen reader says."""
        box = f"0 0 {self.width:g} {self.height:g}"
        return f'<svg viewBox="{box}" role="img" aria-label="{escape(label, quote=True)}">{"".join(self.parts)}</svg>'


def _share(value: float, span: tuple[float, float], logarithmic: bool) -> float:
    low, high = span
    if logarithmic:
        value, low, high = (math.log10(max(item, 1e-300)) for item in (value, low, high))
    if high == low:
        return 0.5
    return min(1.0, max(0.0, (value - low) / (high - low)))
