"""docs/img/overview.svg: the loop of a route, beside quality against cost from README's tables."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 1240, 380
INK, MUTED, ACCENT, FILL = "#1f2933", "#7b8794", "#0b6bcb", "#eef4fb"
PLOT_LEFTS = (645, 975)
PLOT_WIDTH, PLOT_TOP, PLOT_BOTTOM = 240, 60, 310
MARGIN, LETTER, LINE = 40, 7.5, 17  # room beside a plot; width and height of a letter
SHARES = (0, 50, 100)  # percent, along the bottom
HEADER = re.compile(r"^\| *(?P<title>[^|]+?) *\| *quality *\| *parameters called *\|$")
ROW = re.compile(
    r"^\| *(?P<policy>[^|]+?) *\| *\**(?P<quality>[\d.]+)%\** *\| *(?P<share>\d+)% *\|$"
)


@dataclass(frozen=True)
class Point:
    """A row of a table: quality, and the parameters called of all experts', both in percent."""

    quality: float
    share: float


@dataclass(frozen=True)
class Plot:
    """A table of README: its title up to the colon, and each policy's points.

    A policy's name ends at the first comma, colon or bracket; rows of one name are one policy.
    """

    title: str
    points: dict[str, list[Point]]

    @property
    def ticks(self) -> range:
        """Quality along the left side, in tens of percent."""
        every = [point.quality for points in self.points.values() for point in points]
        return range(math.floor(min(every) / 10) * 10, math.ceil(max(every) / 10) * 10 + 1, 10)


def plots_of(readme: str) -> list[Plot]:
    """The tables of README with the columns of HEADER. Raises ValueError unless there are two."""
    plots: list[Plot] = []
    in_table = False
    for line in readme.splitlines():
        if header := HEADER.match(line):
            plots.append(Plot(header["title"].split(":")[0], {}))
            in_table = True
        elif in_table and (row := ROW.match(line)):
            name = re.split(r"[,:(]", row["policy"].replace("*", ""))[0].strip()
            point = Point(float(row["quality"]), float(row["share"]))
            plots[-1].points.setdefault(name, []).append(point)
        elif not line.startswith("|"):
            in_table = False
    if len(plots) != len(PLOT_LEFTS) or not all(plot.points for plot in plots):
        raise ValueError("README.md: expected two tables '| ... | quality | parameters called |'")
    return plots


def overview_svg(readme: str) -> str:
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"'
        ' font-family="Helvetica, Arial, sans-serif" font-size="15">',
        "<title>A question's route through the experts, and quality against cost</title>",
        '<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7"'
        f' markerHeight="7" orient="auto"><path d="M0 0L10 5L0 10z" fill="{INK}"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        *_loop(),
    ]
    for left, plot in zip(PLOT_LEFTS, plots_of(readme), strict=True):
        parts.extend(_draw(plot, left))
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


def _draw(plot: Plot, left: int) -> list[str]:
    """A plot with its axes; DER is drawn last, above the others."""
    ticks = plot.ticks
    middle = left + PLOT_WIDTH / 2

    def place(point: Point) -> tuple[float, float]:
        above = (point.quality - ticks[0]) / (ticks[-1] - ticks[0])
        return (
            left + PLOT_WIDTH * point.share / 100,
            PLOT_BOTTOM - (PLOT_BOTTOM - PLOT_TOP) * above,
        )

    parts = [
        _text(middle, 30, plot.title, weight="bold"),
        f'<path d="M{left} {PLOT_TOP}V{PLOT_BOTTOM}h{PLOT_WIDTH}" fill="none" stroke="{MUTED}"/>',
        _text(middle, 358, "parameters called, of all experts'", colour=MUTED),
        _text(left, PLOT_TOP - 10, "quality", colour=MUTED),
    ]
    for quality in ticks:
        x, y = place(Point(quality, 0))
        parts.append(_text(x - 8, y + 5, f"{quality}%", "end", MUTED))
    for share in SHARES:
        x, y = place(Point(ticks[0], share))
        parts.append(_text(x, y + 20, f"{share}%", colour=MUTED))
    curves = {name: sorted(map(place, points)) for name, points in plot.points.items()}
    label_y = 0.0
    for name in sorted(curves, key=lambda name: (_is_ours(name), curves[name][-1][1])):
        last_y = curves[name][-1][1]
        label_y = last_y - 8 if _is_ours(name) else max(last_y + 18, label_y + LINE)
        parts.extend(_curve(name, curves[name], label_y, left + PLOT_WIDTH + MARGIN))
    return parts


def _is_ours(name: str) -> bool:
    return name.startswith("DER")


def _curve(
    name: str, corners: Sequence[tuple[float, float]], label_y: float, limit: float
) -> list[str]:
    """A policy's dots, joined, with its name beside the last, on the left where `limit` is near."""
    colour = ACCENT if _is_ours(name) else INK
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in corners)
    parts = [f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>']
    for x, y in corners:
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{colour}"/>')
    x = corners[-1][0]
    if x + LETTER * len(name) < limit:
        parts.append(_text(x + 8, label_y, name, "start", colour))
    else:
        parts.append(_text(x + 6, label_y, name, "end", colour))
    return parts


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
