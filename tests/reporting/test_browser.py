"""The report in a real browser; skipped where there is none (Debian: apt-get install chromium)."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from dragoman.commands.report import write_report
from reporting.browser import FAINT_TEXTS, NAMES, Browser, find_browser
from reporting.example import make_content, make_hostile_content

PROGRAM = find_browser()
pytestmark = pytest.mark.skipif(
    PROGRAM is None, reason=f"needs a browser: none of {', '.join(NAMES)} is on the path"
)
WIDTHS = (390, 1280)
HEADINGS = [
    "Scores", "Training", "Data", "Breakdowns", "Confusions", "Confidence", "Samples",
    "Nearest training pairs", "Attention", "Settings", "Run",
]  # fmt: skip
OPEN_ALL = "document.querySelectorAll('details').forEach(one => one.open = true)"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    assert PROGRAM is not None
    browser = Browser(PROGRAM, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("reports")
    paths = {"example": folder / "example.html", "hostile": folder / "hostile.html"}
    write_report(paths["example"], make_content())
    write_report(paths["hostile"], make_hostile_content())
    return paths


@pytest.fixture(params=["example", "hostile"])
def report(request: pytest.FixtureRequest, reports: dict[str, Path]) -> Path:
    return reports[request.param]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_report_requests_nothing_and_logs_nothing(browser, report, scheme):
    browser.emulate(scheme=scheme)
    events = browser.open(report)
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]  # fmt: skip
    assert [url for url in asked if not url.startswith("data:")] == [report.as_uri()]
    loud = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Audits.issueAdded")  # fmt: skip
    assert [event for event in events if event["method"] in loud] == []


def test_injected_elements_may_request_nothing(browser, reports):
    browser.open(reports["example"])
    browser.events.clear()
    blocked = browser.run(
        """new Promise(done => {
          const found = [];
          document.addEventListener('securitypolicyviolation', event => {
            found.push(event.effectiveDirective);
            if (found.length === 3) done(found.sort());
          });
          const put = (name, values) => document.body.append(
            Object.assign(document.createElement(name), values));
          put('img', {src: 'http://127.0.0.1:9/a.png'});
          put('iframe', {src: 'http://127.0.0.1:9/b.html'});
          put('script', {textContent: 'document.title = "taken"'});
        })"""
    )
    assert blocked == ["frame-src", "img-src", "script-src-elem"]
    assert "taken" not in browser.run("document.title")


def test_every_section_is_there_with_content(browser, reports):
    browser.open(reports["example"])
    assert browser.run("[...document.querySelectorAll('h2')].map(h => h.innerText)") == HEADINGS
    assert browser.run(
        "[...document.querySelectorAll('section')].every(s => s.innerText.length > 60)"
    )


@pytest.mark.parametrize("width", WIDTHS)
def test_a_page_is_never_wider_than_the_window(browser, report, width):
    browser.resize(width, is_phone=width < 500)
    browser.emulate()
    browser.open(report)
    browser.run(OPEN_ALL)
    assert browser.run("[document.documentElement.scrollWidth, window.innerWidth]") == [width] * 2
    # What is wider, a table, scrolls inside its own box.
    outside = browser.run(
        """[...document.querySelectorAll('main *')].filter(e => !e.closest('.box, svg, .aloud, nav')
          && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 200))"""
    )
    assert outside == []


def test_on_a_phone_a_report_takes_at_most_13_screens(browser, reports):
    browser.resize(400, 800, is_phone=True)
    browser.open(reports["example"])
    assert browser.run("document.documentElement.scrollHeight") <= 13 * 800


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_has_enough_contrast(browser, reports, scheme):
    browser.resize(1280)
    browser.emulate(scheme=scheme)
    browser.open(reports["example"])
    browser.run(OPEN_ALL)
    assert browser.run(FAINT_TEXTS) == []


def test_hostile_texts_stay_text(browser, reports):
    browser.open(reports["hostile"])
    assert browser.run("document.title").startswith("</script><script>")
    assert browser.run("document.querySelectorAll('script, img, iframe, object').length") == 0
    assert browser.run("document.querySelectorAll('style:not(svg style)').length") == 1
    text = browser.run("document.body.textContent")
    assert "</script><script>document.title = 'taken'</script>" in text
    assert "{{ 7 * 7 }} {% raw %} &lt;b&gt; $\\alpha$ ]]> <!-- " in text
    assert browser.run("getComputedStyle(document.body).display") == "block"


def test_charts_fill_their_column_and_follow_the_colour_scheme(browser, reports):
    browser.resize(390, is_phone=True)
    inks = []
    for scheme in ("light", "dark"):
        browser.emulate(scheme=scheme)
        browser.open(reports["example"])
        sizes = browser.run(
            """[...document.querySelectorAll('section:not(#none) svg')]
              .filter(svg => svg.checkVisibility())
              .map(svg => [svg.getBoundingClientRect().width, svg.getBoundingClientRect().height])"""
        )
        assert len(sizes) >= 9
        assert all(340 <= width <= 390 and 60 <= height <= 700 for width, height in sizes)
        inks.append(
            browser.run("getComputedStyle(document.querySelector('#training svg text')).fill")
        )
    assert inks[0] != inks[1]


@pytest.mark.parametrize("width", WIDTHS)
def test_no_text_of_a_chart_is_cut_off(browser, reports, width):
    browser.resize(width, is_phone=width < 500)
    browser.open(reports["example"])
    browser.run(OPEN_ALL)
    cut = browser.run(
        """[...document.querySelectorAll('figure svg')].flatMap(svg => {
          const frame = svg.getBoundingClientRect();
          return [...svg.querySelectorAll('text')].filter(text => {
            const box = text.getBoundingClientRect();
            return box.left < frame.left - 1 || box.right > frame.right + 1
              || box.top < frame.top - 1 || box.bottom > frame.bottom + 1;
          }).map(text => text.textContent + ' of ' + svg.parentElement.ariaLabel.slice(0, 40));
        })"""
    )
    assert cut == []


def test_folded_details_are_printed(browser, reports, tmp_path):
    browser.resize(1280)
    browser.emulate()
    browser.open(reports["example"])
    hidden = "[...document.querySelectorAll('details:not([open]) p')].filter(p => !p.checkVisibility({contentVisibilityAuto: true})).length"
    assert browser.run(hidden) > 0
    browser.emulate(media="print", scheme="dark")
    assert browser.run(hidden) == 0
    assert browser.run("getComputedStyle(document.querySelector('nav')).display") == "none"
    assert browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.run("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
    browser.print_page(tmp_path / "report.pdf")
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF-")
    browser.emulate()


def test_the_page_is_accessible_by_screen_reader_and_keyboard(browser, reports):
    browser.open(reports["example"])
    assert browser.run("document.documentElement.lang") == "en"
    assert browser.run(
        "[...document.querySelectorAll('.chart')].every(chart => chart.ariaLabel.length > 20)"
    )
    assert browser.run(
        "[...document.querySelectorAll('.box')].every(box => box.tabIndex === 0 && box.ariaLabel)"
    )
    assert browser.run(
        "[...document.querySelectorAll('nav a')].every(a => document.querySelector(a.hash))"
    )
    assert browser.run("[...document.querySelectorAll('th')].every(th => th.scope)")
    roles = {
        node["role"]["value"]
        for node in browser.call("Accessibility.getFullAXTree")["nodes"]
        if not node["ignored"]
    }
    assert roles >= {"banner", "navigation", "main", "contentinfo", "region", "table", "image"}
