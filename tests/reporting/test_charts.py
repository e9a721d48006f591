import os
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

SVG = "{http://www.w3.org/2000/svg}"
POINTS = [(1, 3.0), (2, 2.0), (3, 1.5)]
DRAWN = {
    "curves": lambda key: draw_curves(key, "Loss", {"a": POINTS, "b": POINTS}, unit="nats"),
    "intervals": lambda key: draw_intervals(key, "F", {"x": (1, 0, 2), "y": None}, unit="percent"),
    "calibration": lambda key: draw_calibration(key, {"after": [(10, 20), (80, 70)]}),
    "risk": lambda key: draw_risk(key, [(50, 1), (100, 9)], {"95% exact": (50, 1)}),
    "attention": lambda key: draw_attention(key, "O", ["a", "b"], ["c"], [[0.9, 0.1]]),
}


@pytest.fixture(params=DRAWN, scope="module")
def chart(request: pytest.FixtureRequest) -> Chart:
    return DRAWN[request.param]("key")


def parse(chart: Chart) -> ElementTree.Element:
    return ElementTree.fromstring(chart.drawing)


def test_a_chart_has_a_title_and_a_label_for_screen_readers(chart):
    assert chart.title
    root = parse(chart)
    assert root.get("role") == "img"
    assert len(root.get("aria-label", "")) > 5


def test_the_axes_are_named(chart):
    texts = ["".join(element.itertext()) for element in parse(chart).iter(f"{SVG}text")]
    assert sum(bool(re.search("[a-z]{4}", text)) for text in texts) >= 1


def test_a_chart_has_no_background(chart):
    assert "fill: #ffffff" not in chart.drawing


@pytest.mark.parametrize("page", ["#ffffff", "#12171d"])
def test_every_colour_stands_out_on_a_light_and_a_dark_page(chart, page):
    # Texts have the page's own colour: see style.css.
    drawing = re.sub("<text.*?</text>", "", chart.drawing, flags=re.DOTALL)
    for colour in set(re.findall(r"#[0-9a-f]{6}\b", drawing)):
        one, other = sorted((find_luminance(colour), find_luminance(page)))
        assert (other + 0.05) / (one + 0.05) >= 3, colour


def find_luminance(colour: str) -> float:
    """Source: WCAG 2.2, relative luminance."""
    shares = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_a_chart_points_to_nothing_outside_itself(chart):
    root = parse(chart)
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    assert len(ids) == len(set(ids))
    for element in root.iter():
        for name, value in element.attrib.items():
            if name.endswith("href"):
                assert value[1:] in ids
            for found in re.findall(r"url\(#([^)]*)\)", value):
                assert found in ids


@pytest.mark.parametrize("name", DRAWN)
def test_two_charts_of_a_page_share_no_id(name):
    first, second = (
        {element.get("id") for element in parse(DRAWN[name](key)).iter() if element.get("id")}
        for key in ("one", "two")
    )
    assert not first & second


@pytest.mark.parametrize("name", DRAWN)
def test_the_same_content_gives_the_same_drawing(name):
    assert DRAWN[name]("k").drawing == DRAWN[name]("k").drawing


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_any_text_can_be_drawn_without_a_warning(text):
    chart = draw_intervals("k", text, {text: (1, 0, 2), "b": None}, unit="percent")
    parse(chart)
    parse(draw_attention("k", text, [text], [text], [[1.0]]))
    parse(draw_curves("k", text, {text: POINTS, "b": POINTS}, unit="nats"))


def test_a_label_is_the_text_itself():
    chart = draw_intervals("k", "t", {"日本 $x^2$ <b>": (1, 0, 2)}, unit="percent")
    assert "日本 $x^2$ &lt;b&gt;" in chart.drawing


def test_curves_of_any_length_are_drawn_in_a_bounded_size():
    curves = make_curves(steps=2_000_000)
    assert len(curves["step_loss"]) == 100_000
    chart = draw_curves("k", "Loss", {"a": curves["step_loss"]}, unit="nats a token")
    assert len(chart.drawing) < 30_000
    assert "means of 240" in chart.note


def test_a_single_point_and_a_constant_curve_are_drawn():
    parse(draw_curves("k", "t", {"a": [(1, 2.0)]}, unit="u"))
    parse(draw_curves("k", "t", {"a": [(1, 0.0), (2, 0.0)]}, unit="u", begins_at_zero=True))
    # From zero on, no logarithm, though the values are far apart.
    parse(draw_curves("k", "t", {"a": [(1, 1e-6), (2, 1.0)]}, unit="u", begins_at_zero=True))


def test_a_wide_range_of_values_has_a_logarithmic_axis():
    chart = draw_curves("k", "t", {"a": [(1, 100.0), (2, 10.0), (3, 1.0)]}, unit="u")
    path = next(
        e.get("d", "") for e in parse(chart).iter(f"{SVG}path") if "1.8" in e.get("style", "")
    )
    heights = [float(y) for _, y in re.findall(r"([\d.]+) ([\d.]+)", path)]
    assert heights[1] - heights[0] == pytest.approx(heights[2] - heights[1], rel=0.01)


def test_drawing_leaves_the_settings_of_matplotlib_unchanged():
    with matplotlib.rc_context({"axes.facecolor": "red", "svg.fonttype": "path"}):
        before = dict(matplotlib.rcParams)
        chart = DRAWN["curves"]("k")
        assert dict(matplotlib.rcParams) == before
    assert chart.drawing == DRAWN["curves"]("k").drawing


def test_drawing_does_not_load_pyplot():
    code = "import sys; from dragoman.reporting.charts import *; draw_curves('k', 't', {'a': [(1, 2.0)]}, unit='u'); assert 'matplotlib.pyplot' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_a_writable_cache_folder_charts_are_drawn_silently():
    code = "from dragoman.reporting.charts import *; draw_curves('k', 't', {'a': [(1, 2.0)]}, unit='u')"
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False,
        env={**os.environ, "MPLCONFIGDIR": "/dev/null/none", "HOME": "/dev/null"},
    )  # fmt: skip
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def list_texts(chart: Chart) -> list[str]:
    return ["".join(element.itertext()) for element in parse(chart).iter(f"{SVG}text")]


@pytest.mark.parametrize(
    "label", ["<en-GB>", "language=<en-GB>", "region=Auvergne-Rhône-Alpes and more"]
)
def test_labels_of_groups_are_whole(label):
    chart = draw_intervals("k", "t", {label: (50, 40, 60)}, unit="percent")
    assert label.replace(" ", "") in "".join(list_texts(chart)).replace(" ", "")
    assert "…" not in chart.drawing


def test_labels_of_attention_are_whole():
    chart = draw_attention("k", "t", ["language=<en-GB>", "a"], ["output"], [[0.5, 0.5]])
    assert "language=<en-GB>" in list_texts(chart)


@pytest.mark.parametrize("value", [0.0, 3.0, 50.0, 97.0, 100.0])
def test_axes_of_percents_stay_within_0_and_100(value):
    curve = [(1, value), (2, value)]
    charts = (
        draw_intervals("k", "t", {"a": (value, value, value)}, unit="percent"),
        draw_curves("k", "t", {"a": curve}, unit="percent", is_percent=True),
        draw_calibration("k", {"a": [(value, value)]}),
        draw_risk("k", [(50, value), (100, value)], {}),
    )
    for chart in charts:
        numbers = [float(text) for text in list_texts(chart) if re.fullmatch(r"-?[\d.]+", text)]
        assert min(numbers) >= 0
        assert max(numbers) <= 100


def test_an_error_rate_above_100_is_drawn():
    chart = draw_curves("k", "t", {"WER": [(1, 360.0), (2, 90.0)]}, unit="percent", is_percent=True)
    assert "300" in list_texts(chart)
