import dataclasses
import itertools
import os
import re
import subprocess
import sys
import warnings
from html import unescape
from pathlib import Path

import html5lib
import pytest

from dragoman.commands.report import render_page, write_report
from dragoman.errors import DragomanError
from dragoman.reporting.sections import ReportContent
from reporting.example import (
    make_attention,
    make_content,
    make_curves,
    make_evaluation,
    make_hostile_content,
    make_inspection,
    make_neighbours,
    make_rows,
)

# What makes each section, alone.
PARTS = {
    "training": {"curves": {"valid_loss": [(1, 2.0), (2, 1.0)]}},
    "data": {"inspection": make_inspection()},
    "scores": {"evaluations": {"test": {"scores": {"exact_match": 90.0}}}},
    "breakdowns": {
        "evaluations": {"a": {"breakdown": {"feature": [{"group": "x", "rows": 1, "ter": [1, 0, 2]}]}}}
    },
    "confusions": {"evaluations": {"a": {"confusions": [{"from": "a", "to": "b", "count": 1}]}}},
    "confidence": {"evaluations": {"a": {"confidence": {"curve": [[0.5, 0.1, 0.9], [1.0, 0.2, 0.1]]}}}},
    "samples": {"rows": {"test": make_rows(3, seed=0)}},
    "neighbours": {"neighbours": make_neighbours(make_rows(50, seed=0))},
    "attention": {"attention": make_attention()[:1]},
    "settings": {"settings": {"preset": "small"}},
    "about": {"facts": {"Time": "1 s"}},
}  # fmt: skip


@pytest.fixture(scope="module")
def page() -> str:
    return render_page(make_content())


@pytest.fixture(scope="module")
def hostile_page() -> str:
    return render_page(make_hostile_content())


def sections_of(page: str) -> list[str]:
    return re.findall('<section id="([a-z]+)"', page)


def parse(page: str) -> None:
    """Read the page by the rules of HTML, where any violation is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # html5lib 1.1's own
        html5lib.HTMLParser(strict=True).parse(page)


def test_a_full_report_has_every_section(page):
    assert sorted(sections_of(page)) == sorted(PARTS)


@pytest.mark.parametrize("part", PARTS)
def test_a_section_is_there_alone_where_only_it_has_content(part):
    page = render_page(ReportContent(name="m", **PARTS[part]))
    assert sections_of(page) == [part]
    assert f'<a href="#{part}">' in page
    parse(page)


def test_an_empty_report_says_so():
    page = render_page(ReportContent(name="m"))
    assert sections_of(page) == []
    assert "nothing to report" in page
    parse(page)


@pytest.mark.parametrize(
    "content",
    [
        {"inspection": {"splits": {}, "findings": []}},
        {"curves": {"valid_loss": [(1, float("nan"))], "unknown": [(1, 2.0)]}},
        {"evaluations": {"test": {"scores": {}, "breakdown": {"feature": []}, "confidence": None}}},
        {"evaluations": {"a": {"scores": {"bleu": 1.0}}, "b": {"scores": {"ter": 2.0}}}},
        {"evaluations": {"a": {"speed": {}, "confusions": []}}, "rows": {"a": []}},
        {"attention": [{"source_tokens": [], "tokens": [], "weights": []}]},
    ],
    ids=lambda content: str(next(iter(content.values())))[:30],
)
def test_empty_parts_of_the_content_are_no_error(content):
    parse(render_page(ReportContent(name="m", **content)))


def test_pages_are_well_formed(page, hostile_page):
    parse(page)
    parse(hostile_page)


def test_ids_are_unique_and_links_lead_to_them(page, hostile_page):
    for one in (page, hostile_page):
        ids = re.findall(r'\bid="([^"]*)"', one)
        assert len(ids) == len(set(ids))
        assert set(re.findall(r'\bhref="#([^"]*)"', one)) <= set(ids)


def test_a_page_loads_nothing_from_elsewhere(page):
    for value in re.findall(r'(?:\b(?:href|src|action|data|poster)="|url\()([^")]*)', page):
        assert value.startswith(("#", "data:image/svg+xml,")), value
    assert "default-src 'none'" in page
    assert "<script" not in page
    assert "@import" not in page


def test_hostile_texts_create_no_elements(page, hostile_page):
    names = set(re.findall("<([a-zA-Z]+)", page))
    assert set(re.findall("<([a-zA-Z]+)", hostile_page)) <= names | {"i", "wbr"}
    assert "49" not in re.findall(r">\s*(49)\s*<", hostile_page)
    assert "{{ 7 * 7 }}" in unescape(hostile_page)


def test_a_page_has_no_control_character_and_no_lone_surrogate(hostile_page):
    hostile_page.encode()
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", hostile_page)


def test_a_page_of_many_rows_is_bounded():
    few, many = (
        ReportContent(name="m", rows={"test": make_rows(count, seed=0)}) for count in (100, 5000)
    )
    assert len(render_page(many)) < 1.2 * len(render_page(few))


def test_a_typical_report_is_well_below_a_megabyte(page):
    assert 100_000 < len(page.encode()) < 600_000


def test_headings_never_skip_a_level(page):
    levels = [int(level) for level in re.findall("<h([1-6])", page)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(next_one <= level + 1 for level, next_one in itertools.pairwise(levels))


def test_headline_scores_are_those_of_the_test(page):
    scores = make_content().evaluations["test"]["scores"]
    assert f"<b>{scores['exact_match']:.1f}</b>" in page
    assert "1,200 rows" in page


def test_without_a_test_the_last_evaluation_makes_the_headline():
    evaluations = {"a": {"scores": {"bleu": 1.0}}, "b": {"scores": {"bleu": 2.0}}}
    assert ReportContent(name="m", evaluations=evaluations).main_evaluation == "b"
    assert "<b>2.0</b>" in render_page(ReportContent(name="m", evaluations=evaluations))


def test_the_level_of_the_intervals_is_that_of_the_evaluation():
    evaluation = {**make_evaluation(make_rows(50, seed=0)), "settings": {"confidence_level": 0.9}}
    page = render_page(ReportContent(name="m", evaluations={"test": evaluation}))
    assert "90% interval" in page
    assert "95% interval" not in page


def list_settings(page: str) -> dict[str, list[str]]:
    """Names of the settings by the heading of their group."""
    (section,) = re.findall('<section id="settings".*?</section>', page, re.DOTALL)
    groups = re.split("<h3>", section)[1:]
    return {
        group[: group.index("<")]: re.findall('<th scope="row">([a-z0-9_.]+)', group)
        for group in groups
    }


def test_settings_of_the_user_stand_apart_from_those_that_were_chosen(page):
    groups = list_settings(page)
    assert groups["Set by you"] == ["data.test", "training.max_steps", "decoding.beam_size"]
    chosen = {"preset", "model.d_model", "model.dropout", "training.monitor"}
    assert set(groups["Chosen for these pairs"]) == chosen
    assert "model.nhead" in groups["Defaults"]
    assert not {*groups["Set by you"], *chosen} & set(groups["Defaults"])


def test_without_a_record_of_what_was_set_no_setting_is_called_the_users():
    content = dataclasses.replace(make_content(), user_settings=None)
    assert list(list_settings(render_page(content))) == ["Not the default", "Defaults"]


def test_the_most_severe_finding_comes_first(page):
    assert re.findall(r'<article class="finding ([a-z]+)"', page) == ["fault", "warning", "note"]


def test_the_name_of_the_model_and_its_task_come_before_its_scores(page):
    top = page[page.index("<header>") : page.index("</header>")]
    assert top.index("models/english-sounds") < top.index("Task: phones") < top.index("tiles")
    assert re.search('class="title">([^<]*)<', top)[1] == "PER"


def test_truncated_outputs_are_counted_at_the_top(page):
    truncated = make_content().evaluations["test"]["truncated"]
    assert truncated > 0
    assert f"{truncated} outputs reached the maximum length" in page
    assert "truncated outputs are not counted" in page


def test_the_curve_of_the_token_error_rate_is_not_called_by_the_name_of_the_word_error_rate():
    """The tokens are the tokenizer's: of running text they are subwords."""
    scores = {"word_error_rate": 20.0, "titles": {"word_error_rate": "WER"}}
    content = ReportContent(
        name="m", curves={"valid_token_error_rate": [(1, 60.0), (2, 40.0)]},
        evaluations={"test": {"scores": scores}}, settings={"training.monitor": "token_error_rate"},
    )  # fmt: skip
    (training,) = re.findall('<section id="training".*?</section>', render_page(content), re.DOTALL)
    assert "WER" not in training
    assert "best token error rate: 40 after 2 steps" in training


@pytest.mark.parametrize(
    ("exact", "is_shown"), [(0.0, 0), (0.02, 0), (0.5, 1), (0.99, 0), (1.0, 0)]
)
def test_confidence_is_left_out_where_nearly_all_rows_are_right_or_wrong(exact, is_shown):
    confidence = {"rows": 400, "exact": exact, "curve": [[0.5, 0.1, 0.9], [1.0, 0.2, 0.1]]}
    content = ReportContent(name="m", evaluations={"test": {"confidence": confidence}})
    assert ("confidence" in sections_of(render_page(content))) == is_shown


def test_the_layer_and_the_heads_of_the_attention_are_named(page):
    assert "cross-attention of the last decoder layer (layer 3), the mean of its 4 heads" in page


def test_the_best_validation_is_marked_on_the_curve_of_the_monitored_score():
    content = ReportContent(
        name="m", curves=make_curves(), settings={"training.monitor": "token_error_rate"}
    )
    best = min(content.curves["valid_token_error_rate"], key=lambda point: point[1])
    assert f"best token error rate: {best[1]:.4g} after {best[0]:,} steps" in render_page(content)


def test_the_same_content_gives_the_same_bytes_also_in_another_process(tmp_path):
    content = make_hostile_content()
    write_report(tmp_path / "one.html", content)
    code = "import sys; from pathlib import Path; from reporting.example import make_hostile_content; from dragoman.commands.report import write_report; write_report(Path(sys.argv[1]), make_hostile_content())"
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "two.html")], check=True,
        cwd=Path(__file__).parent.parent, env={**os.environ, "PYTHONHASHSEED": "7"},
    )  # fmt: skip
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()


def test_a_report_replaces_the_old_one_and_leaves_no_other_file(tmp_path):
    path = tmp_path / "report.html"
    path.write_text("old")
    write_report(path, ReportContent(name="m"))
    assert path.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(DragomanError, match=r"missing/report\.html: cannot be written"):
        write_report(tmp_path / "missing" / "report.html", ReportContent(name="m"))
    (tmp_path / "folder").mkdir()
    with pytest.raises(DragomanError, match="folder: cannot be written"):
        write_report(tmp_path / "folder", ReportContent(name="m"))
    assert list(tmp_path.iterdir()) == [tmp_path / "folder"]


def test_only_the_thresholds_that_predict_takes_are_said_to_be_its_own():
    threshold = {"precision": 0.9, "threshold": 0.5, "coverage": 0.0, "exact": 0.0}
    field = {"field": "to", "values": 9, "right": 1.0, "thresholds": []}
    for fields, owner in (([], "Threshold for"), ([field], "Values of")):
        confidence = {"thresholds": [threshold], "fields": fields}
        content = ReportContent(name="m", evaluations={"a": {"confidence": confidence}})
        page = render_page(content)
        [caption] = re.findall(r"<caption>(.*)as in <code>predict --min-confidence", page)
        assert caption.startswith(owner)
        assert '<td class="n">–</td></tr>' in page  # no row is kept: none of them is exact, or not


def test_a_content_can_be_changed_in_part_and_all_fields_but_the_name_are_optional():
    content = ReportContent(name="m")
    assert dataclasses.replace(content, created="now").created == "now"


def test_importing_loads_neither_matplotlib_nor_torch():
    code = "import sys, dragoman.commands.report; assert not {'matplotlib', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
