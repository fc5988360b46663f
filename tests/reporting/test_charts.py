"""Charts say what they were given: their coordinates, labels and spoken text are read back."""

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seq2seq_jax.reporting.charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    MOST_POINTS,
    RIGHT,
    TOP,
    WIDTH,
    Bar,
    Series,
    bar_chart,
    heat_map,
    line_chart,
    powers,
    thinned,
    tick_labels,
    ticks,
)

NUMBER = r"-?[0-9.]+"


def paths(figure, name):
    """The points of each line."""
    found = [part for part in figure.iter("path") if name in (part.get("class") or "").split()]
    return [
        [(float(x), float(y)) for x, y in re.findall(f"[ML]({NUMBER}) ({NUMBER})", part.get("d"))] for part in found
    ]


def labels(figure, anchor):
    """Text and place of the labels of an axis."""
    return [
        (part.text, float(part.get("x")), float(part.get("y")))
        for part in figure.iter("text")
        if part.get("text-anchor") == anchor
    ]


def test_the_points_of_a_line_are_where_the_axes_say():
    points = [(100, 3.0), (200, 1.0), (300, None), (400, 0.5), (500, 0.75)]
    figure: Any = line_chart("Loss", [Series("run", points)], "step")
    ordinate = [(float(text), y - 4) for text, _, y in labels(figure, "end")]
    (low, bottom), (high, top) = ordinate[0], ordinate[-1]
    *marks, across = labels(figure, "middle")
    (start, left), (stop, right) = [(float(text), x) for text, x, _ in (marks[0], marks[-1])]
    assert across[0] == "step"
    read = [
        (start + (x - left) * (stop - start) / (right - left), low + (y - bottom) * (high - low) / (top - bottom))
        for x, y in paths(figure.find("svg"), "line")[0]
    ]
    expected = [point for point in points if point[1] is not None]
    assert np.array(read) == pytest.approx(np.array(expected), rel=0.01, abs=0.02)  # coordinates have one decimal
    (line,) = [part for part in figure.find("svg").iter("path") if "line" in part.get("class")]
    assert re.sub("[^ML]", "", line.get("d")) == "MLML"  # broken where there is no number
    assert "run: 3 at 100, 0.75 at 500, from 0.5 to 3" in figure.find("svg").get("aria-label")
    assert [part.find("title").text for part in figure.iter("circle")][0] == "run, 100: 3"


def test_a_logarithmic_ordinate_has_equal_steps_for_equal_factors_and_says_so():
    figure: Any = line_chart("Loss", [Series("run", [(0, 100.0), (1, 1.0), (2, 0.01)])], "step", logarithmic=True)
    heights = [y for _, y in paths(figure.find("svg"), "line")[0]]
    assert heights[1] - heights[0] == pytest.approx(heights[2] - heights[1], abs=0.2)
    assert figure.find("figcaption/b").text == "Loss, logarithmic"
    flat: Any = line_chart("Loss", [Series("run", [(0, 3.0), (1, 1.0)])], "step", logarithmic=True)
    assert flat.find("figcaption/b").text == "Loss"


@given(
    st.lists(
        st.tuples(st.integers(0, 10**6), st.one_of(st.none(), st.floats(-1e6, 1e6), st.floats(1e-9, 1e9))),
        min_size=1,
        max_size=50,
    ).filter(lambda points: any(value is not None for _, value in points)),
    st.booleans(),
)
def test_whatever_the_values_a_line_stays_in_its_frame(points, logarithmic):
    figure: Any = line_chart(
        "x", [Series("a", sorted(points, key=lambda point: point[0]))], "y", logarithmic=logarithmic
    )
    (line,) = paths(figure.find("svg"), "line")
    assert all(LEFT <= x <= WIDTH - RIGHT and TOP <= y <= HEIGHT - BOTTOM for x, y in line)
    assert len(labels(figure, "end")) >= 1


def test_series_beyond_the_colours_have_other_dashes():
    figure: Any = line_chart("x", [Series(str(n), [(0, float(n)), (1, 2.0)], n) for n in range(18)], "y")
    drawn = [part.get("class") for part in figure.find("svg").iter("path") if "line" in part.get("class")]
    assert len(set(drawn)) == 18
    assert [key.text or key[0].tail for key in figure.iter("span")] == [str(n) for n in range(18)]


def test_many_points_are_means_of_neighbours_and_few_stay():
    values = np.random.default_rng(0).normal(size=4 * MOST_POINTS).tolist()
    points = list(enumerate(values))
    found = thinned(points)
    assert len(found) == MOST_POINTS
    assert [value for _, value in found] == pytest.approx(np.reshape(values, (-1, 4)).mean(1).tolist())
    assert [place for place, _ in found] == list(range(3, 4 * MOST_POINTS, 4))
    assert thinned(points[:MOST_POINTS]) == points[:MOST_POINTS]
    assert thinned([(0, None), (1, 2.0), (2, None), (3, None)], most=2) == [(1, 2.0), (3, None)]


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_labels_of_ticks_differ_and_say_their_values(low, width):
    values = ticks(low, low + width)
    found = tick_labels(values)
    assert len(set(found)) == len(values)
    assert [float(label.replace(",", "")) for label in found] == pytest.approx(values, rel=5e-3, abs=width / 50)


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_ticks_are_round_and_within(low, width):
    found = ticks(low, low + width)
    assert 2 <= len(found) <= 7 and all(low - 1e-6 * width <= value <= low + width * (1 + 1e-6) for value in found)
    steps = np.diff(found)
    assert steps == pytest.approx(np.full(len(steps), steps[0]), rel=1e-6)
    assert float(f"{steps[0]:.1e}"[:3]) in (1, 2, 5)


def test_powers_are_those_of_ten_or_where_they_are_few_more():
    assert powers(0.5, 2e5) == pytest.approx([1, 10, 100, 1e3, 1e4, 1e5])
    assert powers(0.9, 150) == pytest.approx([1, 10, 100])
    assert powers(3, 40) == pytest.approx([5, 10, 20])


def test_a_bar_is_as_high_as_its_value_and_says_it():
    runs = {0: [Bar(50.0, (40.0, 80.0), "a, x: 50"), Bar(20.0, None, "a, y: 20")], 3: [Bar(0.0, None, "b, x: 0")] * 2}
    figure: Any = bar_chart("Exact", ["x", "y"], runs, "length")
    bars = [part for part in figure.iter("rect")]
    heights = [float(bar.get("height")) for bar in bars]
    assert heights[0] / heights[1] == pytest.approx(50 / 20, abs=0.02) and heights[2:] == [0, 0]
    assert [bar.find("title").text for bar in bars][:2] == ["a, x: 50", "a, y: 20"]
    assert [bar.get("class") for bar in bars] == ["bar c0"] * 2 + ["bar c3"] * 2
    (whisker,) = [part for part in figure.iter("path") if part.get("class") == "whisker"]
    _, low, high = map(float, re.findall(NUMBER, whisker.get("d")))
    assert (low - high) / heights[0] == pytest.approx(40 / 50, abs=0.02)
    assert float(bars[0].get("x")) < float(bars[2].get("x")) < float(bars[1].get("x"))


def test_a_map_has_a_box_for_each_weight_that_can_be_seen():
    weights = np.array([[0.9, 0.1, 0.0], [0.004, 0.5, 0.496]])
    figure: Any = heat_map(
        "attention", ["the", "a much too long token"], ["d", "word", "</s>"], weights, ["0.5", "0.25"]
    )
    found = np.zeros((2, 3))
    boxes = [part for part in figure.iter("rect") if part.get("class") == "weight"]
    xs, ys = (sorted({float(box.get(name)) for box in boxes}) for name in "xy")
    for box in boxes:
        found[ys.index(float(box.get("y"))), xs.index(float(box.get("x")))] = float(box.get("fill-opacity"))
    assert found == pytest.approx(weights, abs=0.005) and len(boxes) == 4
    assert boxes[0].find("title").text == "the ← d: 0.90"
    texts = [part.text for part in figure.iter("text")]
    assert "a much too long…" in texts and "0.25" in texts
    said = figure.find("div/svg").get("aria-label")
    assert "the ← d 0.90; a much too long token ← word 0.50" in said
