"""Small charts as SVG text: axes, lines, points with intervals, bars. What is drawn is not decided
here, and no file is read.

Colours are names of the style sheet's custom properties (`--positive`), so that one drawing fits
the light and the dark scheme. Every text is escaped. The page's script finds values under the
pointer from `data-x` and `data-y`, which say where the ends of the axes are.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

WIDTH, HEIGHT = 360, 220
LEFT, RIGHT, TOP, BOTTOM = 44.0, 350.0, 24.0, 184.0
"""The plot inside the drawing: room for tick labels and for the two titles of the axes."""
DASHES = ("", "7 3", "2 3", "7 3 2 3", "11 4", "11 3 2 3")

Point = tuple[float, float | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """One axis, from `low` to `high`.

    >>> Axis(title="nats", low=0, high=1).ticks()
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """

    title: str
    low: float
    high: float
    percent: bool = False
    whole: bool = False
    """Ticks are whole numbers."""

    @classmethod
    def around(cls, values: Iterable[float], *, zero: bool = False, **given: object) -> "Axis":
        """Return an axis that shows all values with some room, and 0 where `zero` asks for it."""
        found = [*values, 0.0] if zero else [*values]
        low, high = min(found), max(found)
        room = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
        low = low if zero and low == 0 else low - room
        return cls(low=low, high=high + room, **given)  # type: ignore[arg-type]

    def ticks(self, about: int = 6) -> list[float]:
        """Return round numbers inside the axis: steps of 1, 2 or 5 times a power of ten."""
        raw = max(self.high - self.low, 1e-300) / about
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw * 0.999)
        step = max(1.0, step) if self.whole else step
        first = math.ceil(self.low / step - 1e-9)
        return [round(n * step, 12) for n in range(first, math.floor(self.high / step + 1e-9) + 1)]

    def label(self, value: float) -> str:
        """Return a tick's label.

        >>> Axis(title="", low=0, high=1, percent=True).label(0.5), \
Axis(title="", low=0, high=2e-5).label(1e-5)
        ('50', '1e−5')
        """
        value = 100 * value if self.percent else value
        if abs(value) >= 10_000:
            text = f"{value / 1000:g}k"
        elif 0 < abs(value) < 1e-3:
            text = f"{value:.2g}".replace("e-0", "e-")
        else:
            text = f"{value:g}"
        return text.replace("-", "−")


@dataclass(frozen=True, kw_only=True, slots=True)
class Plane:
    """Two axes on the drawing: from values to places."""

    x: Axis
    y: Axis

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Return the place of a value, in units of the drawing."""
        across = (x - self.x.low) / (self.x.high - self.x.low)
        up = (y - self.y.low) / (self.y.high - self.y.low)
        return LEFT + across * (RIGHT - LEFT), BOTTOM - up * (BOTTOM - TOP)

    def line(
        self, points: Sequence[Point], *, name: str, color: str, dash: str = "", faint: bool = False
    ) -> Markup:
        """Return a curve; a value that is None is a gap."""
        steps, pen = [], "M"
        for x, y in points:
            if y is not None:
                steps.append("{}{:.1f} {:.1f}".format(pen, *self.at(x, y)))
            pen = "L" if y is not None else "M"
        kind = "line faint" if faint else "line"
        return Markup(
            '<path class="{}" data-name="{}" style="stroke:var({})" stroke-dasharray="{}" d="{}"/>'
        ).format(kind, name, color, dash, "".join(steps))

    def point(
        self, x: float, y: float, ends: tuple[float, float] | None, *, says: str, color: str
    ) -> Markup:
        """Return a dot with its interval; `says` is shown under the pointer."""
        px, py = self.at(x, y)
        stroke = Markup("")
        if ends is not None:
            low, high = (self.at(x, end)[1] for end in ends)
            stroke = Markup('<path d="M{:.1f} {:.1f}V{:.1f}"/>').format(px, low, high)
        return Markup(
            '<g class="point" style="color:var({})">{}<circle cx="{:.1f}" cy="{:.1f}" r="4"/>'
            "<title>{}</title></g>"
        ).format(color, stroke, px, py, says)

    def bar(self, low: float, high: float, value: float, *, says: str, color: str) -> Markup:
        """Return a bar from 0 to a value; `says` is shown under the pointer."""
        left, top = self.at(low, value)
        right, bottom = self.at(high, 0)
        return Markup(
            '<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" style="fill:var({})">'
            "<title>{}</title></rect>"
        ).format(left, top, right - left, bottom - top, color, says)

    def draw(self, marks: Iterable[Markup], *, title: str) -> Markup:
        """Return the whole drawing: grid, ticks and titles of the axes, and the marks."""
        parts = []
        for value in self.y.ticks():
            _, y = self.at(self.x.low, value)
            parts.append(
                Markup(
                    '<path d="M{} {:.1f}H{}"/><text x="{}" y="{:.1f}" class="y">{}</text>'
                ).format(LEFT, y, RIGHT, LEFT - 6, y + 4, self.y.label(value))
            )
        for value in self.x.ticks():
            x, _ = self.at(value, self.y.low)
            parts.append(
                Markup('<text x="{:.1f}" y="{}" class="x">{}</text>').format(
                    x, BOTTOM + 16, self.x.label(value)
                )
            )
        return Markup(
            '<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}" '
            'data-x="{:.6g} {:.6g}" data-y="{:.6g} {:.6g}"{}>'
            '<g class="axes">{}<text x="2" y="12">{}</text>'
            '<text x="{}" y="{}" class="y">{}</text></g>{}</svg>'
        ).format(
            WIDTH, HEIGHT, title, self.x.low, self.x.high, self.y.low, self.y.high,
            Markup(' data-percent=""') if self.y.percent else "", Markup("").join(parts),
            self.y.title, RIGHT, HEIGHT - 4, self.x.title, Markup("").join(marks),
        )  # fmt: skip


def smooth(points: Sequence[Point], reach: int) -> list[Point]:
    """Return the running mean over `reach` points on either side; gaps are left out.

    >>> smooth([(1, 0.0), (2, 3.0), (3, None), (4, 6.0)], 1)
    [(1, 1.5), (2, 3.0), (4, 4.5)]
    """
    known = [(x, y) for x, y in points if y is not None]
    parts = (known[max(0, i - reach) : i + reach + 1] for i in range(len(known)))
    return [
        (x, sum(y for _, y in part) / len(part)) for (x, _), part in zip(known, parts, strict=True)
    ]


def thin(points: Sequence[Point], most: int) -> list[Point]:
    """Return about `most` points at most: of each stretch its lowest and its highest value, so that
    no spike is lost.

    >>> thin([(1, 0.0), (2, 9.0), (3, 1.0), (4, 2.0), (5, 2.0), (6, 2.0)], 4)
    [(1, 0.0), (2, 9.0), (4, 2.0)]
    """
    if len(points) <= most:
        return list(points)
    size = math.ceil(2 * len(points) / most)
    kept: list[Point] = []
    for start in range(0, len(points), size):
        part = points[start : start + size]
        known = [(y, x) for x, y in part if y is not None]
        if known:
            ends = {min(known, key=lambda p: p[0]), max(known, key=lambda p: p[0])}
            kept += sorted((x, y) for y, x in ends)
        else:
            kept.append((part[0][0], None))
    return kept
