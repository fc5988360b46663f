"""Charts as SVG of a page: lines, bars, and maps of attention weights.

They are drawn here and not by a plotting library: as part of the page they take
its colours, light or dark, and its fonts; every point can say its value; and
they need no `style` attribute, which the page's policy forbids.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from seq2seq_jax.reporting.markup import Element, element
from seq2seq_jax.wording import figures

WIDTH, HEIGHT = 360, 200
LEFT, RIGHT, TOP, BOTTOM = 48, 8, 8, 34
NUM_COLOURS = 10  # of the style sheet; further series have them again, with other dashes
MOST_POINTS = 400
MOST_MARKED = 60  # points that are drawn as such, and say their values
LOGARITHMIC = 100  # of values as far apart
CELL, LETTER = 18, 7.2  # pixels of a map
LONGEST_LABEL = 16  # characters


class Series(NamedTuple):
    """A line of a chart.

    Attributes:
      name: of the legend.
      points: abscissa, not negative, and value of each, from left to right; None where there is no number.
      number: of its colour.
      minor: whether it is drawn thin, beside a line of interest; of many lines the legend names the others alone.
    """

    name: str
    points: Sequence[tuple[float, float | None]]
    number: int = 0
    minor: bool = False


class Bar(NamedTuple):
    """A bar of a chart: its value, the ends of its interval where there is one, and what it says of itself."""

    value: float
    interval: tuple[float, float] | None
    label: str


class Scale(NamedTuple):
    """An axis: the values at its ends, the coordinates of these, and whether it is logarithmic."""

    low: float
    high: float
    start: float
    stop: float
    logarithmic: bool = False

    def place(self, value: float) -> float:
        """The coordinate of a value."""
        low, high, value = (map(math.log, (self.low, self.high, value))) if self.logarithmic else (*self[:2], value)
        return round(self.start + (self.stop - self.start) * (value - low) / (high - low), 1)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Returns about `count` round numbers from `low` to `high`: multiples of 1, 2 or 5 times a power of ten."""
    if not low < high:
        return [low]
    rough = (high - low) / count
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
    return [step * number for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def tick_labels(values: Sequence[float]) -> list[str]:
    """Returns ticks as text, with as many digits as tell them apart."""
    found = [figures(value) for value in values]
    if len(set(found)) == len(found):
        return found
    step = min(second - first for first, second in pairwise(values))
    return [f"{value:,.{max(0, -math.floor(math.log10(step) + 1e-9))}f}" for value in values]


def powers(low: float, high: float) -> list[float]:
    """Returns the powers of ten from `low` to `high`, and where they are less than three, 2 and 5 times these too."""
    exponents = range(math.floor(math.log10(low)), math.floor(math.log10(high)) + 1)
    for factors in ((1,), (1, 2, 5)):
        found = [factor * 10.0**exponent for exponent in exponents for factor in factors]
        found = [value for value in found if low <= value <= high]
        if len(found) > 2:
            break
    return found


def thinned(points: Sequence[tuple[float, float | None]], most: int = MOST_POINTS) -> list[tuple[float, float | None]]:
    """Returns no more than `most` points, each the mean of as many neighbours."""
    size = math.ceil(len(points) / most) if points else 1
    if size == 1:
        return list(points)
    means: list[tuple[float, float | None]] = []
    for start in range(0, len(points), size):
        group = points[start : start + size]
        values = [value for _, value in group if value is not None]
        means.append((group[-1][0], math.fsum(values) / len(values) if values else None))
    return means


def line_chart(
    title: str, series: Sequence[Series], across: str, *, from_zero: bool = False, logarithmic: bool = False
) -> Element:
    """Returns a figure of lines over a common abscissa.

    Args:
      title: what the values are.
      series: at least one of them has a value.
      across: what the abscissa is.
      from_zero: whether the ordinate begins at zero.
      logarithmic: whether the ordinate may be, where the values are far apart.
    """
    drawn = [each._replace(points=thinned(each.points)) for each in series]
    values = [value for each in drawn for _, value in each.points if value is not None]
    places = [place for each in drawn for place, _ in each.points]
    low, high = min(values), max(values)
    logarithmic = logarithmic and low > 0 and high > LOGARITHMIC * low
    if not logarithmic:
        low, high = _widened(0.0 if from_zero else low, high)
    ordinate = Scale(low, high, HEIGHT - BOTTOM, TOP, logarithmic)
    abscissa = Scale(0.0, max(*places, 1.0), LEFT, WIDTH - RIGHT)
    marks = [(abscissa.place(value), figures(value)) for value in ticks(abscissa.low, abscissa.high, 4)]
    parts = [*_axes(ordinate, marks), _text(across, (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 4, "middle")]
    for each in drawn:
        parts += _line(each, abscissa, ordinate)
    said = "; ".join(_spoken(each) for each in series)
    note = ", logarithmic" if logarithmic else ""
    keys = [each for each in series if not each.minor] or series
    keys = keys if len(keys) > 1 else series
    legend = [element("span", _swatch(each), each.name, class_="key") for each in keys] if len(keys) > 1 else []
    return _figure(f"{title}{note}", f"{title} over {across}{note}. {said}", parts, legend)


def badge(number: int) -> Element:
    """Returns the colour of a series, to stand before its name."""
    return element("span", class_=f"run c{number % NUM_COLOURS}", aria_hidden="true")


def bar_chart(title: str, groups: Sequence[str], runs: Mapping[int, Sequence[Bar]], across: str) -> Element:
    """Returns a figure of bars from zero.

    Args:
      title: what the values are.
      groups: names of the groups, from left to right.
      runs: for the number of each colour a bar for every group.
      across: what the groups are.
    """
    tops = [bar.interval[1] if bar.interval else bar.value for bars in runs.values() for bar in bars]
    ordinate = Scale(0.0, max(max(tops), 1e-9), HEIGHT - BOTTOM, TOP)
    slot = (WIDTH - LEFT - RIGHT) / len(groups)
    width = 0.8 * slot / len(runs)
    marks = [(LEFT + slot * (place + 0.5), name) for place, name in enumerate(groups)]
    parts = [*_axes(ordinate, marks), _text(across, (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 4, "middle")]
    for row, (number, bars) in enumerate(runs.items()):
        for place, bar in enumerate(bars):
            parts += _bar(bar, LEFT + slot * (place + 0.1) + width * row, width, ordinate, number)
    said = "; ".join(bar.label for bars in runs.values() for bar in bars)
    return _figure(title, f"{title} by {across}. {said}", parts, [])


def heat_map(
    title: str, rows: Sequence[str], columns: Sequence[str], weights: Float[np.ndarray, "T S"], notes: Sequence[str]
) -> Element:
    """Returns a figure of weights from 0 to 1, the stronger the colour the larger.

    Weights under 0.005 are as empty as they would look.

    Args:
      title: what the map is of.
      rows: labels of the rows.
      columns: labels of the columns.
      weights: a weight for each row and column.
      notes: what stands behind each row.
    """
    left, top, right = (
        8 + LETTER * min(max(map(len, labels), default=0), LONGEST_LABEL) for labels in (rows, columns, notes)
    )
    width, height = left + CELL * len(columns) + right, top + CELL * len(rows)
    parts = [element("rect", x=left, y=top, width=width - left - right, height=height - top, class_="frame")]
    for column, label in enumerate(columns):
        x, y = left + CELL * (column + 0.5), top - 4
        if len(label) == 1:
            parts.append(_text(label, x, y, "middle"))
        else:
            parts.append(_text(_short(label), x + 4, y, "start", transform=f"rotate(-90 {x + 4:g} {y:g})"))
    for row, (label, note) in enumerate(zip(rows, notes, strict=True)):
        y = top + CELL * (row + 0.72)
        parts += [_text(_short(label), left - 4, y, "end"), _text(note, width - right + 4, y, "start")]
        for column in np.flatnonzero(np.round(weights[row], 2)):
            weight = float(weights[row, column])
            said = element("title", f"{label} ← {columns[column]}: {weight:.2f}")
            box = {"x": left + CELL * column, "y": top + CELL * row, "width": CELL, "height": CELL}
            parts.append(element("rect", said, **box, class_="weight", fill_opacity=round(weight, 2)))
    strongest = weights.argmax(1)
    said = "; ".join(
        f"{label} ← {columns[column]} {weights[row, column]:.2f}"
        for row, (label, column) in enumerate(zip(rows, strongest, strict=True))
    )
    text = f"{title}. Each output token with the source token that it attends to most, and the weight: {said}"
    size = {"viewBox": f"0 0 {width:g} {height:g}", "width": width, "height": height}
    svg = element("svg", *parts, **size, role="img", aria_label=text)
    return element("figure", element("div", svg, class_="wide"), element("figcaption", title), class_="map")


def _figure(title: str, description: str, parts: Iterable[Element], legend: Sequence[Element]) -> Element:
    svg = element("svg", *parts, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=description)
    return element("figure", element("figcaption", element("b", title), *legend), svg)


def _axes(ordinate: Scale, marks: Sequence[tuple[float, str]]) -> list[Element]:
    found = (powers if ordinate.logarithmic else ticks)(ordinate.low, ordinate.high)
    parts = []
    for value, label in zip(found, tick_labels(found), strict=True):
        y = ordinate.place(value)
        parts.append(element("path", d=f"M{LEFT} {y:g}H{WIDTH - RIGHT}", class_="grid"))
        parts.append(_text(label, LEFT - 5, y + 4, "end"))
    return [*parts, *(_text(name, x, HEIGHT - BOTTOM + 14, "middle") for x, name in marks)]


def _line(series: Series, abscissa: Scale, ordinate: Scale) -> list[Element]:
    pen, commands, there = "M", [], []
    for place, value in series.points:
        if value is None:
            pen = "M"
            continue
        there.append((place, value))
        commands.append(f"{pen}{abscissa.place(place):g} {ordinate.place(value):g}")
        pen = "L"
    parts = [element("path", d="".join(commands), class_=_classes(series))]
    if not series.minor and len(there) <= MOST_MARKED:
        for place, value in there:
            said = element("title", f"{series.name}, {figures(place)}: {value:.4g}")
            x, y = abscissa.place(place), ordinate.place(value)
            parts.append(element("circle", said, cx=x, cy=y, r=2.5, class_=f"dot c{series.number % NUM_COLOURS}"))
    return parts


def _bar(bar: Bar, x: float, width: float, ordinate: Scale, number: int) -> list[Element]:
    top = ordinate.place(bar.value)
    box = {"x": round(x, 1), "y": top, "width": round(width, 1), "height": round(ordinate.start - top, 1)}
    parts = [element("rect", element("title", bar.label), **box, class_=f"bar c{number % NUM_COLOURS}")]
    if bar.interval:
        low, high = map(ordinate.place, bar.interval)
        parts.append(element("path", d=f"M{x + width / 2:.1f} {low:g}V{high:g}", class_="whisker"))
    return parts


def _swatch(series: Series) -> Element:
    line = element("path", d="M0 5H22", class_=_classes(series))
    return element("svg", line, viewBox="0 0 22 10", width=22, height=10, aria_hidden="true")


def _classes(series: Series) -> str:
    minor = " minor" if series.minor else ""
    return f"line c{series.number % NUM_COLOURS} dash{series.number // NUM_COLOURS % 3}{minor}"


def _spoken(series: Series) -> str:
    there = [(place, value) for place, value in series.points if value is not None]
    if not there:
        return f"{series.name}: no values"
    (first, begin), (last, end), numbers = there[0], there[-1], [value for _, value in there]
    return (
        f"{series.name}: {begin:.4g} at {figures(first)}, {end:.4g} at {figures(last)},"
        f" from {min(numbers):.4g} to {max(numbers):.4g}"
    )


def _widened(low: float, high: float) -> tuple[float, float]:
    """Ends of an axis a little outside of its values, but for zero; a single value gets some room."""
    room = 0.05 * (high - low) or abs(low) / 2 or 1.0
    return low - room * (low != 0), high + room


def _text(content: str, x: float, y: float, anchor: str, **attributes: str) -> Element:
    return element("text", content, x=round(x, 1), y=round(y, 1), text_anchor=anchor, **attributes)


def _short(label: str) -> str:
    return label if len(label) <= LONGEST_LABEL else f"{label[: LONGEST_LABEL - 1]}…"
