"""Plots as SVG text, without a plotting library: bars with intervals, and points."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from math import floor, log10

WIDTH = 860
COLOURS = ("#2563a8", "#d97b29", "#3f9155", "#a23b72", "#6b6b6b")
INK, FAINT = "#222222", "#dddddd"


@dataclass(frozen=True)
class Bar:
    """One bar: its label, length, and the half-width of its interval; ``group`` colours it."""

    label: str
    value: float
    error: float | None = None
    group: str = ""


@dataclass(frozen=True)
class Point:
    """One mark; ``strong`` ones are drawn larger and on top."""

    x: float
    y: float
    group: str = ""
    strong: bool = False


def bars(title: str, axis: str, rows: Sequence[Bar]) -> str:
    """Horizontal bars in the order given, each with its label above and its value at its end, and a legend."""
    left, top, pitch = 16, 74, 40
    height = top + pitch * len(rows) + 52
    limit = max(row.value + (row.error or 0.0) for row in rows)
    steps = ticks(limit)
    scale = (WIDTH - 2 * left - 90) / max(limit, steps[-1])
    colours = _colours([row.group for row in rows])
    parts = [_text(left, 26, title, size=16, weight="bold")]
    base = top + pitch * len(rows) + 8
    for step in steps:
        parts.append(_line(left + step * scale, top - 6, left + step * scale, base, FAINT))
        parts.append(_text(left + step * scale, base + 16, amount(step), anchor="middle", size=12))
    parts.append(_text(left, base + 36, axis, size=12))
    for i, row in enumerate(rows):
        y, length = top + pitch * i, row.value * scale
        parts.append(_text(left, y + 11, row.label, size=13))
        parts.append(f'<rect x="{left}" y="{y + 16}" width="{length:.1f}" height="14" fill="{colours[row.group]}"/>')
        end = left + length
        if row.error is not None:
            low, end = left + (row.value - row.error) * scale, left + (row.value + row.error) * scale
            parts.append(_line(low, y + 23, end, y + 23, INK))
        parts.append(_text(end + 8, y + 28, amount(row.value), size=13))
    parts += _legend(colours)
    return _svg(height, parts)


def points(title: str, across: str, up: str, marks: Sequence[Point]) -> str:
    """A cloud of points, both axes from zero, with a legend of the groups."""
    left, right, top, bottom = 78, WIDTH - 20, 74, 430
    columns, rows = ticks(max(mark.x for mark in marks)), ticks(max(mark.y for mark in marks))
    wide = 1.04 * max(*(mark.x for mark in marks), columns[-1])
    high = 1.04 * max(*(mark.y for mark in marks), rows[-1])
    colours = _colours([mark.group for mark in marks])

    def place(x: float, y: float) -> tuple[float, float]:
        return left + x / wide * (right - left), bottom - y / high * (bottom - top)

    parts = [_text(16, 26, title, size=16, weight="bold"), _text(16, 62, up, size=12)]
    for step in columns:
        x, y = place(step, 0)
        parts += [_line(x, top, x, y, FAINT), _text(x, y + 18, amount(step), anchor="middle", size=12)]
    for step in rows:
        x, y = place(0, step)
        parts += [_line(x, y, right, y, FAINT), _text(x - 8, y + 4, amount(step), anchor="end", size=12)]
    parts.append(_text(right, bottom + 38, across, anchor="end", size=12))
    for mark in sorted(marks, key=lambda mark: mark.strong):
        x, y = place(mark.x, mark.y)
        size, edge = (6, INK) if mark.strong else (3.5, "none")
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size}" fill="{colours[mark.group]}" stroke="{edge}"'
            f' fill-opacity="{0.9 if mark.strong else 0.55}"/>'
        )
    parts += _legend(colours)
    return _svg(bottom + 52, parts)


def ticks(limit: float) -> list[float]:
    """Four to eight round values from zero to no further than ``limit``, which is positive."""
    magnitude = 10.0 ** floor(log10(limit))
    step = next(s * magnitude for s in (0.1, 0.2, 0.25, 0.5, 1.0, 2.0) if limit / (s * magnitude) < 8)
    return [i * step for i in range(int(limit / step + 1e-9) + 1)]


def amount(value: float) -> str:
    """Four significant digits at most: 2.45 M, 330 k, 12.5."""
    for size, unit in ((1e6, " M"), (1e3, " k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{unit}"
    return f"{value:.4g}"


def _legend(colours: dict[str, str]) -> Iterator[str]:
    x = 16.0
    for group, colour in colours.items():
        if group:
            yield f'<circle cx="{x + 5:.1f}" cy="41" r="5" fill="{colour}"/>'
            yield _text(x + 15, 45, group, size=12)
            x += 30 + 7 * len(group)


def _colours(groups: Sequence[str]) -> dict[str, str]:
    names = sorted(set(groups))
    return {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}


def _text(x: float, y: float, text: str, size: int = 13, *, anchor: str = "start", weight: str = "normal") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" font-weight="{weight}"'
        f' fill="{INK}">{escape(text)}</text>'
    )


def _line(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"/>'


def _svg(height: float, parts: Sequence[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}"'
    body = "\n".join(parts)
    paper = '<rect width="100%" height="100%" fill="white"/>'
    return f'{head} font-family="system-ui, sans-serif">\n{paper}\n{body}\n</svg>\n'
