"""docs/img/overview.svg: the loop of a route, beside quality against cost from README's table."""

from __future__ import annotations

import re
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 1000, 380
INK, MUTED, ACCENT, FILL = "#1f2933", "#7b8794", "#0b6bcb", "#eef4fb"
PLOT_LEFT, PLOT_RIGHT, PLOT_TOP, PLOT_BOTTOM = 640, 970, 60, 310
TICKS = (0, 25, 50, 75, 100)  # percent, on both axes
ROW = re.compile(r"^\| *(?P<policy>[^|]+?) *\| *\**(?P<quality>[\d.]+)\** *\| *(?P<share>\d+)% *\|")


@dataclass(frozen=True)
class Point:
    """A row of the table: quality in [0, 1], and the parameters called, in percent of all."""

    policy: str
    quality: float
    share: float

    @property
    def x(self) -> float:
        return PLOT_LEFT + (PLOT_RIGHT - PLOT_LEFT) * self.share / 100

    @property
    def y(self) -> float:
        return PLOT_BOTTOM - (PLOT_BOTTOM - PLOT_TOP) * self.quality


def points_of(readme: str) -> list[Point]:
    """The rows of README's first table. Raises ValueError when none can be read."""
    points = []
    for line in readme.splitlines():
        match = ROW.match(line)
        if match:
            name = re.split(r"[,:(]", match["policy"].replace("*", ""))[0].strip()
            points.append(Point(name, float(match["quality"]), float(match["share"])))
        elif points:
            break  # the table has ended
    if not points:
        raise ValueError("README.md: no row '| policy | quality | share% |' in it")
    return points


def overview_svg(readme: str) -> str:
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"'
        ' font-family="Helvetica, Arial, sans-serif" font-size="14">',
        "<title>A question's route through the experts, and quality against cost</title>",
        '<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7"'
        f' markerHeight="7" orient="auto"><path d="M0 0L10 5L0 10z" fill="{INK}"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        *_loop(),
        *_axes(),
    ]
    for point in points_of(readme):
        parts.extend(_mark(point))
    return "\n".join([*parts, "</svg>", ""])


def _loop() -> list[str]:
    """The left half: question, agent, experts, Terminator, answer."""
    return [
        _text(290, 30, "One question's route", weight="bold"),
        _box(15, 95, 100, 50, "question"),
        _box(170, 85, 150, 70, "DER agent", "picks an expert"),
        _box(400, 55, 150, 36, "expert 1"),
        _box(400, 102, 150, 36, "expert 2", strong=True),
        _text(475, 158, "..."),
        _box(400, 168, 150, 36, "expert N"),
        _box(400, 275, 150, 60, "Terminator", "good enough?"),
        _box(15, 280, 100, 50, "answer"),
        _arrow("M115 120H168"),
        _arrow("M320 120H398"),
        _arrow("M475 204V273"),
        _text(482, 245, "new answer", anchor="start", colour=MUTED),
        _arrow("M400 290H245V157"),
        _text(322, 262, "no: the next expert", colour=MUTED),
        _text(322, 279, "also sees this answer", colour=MUTED),
        _arrow("M400 320H117"),
        _text(250, 340, "yes, or no calls left", colour=MUTED),
    ]


def _axes() -> list[str]:
    parts = [
        _text((PLOT_LEFT + PLOT_RIGHT) / 2, 30, "Embedded test bed, 681 questions", weight="bold"),
        f'<path d="M{PLOT_LEFT} {PLOT_TOP}V{PLOT_BOTTOM}H{PLOT_RIGHT}" fill="none"'
        f' stroke="{MUTED}"/>',
        _text((PLOT_LEFT + PLOT_RIGHT) / 2, 355, "parameters called, share of asking all experts"),
        f'<g transform="translate(596 {(PLOT_TOP + PLOT_BOTTOM) / 2}) rotate(-90)">'
        + _text(0, 0, "quality")
        + "</g>",
    ]
    for tick in TICKS:
        at = Point("", tick / 100, tick)
        parts.append(_text(at.x, PLOT_BOTTOM + 20, f"{tick}%", colour=MUTED))
        parts.append(_text(PLOT_LEFT - 8, at.y + 5, f"{tick / 100:g}", "end", MUTED))
    return parts


def _mark(point: Point) -> list[str]:
    """A dot and its label; the label stands on the side where there is room."""
    is_ours = point.policy.startswith("DER")
    colour = ACCENT if is_ours else INK
    anchor, offset = ("start", 10) if point.share < 50 else ("end", 5)
    shift = 5 if point.share < 50 else -12
    if is_ours:
        shift = -6
    return [
        f'<circle cx="{point.x:.1f}" cy="{point.y:.1f}" r="{7 if is_ours else 5}"'
        f' fill="{colour}"/>',
        _text(point.x + offset, point.y + shift, point.policy, anchor, colour),
    ]


def _text(
    x: float,
    y: float,
    words: str,
    anchor: str = "middle",
    colour: str = INK,
    weight: str = "normal",
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}"'
        f' font-weight="{weight}">{escape(words)}</text>'
    )


def _box(
    x: int, y: int, width: int, height: int, title: str, note: str = "", *, strong: bool = False
) -> str:
    """A rounded box with a title, and a second line below it where there is a note."""
    stroke = ACCENT if strong else INK
    middle = y + height / 2 + 5
    frame = (
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="8" fill="{FILL}"'
        f' stroke="{stroke}" stroke-width="{3 if strong else 1}"/>'
    )
    if not note:
        return frame + _text(x + width / 2, middle, title)
    first = _text(x + width / 2, middle - 10, title, weight="bold")
    return frame + first + _text(x + width / 2, middle + 10, note, colour=MUTED)


def _arrow(path: str) -> str:
    return (
        f'<path d="{path}" fill="none" stroke="{INK}" stroke-width="1.5" marker-end="url(#tip)"/>'
    )
