"""Charts of the dashboard as SVG: pure functions of plain values, without script or inline style.

Widths and heights are SVG attributes, colours are classes of static/style.css. Words stand in HTML
beside the shapes, so that a chart may be stretched. Whatever comes from a journal is escaped.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final

from markupsafe import Markup, escape

Points = Sequence[tuple[float, float]]
"""(x, y), ascending in x."""

_RING: Final = "M10 6A4 4 0 1 1 2 6A4 4 0 0 1 10 6"
_CHECK: Final = "M2 6.2l2.8 2.8L10 3.2"
_PAUSE: Final = "M4 2.5v7M8 2.5v7"
_PERSON: Final = "M6 1.5a1.9 1.9 0 1 0 .01 0zM2 10.4a4 4 0 0 1 8 0z"
SHAPES: Final[Mapping[str, tuple[str, str]]] = {
    "planned": ("M2.5 2.5h7v7h-7z", ""),
    "uploading": ("", "M6 2l4 4H7.5v4h-3V6H2z"),
    "uploaded": ("", "M2 2h8v2H2zM6 5l3 3H7v2H5V8H3z"),
    "submitting": ("", "M2 2l8 4-8 4 2-4z"),
    "submitted": (f"{_RING}M6 3.6V6l1.8 1", ""),
    "ready": ("", "M6 10L2 6h2.5V2h3v4H10z"),
    "collected": ("", "M2 8h8v2H2zM6 7L3 4h2V2h2v2h2z"),
    "published": (_CHECK, ""),
    "failed": ("M2.6 2.6l6.8 6.8M9.4 2.6L2.6 9.4", ""),
    "expired": ("M3 2h6L6 6zM6 6l3 4H3z", ""),
    "cancelled": (f"{_RING}M3.3 8.7l5.4-5.4", ""),
    "quarantined": ("M6 1.8l4.4 8H1.6zM6 4.8v2.2M6 8.2v.5", ""),
    "split": ("M6 10V6M6 6L2.5 2.5M6 6l3.5-3.5", ""),
    "held": (_PAUSE, ""),
    "person": ("", _PERSON),
    "planning": ("M2 3h8M2 6h8M2 9h4", ""),
    "running": ("", "M3 2l7 4-7 4z"),
    "parked": (_PAUSE, ""),
    "needs_person": ("", _PERSON),
    "over_budget": (
        "M8.6 3.6C7 2 4 2.4 4 4.3c0 2.1 4.2 1.2 4.2 3.5C8.2 9.8 4.6 10 3.4 8.4M6 1v10",
        "",
    ),
    "completed": (_CHECK, ""),
    "completed_with_failures": ("M1.4 6.2L4 8.8l3.4-4.4M9.8 2.4v4.2M9.8 8.6v.4", ""),
    "unattended": (f"{_RING}M6 3.6v3M6 8.2v.3", ""),
    "alive": ("", "M6 3a3 3 0 1 0 .01 0z"),
    "lost": ("M6 3a3 3 0 1 0 .01 0z", ""),
    "stopped": ("", "M3 3h6v6H3z"),
}
"""A sign for every state, in a square of 12, as lines and as a filled shape: no state is told by
its colour alone."""

TILES: Final[Mapping[str, str]] = {
    "planned": "M.3 .3h.4v.4h-.4z",
    "uploading": "M.5 .2L.8 .6H.2z",
    "uploaded": "M.2 .25h.6v.2H.2z",
    "submitting": "M.25 .2L.8 .5 .25 .8z",
    "submitted": "M.5 .34a.16 .16 0 1 0 .01 0z",
    "ready": "M.5 .8L.2 .4h.6z",
    "collected": "M.2 .55h.6v.2H.2z",
    "published": "",
    "failed": "M.2 .3l.1-.1 .2 .2 .2-.2 .1 .1-.2 .2 .2 .2-.1 .1-.2-.2-.2 .2-.1-.1 .2-.2z",
    "expired": "M.2 .2h.6L.5 .5zM.5 .5L.8 .8H.2z",
    "cancelled": "M.2 .42h.6v.16H.2z",
    "quarantined": "M.2 .2h.6v.6H.2zM.35 .35v.3h.3v-.3z",
    "split": "M.45 .15h.1v.7h-.1z",
    "held": "M.28 .2h.14v.6H.28zM.58 .2h.14v.6H.58z",
    "person": "M.42 .15h.16v.42H.42zM.42 .68h.16v.16H.42z",
}
"""What marks a cell of the grid, in a square of 1."""

_ACROSS: Final = ((250, 25), (1_000, 50), (4_000, 100))
_MOST_ACROSS: Final = 160
_CHART: Final = 100.0
"""Charts are drawn in a square of this size and stretched."""
_SIGNED: Final[Mapping[str, str]] = {"returning": "ready", "sending": "uploading"}
"""Layers that gather several states bear the sign of one."""
_SIGNS_AT: Final = 0.96
"""Where on the way from left to right the signs of a chart stand …"""
_LEAST_SIGNED: Final = 0.1
"""… in bands of at least this share of its height."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One layer of a stacked chart."""

    name: str
    """Also its class: "published"."""
    words: str
    values: Sequence[float]


def glyph(state: str, *, blocked: str | None = None) -> Markup:
    """The sign of a state, 12 pixels high; empty for a state without one."""
    drawn = _shape(cell_look(state, blocked))
    return Markup(  # noqa: S704 # made of constants
        f'<svg class="glyph" viewBox="0 0 12 12" aria-hidden="true" focusable="false">{drawn}</svg>'
    )


def cell_look(state: str, blocked: str | None) -> str:
    """How a batch is shown: its state, or "person" or "held" where it is blocked."""
    if blocked is None:
        return state
    return "person" if blocked == "person" else "held"


def columns(count: int) -> int:
    """Cells beside one another in a grid of `count`."""
    return next((across for most, across in _ACROSS if count <= most), _MOST_ACROSS)


def batch_grid(looks: Sequence[str], *, label: str) -> Markup:
    """A cell for each look, in rows of `columns(len(looks))`; "" leaves its place free.

    Each look is one path of strokes, equal neighbours being one stroke, and a tile of its own.
    """
    across = columns(len(looks))
    down = -(-len(looks) // across)
    strokes: dict[str, list[str]] = {}
    for look, x, y, length in _strokes(looks, across):
        strokes.setdefault(look, []).append(f"M{x} {y}h{length}")
    defs = "".join(_tile(look) for look in strokes)
    paths = "".join(
        f'<path class="run" stroke="url(#tile-{look})" d="{"".join(moves)}"/>'
        for look, moves in strokes.items()
    )
    return Markup(  # noqa: S704 # looks are checked against TILES, the label is escaped
        f'<svg class="cells across-{across}" viewBox="0 -.5 {across} {down}" role="img" '
        f'aria-label="{escape(label)}"><defs>{defs}</defs>{paths}</svg>'
    )


def run_lengths(looks: Sequence[str]) -> str:
    """Looks as "published*120 submitted*3", which a page can hold for 10,000 batches."""
    return " ".join(f"{look}*{len(list(group))}" for look, group in groupby(looks))


def ranges(looks: Sequence[str], *, first: int = 1, each: int = 1) -> list[tuple[str, int, int]]:
    """Equal neighbours as (look, first number, last number): the grid in words.

    The first cell begins with number `first`; a cell stands for `each` numbers.
    """
    found, start = [], first
    for look, group in groupby(looks):
        length = each * len(list(group))
        found.append((look, start, start + length - 1))
        start += length
    return found


def _strokes(looks: Sequence[str], across: int) -> Iterator[tuple[str, int, int, int]]:
    for y, start in enumerate(range(0, len(looks), across)):
        x = 0
        for look, group in groupby(looks[start : start + across]):
            length = len(list(group))
            if look:
                yield look if look in TILES else "planned", x, y, length
            x += length


def _tile(look: str) -> str:
    mark = TILES[look]
    drawn = f'<path class="mark" d="{mark}"/>' if mark else ""
    return (
        f'<pattern id="tile-{look}" class="look-{look}" width="1" height="1" y="-.5" '
        f'patternUnits="userSpaceOnUse">'
        f'<rect class="body" x=".06" y=".06" width=".88" height=".88" rx=".14"/>{drawn}</pattern>'
    )


def swatch(look: str) -> Markup:
    """One cell of the grid alone, for its legend."""
    mark = TILES.get(look, "")
    drawn = f'<path class="mark" d="{mark}"/>' if mark else ""
    return Markup(  # noqa: S704 # made of constants, an unknown look has no tile
        f'<svg class="swatch look-{look if look in TILES else "planned"}" viewBox="0 0 1 1" '
        f'aria-hidden="true" focusable="false"><rect class="body" x=".03" y=".03" width=".94" '
        f'height=".94" rx=".14"/>{drawn}</svg>'
    )


def bar(parts: Sequence[tuple[str, float]], *, label: str, now: float | None = None) -> Markup:
    """A bar of parts (class, share 0..1), from the left; a progress bar where `now` is a share."""
    left, drawn = 0.0, []
    for name, share in parts:
        width = 100.0 * max(0.0, min(share, 1.0 - left / 100.0))
        if width > 0.0:
            drawn.append(
                f'<rect class="part-{escape(name)}" x="{_n(left)}%" y="0" '
                f'width="{_n(width)}%" height="100%"/>'
            )
        left += width
    role = "img" if now is None else "progressbar"
    value = (
        ""
        if now is None
        else f' aria-valuemin="0" aria-valuemax="100" aria-valuenow="{_n(100 * now)}"'
    )
    return Markup(  # noqa: S704 # numbers, and escaped words
        f'<svg class="bar" role="{role}"{value} aria-label="{escape(label)}">{"".join(drawn)}</svg>'
    )


def sparkline(values: Sequence[float], *, label: str) -> Markup:
    """The course of a rate, without axes; empty for fewer than two values."""
    if len(values) < 2:
        return Markup("")
    top = max(values) or 1.0
    points = [
        (_CHART * at / (len(values) - 1), _CHART - 92.0 * value / top - 4.0)
        for at, value in enumerate(values)
    ]
    line = _path(points)
    return Markup(  # noqa: S704 # numbers, and escaped words
        f'<svg class="spark" viewBox="0 0 100 100" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(label)}"><path class="under" d="{line}V100H0z"/>'
        f'<path class="line" d="{line}"/></svg>'
    )


def stacked(layers: Sequence[Series], *, total: float, label: str) -> Markup:
    """Layers of values at equal steps, the first at the bottom, on a chart `total` high.

    The band of each layer bears its sign where it is wide enough at the end.
    """
    steps = len(layers[0].values) if layers else 0
    if steps < 2 or total <= 0:
        return Markup("")
    width = _CHART / (steps - 1)
    below, drawn, signs = [0.0] * steps, [], []
    for layer in layers:
        above = [low + value for low, value in zip(below, layer.values, strict=True)]
        if any(layer.values):
            upper = [(at * width, _y(value, total)) for at, value in enumerate(above)]
            lower = [(at * width, _y(value, total)) for at, value in enumerate(below)]
            back = _path(lower[::-1]).replace("M", "L", 1)
            drawn.append(
                f'<path class="area look-{escape(layer.name)}" d="{_path(upper)}{back}z"/>'
                f'<path class="edge look-{escape(layer.name)}" d="{_path(upper)}"/>'
            )
            at = round(_SIGNS_AT * (steps - 1))
            if layer.values[at] > _LEAST_SIGNED * total:
                middle = _y((below[at] + above[at]) / 2, total)
                signs.append((layer.name, middle))
        below = above
    return _chart("stacked", "".join(drawn), label, "".join(_sign(*one) for one in signs))


def height(layers: Sequence[Series]) -> float:
    """The most that the layers come to together."""
    return max((sum(at) for at in zip(*(layer.values for layer in layers), strict=True)), default=0)


def key(name: str) -> Markup:
    """A piece of a layer with its sign, for the legend of a stacked chart."""
    return Markup(  # noqa: S704 # constants, and an escaped name
        f'<svg class="swatch band look-{escape(name)}" viewBox="0 0 16 16" aria-hidden="true" '
        f'focusable="false"><rect class="area" width="16" height="16" rx="3"/>'
        f'<svg class="sign" x="2" y="2" width="12" height="12" viewBox="0 0 12 12">{_shape(name)}'
        f"</svg></svg>"
    )


def burn(values: Sequence[float], *, top: float, cap: float | None, label: str) -> Markup:
    """Dollars spent at equal steps of time, against the cap, on a chart `top` dollars high."""
    if len(values) < 2 or top <= 0:
        return Markup("")
    width = _CHART / (len(values) - 1)
    line = _path([(at * width, _y(value, top)) for at, value in enumerate(values)])
    drawn = f'<path class="under" d="{line}V100H0z"/><path class="line" d="{line}"/>'
    if cap is not None and cap <= top:
        drawn += f'<path class="cap" d="M0 {_n(_y(cap, top))}H100"/>'
    return _chart("burn", drawn, label)


def scale(
    value: float, *, low: float, high: float, mark: float | None, label: str, look: str = ""
) -> Markup:
    """A value on a scale from `low` to `high`, with a mark at a limit."""
    span = (high - low) or 1.0

    def place(one: float) -> str:
        return _n(100.0 * max(0.0, min(1.0, (one - low) / span)))

    limit = (
        ""
        if mark is None
        else f'<rect class="limit" x="{place(mark)}%" y="0" width="2" height="100%"/>'
    )
    return Markup(  # noqa: S704 # numbers, and escaped words
        f'<svg class="scale {escape(look)}" role="img" aria-label="{escape(label)}">'
        f'<rect class="value" width="{place(value)}%" y="25%" height="50%"/>{limit}</svg>'
    )


def _chart(kind: str, drawn: str, label: str, signs: str = "") -> Markup:
    lines = "".join(f'<path class="rule" d="M0 {y}H100"/>' for y in (25, 50, 75))
    return Markup(  # noqa: S704 # numbers and constants, and an escaped label
        f'<svg class="chart {kind}" role="img" aria-label="{escape(label)}">'
        f'<svg width="100%" height="100%" viewBox="0 0 100 100" preserveAspectRatio="none">'
        f"{lines}{drawn}</svg>{signs}</svg>"
    )


def _sign(name: str, y: float) -> str:
    return (
        f'<svg x="{_n(100 * _SIGNS_AT)}%" y="{_n(y)}%" overflow="visible">'
        f'<svg class="sign look-{escape(name)}" x="-8" y="-8" width="16" height="16" '
        f'viewBox="0 0 12 12">{_shape(name)}'
        f"</svg></svg>"
    )


def _shape(name: str) -> str:
    lines, filled = SHAPES.get(_SIGNED.get(name, name), ("", ""))
    drawn = f'<path class="line" d="{lines}"/>' if lines else ""
    return drawn + (f'<path d="{filled}"/>' if filled else "")


def _y(value: float, top: float) -> float:
    return _CHART - _CHART * max(0.0, min(1.0, value / top))


def _path(points: Points) -> str:
    """Points as the data of a path; runs of equal height are one line."""
    kept = [
        point
        for at, point in enumerate(points)
        if at in (0, len(points) - 1) or not points[at - 1][1] == point[1] == points[at + 1][1]
    ]
    return "M" + "L".join(f"{_n(x)} {_n(y)}" for x, y in kept)


def _n(value: float) -> str:
    """A number of at most two decimals, as short as it goes."""
    return f"{value:.2f}".rstrip("0").rstrip(".") or "0"
