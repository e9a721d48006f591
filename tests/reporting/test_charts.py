import re
import subprocess
import sys
from xml.etree import ElementTree

import matplotlib
import pytest

from dragoman.reporting.charts import (
    Chart,
    draw_attention,
    draw_calibration,
    draw_curves,
    draw_intervals,
    draw_risk,
)
from reporting.example import HOSTILE, make_curves

POINTS = [(1, 3.0), (2, 2.0), (3, 1.5)]
DRAWN = {
    "curves": lambda key: draw_curves(key, "Loss", {"a": POINTS, "b": POINTS}, unit="nats"),
    "intervals": lambda key: draw_intervals(
        key, "F", ["x", "y"], {"a": [(1, 0, 2), None]}, unit="percent"
    ),
    "calibration": lambda key: draw_calibration(key, {"after": [(10, 20), (80, 70)]}),
    "risk": lambda key: draw_risk(key, [(50, 1), (100, 9)], {"95% exact": (50, 1)}),
    "attention": lambda key: draw_attention(key, "O", ["a", "b"], ["c"], [[0.9, 0.1]]),
}


@pytest.fixture(params=DRAWN, scope="module")
def chart(request: pytest.FixtureRequest) -> Chart:
    return DRAWN[request.param]("key")


def parse(chart: Chart) -> ElementTree.Element:
    return ElementTree.fromstring(chart.drawing)


def test_a_chart_has_a_title_and_tells_its_numbers_to_who_cannot_see_it(chart):
    assert chart.title
    root = parse(chart)
    assert root.get("role") == "img"
    assert re.search(r"\d", root.get("aria-label", ""))


def test_both_axes_are_named(chart):
    words = [text for text in ("".join(e.itertext()) for e in parse(chart).iter("text")) if text]
    assert sum(bool(re.search("[a-z]{4}", word)) for word in words) >= 1


def test_a_chart_scales_with_its_place(chart):
    root = parse(chart)
    assert re.fullmatch(r"0 0 [\d.]+ [\d.]+", root.get("viewBox", ""))
    assert not root.get("width")


def test_every_colour_is_one_of_the_page(chart):
    assert not re.search(r"#[0-9a-fA-F]{6}\b", chart.drawing)
    assert not re.search(r"rgb\(", chart.drawing)
    assert "var(--series-1)" in chart.drawing
    assert "currentColor" in chart.drawing or "var(--faint)" in chart.drawing


def test_a_chart_points_to_nothing_outside_itself(chart):
    root = parse(chart)
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    assert len(ids) == len(set(ids))
    assert all(name.startswith("key-") for name in ids)
    for element in root.iter():
        for name, value in element.attrib.items():
            if name == "href":
                assert value[1:] in ids
            for found in re.findall(r"url\(#([^)]*)\)", value):
                assert found in ids
    assert "http" not in chart.drawing


@pytest.mark.parametrize("name", DRAWN)
def test_the_same_content_gives_the_same_drawing(name):
    assert DRAWN[name]("k").drawing == DRAWN[name]("k").drawing


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_texts_of_users_reach_the_page_and_never_matplotlib(text):
    # A missing glyph or a formula that is none would be a warning or an error here.
    chart = draw_intervals("k", text, [text], {text: [(1, 0, 2)], "b": [None]}, unit="percent")
    parse(chart)
    parse(draw_attention("k", text, [text], [text], [[1.0]]))
    parse(draw_curves("k", text, {text: POINTS, "b": POINTS}, unit="nats"))


def test_a_label_is_the_text_itself():
    chart = draw_intervals("k", "t", ["日本 $x^2$ <b>"], {"a": [(1, 0, 2)]}, unit="percent")
    assert "日本 $x^2$ &lt;b&gt;" in chart.drawing


def test_a_user_text_that_looks_like_a_colour_of_ours_stays():
    chart = draw_intervals("k", "t", ["#a10001"], {"a": [(1, 0, 2)]}, unit="percent")
    assert ">#a10001<" in chart.drawing


def test_curves_of_any_length_are_drawn_in_a_bounded_size():
    curves = make_curves(steps=2_000_000)
    assert len(curves["update_loss"]) == 100_000
    chart = draw_curves("k", "Loss", {"a": curves["update_loss"]}, unit="nats a token")
    assert len(chart.drawing) < 30_000
    assert "means of 240" in chart.note


def test_a_single_point_and_a_constant_curve_are_drawn():
    parse(draw_curves("k", "t", {"a": [(1, 2.0)]}, unit="u"))
    parse(draw_curves("k", "t", {"a": [(1, 0.0), (2, 0.0)]}, unit="u", begins_at_zero=True))
    # From zero on, no logarithm, though the values are far apart.
    parse(draw_curves("k", "t", {"a": [(1, 1e-6), (2, 1.0)]}, unit="u", begins_at_zero=True))


def test_a_wide_range_of_values_stands_on_a_logarithmic_axis():
    chart = draw_curves("k", "t", {"a": [(1, 100.0), (2, 10.0), (3, 1.0)]}, unit="u")
    path = next(e.get("d", "") for e in parse(chart).iter("path") if "1.8" in e.get("style", ""))
    heights = [float(y) for _, y in re.findall(r"([\d.]+) ([\d.]+)", path)]
    assert heights[1] - heights[0] == pytest.approx(heights[2] - heights[1], rel=0.01)


def test_drawing_leaves_the_rules_of_others_as_they_were():
    with matplotlib.rc_context({"axes.facecolor": "red", "svg.fonttype": "path"}):
        before = dict(matplotlib.rcParams)
        chart = DRAWN["curves"]("k")
        assert dict(matplotlib.rcParams) == before
    assert chart.drawing == DRAWN["curves"]("k").drawing


def test_drawing_makes_no_use_of_what_keeps_figures_alive():
    code = "import sys; from dragoman.reporting.charts import *; draw_curves('k', 't', {'a': [(1, 2.0)]}, unit='u'); assert 'matplotlib.pyplot' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_a_writable_folder_of_its_own_matplotlib_draws_and_says_nothing():
    code = "from dragoman.reporting.charts import *; draw_curves('k', 't', {'a': [(1, 2.0)]}, unit='u')"
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False,
        env={"PATH": "/usr/bin:/bin", "MPLCONFIGDIR": "/dev/null/none", "HOME": "/dev/null"},
    )  # fmt: skip
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
