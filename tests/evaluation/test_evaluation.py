import json
import os
import time

import pytest

from dragoman.errors import DataError
from dragoman.evaluation.evaluation import (
    Cut,
    digest_rows,
    evaluate_rows,
    read_evaluation,
    write_evaluation,
)
from dragoman.evaluation.rows import Row
from dragoman.evaluation.scores import score
from dragoman.evaluation.summary import summarize
from dragoman.settings import EvaluationSettings

SETTINGS = EvaluationSettings(resamples=100)


def rows_of(count=40, wrong=4):
    """Words and their spelling in capitals, some of it wrong; every second one has a feature."""
    rows = []
    for i in range(count):
        source = "abcd"[: 1 + i % 4] + "xyz"[i % 3]
        target = source.upper()
        rows.append(
            Row(
                source=source,
                references=(target, f"the very word {target}"),
                hypothesis=target[:-1] + "!" if i < wrong else target,
                features=("<even>",) if i % 2 == 0 else ("<odd>",),
                line=i + 1,
                file="test.tsv",
            )
        )
    return rows


def test_the_scores_are_those_of_score():
    rows = rows_of()
    found = evaluate_rows(rows, SETTINGS).scores.to_dict()
    texts, references = [r.hypothesis for r in rows], [r.references for r in rows]
    assert found == score(texts, references, settings=SETTINGS).to_dict()


def test_what_is_written_is_read_again(tmp_path):
    evaluation = evaluate_rows(rows_of(), SETTINGS, speed={"rows_per_s": 1.0, "engine": "torch"})
    write_evaluation(tmp_path / "test", evaluation)
    write_evaluation(tmp_path / "test", evaluation)  # in the place of the first one
    rows, content = read_evaluation(tmp_path / "test")
    assert rows == evaluation.rows
    assert content == json.loads(json.dumps(evaluation.to_dict()))
    assert [path.name for path in tmp_path.iterdir()] == ["test"]


def test_the_rows_hold_their_own_scores(tmp_path):
    write_evaluation(tmp_path / "test", evaluate_rows(rows_of(), SETTINGS))
    lines = (tmp_path / "test" / "rows.jsonl").read_text().splitlines()
    first, last = json.loads(lines[0]), json.loads(lines[-1])
    assert first["exact_match"] is False
    assert first["character_error_rate"] == 50.0  # "A!" for "AX"
    assert last["exact_match"] is True
    assert last["character_error_rate"] == last["token_error_rate"] == 0.0


def test_each_part_of_the_rows_has_its_scores():
    rows = rows_of()
    found = evaluate_rows(rows, SETTINGS, rarest=[0] * 10 + [500] * 30).breakdown
    assert {kind: sum(group["rows"] for group in groups) for kind, groups in found.items()} == {
        "source length": 40, "feature": 40, "rare symbols": 40,
    }  # fmt: skip
    never, often = found["rare symbols"]
    assert (never["group"], never["rows"], never["exact_match"][0]) == ("never", 10, 60.0)
    assert often["exact_match"][0] == 100.0
    for groups in found.values():
        for group in groups:
            value, low, high = group["character_error_rate"]
            assert 0 <= low <= value <= high
            assert low < high


def test_phones_are_compared_whole():
    rows = [Row(source="s", references=("AH B",), hypothesis="AH P")]
    found = evaluate_rows(rows, SETTINGS, Cut(has_symbols=True))
    assert [(one.expected, one.found) for one in found.confusions] == [("B", "P")]
    assert found.scores.titles["token_error_rate"] == "PER"
    assert found.scores["token_error_rate"] == 50.0


def test_the_digest_tells_other_test_rows_and_not_other_outputs():
    rows = rows_of()
    assert digest_rows(rows) == digest_rows(rows_of(wrong=9))
    assert digest_rows(rows) != digest_rows(rows[:-1])
    assert digest_rows(rows) != digest_rows(rows[::-1])


def test_a_folder_that_is_something_else_is_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(DataError, match="not an evaluation, so it is left alone"):
        write_evaluation(tmp_path / "mine", evaluate_rows(rows_of(), SETTINGS))
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "x"


@pytest.mark.parametrize("name", ["evaluation", "evaluation/test"])
def test_a_link_in_a_model_folder_does_not_let_an_evaluation_out(name, tmp_path):
    write_evaluation(tmp_path / "mine" / "test", evaluate_rows(rows_of(), SETTINGS))
    link = tmp_path / "model" / name
    link.parent.mkdir(parents=True)
    link.symlink_to(tmp_path / "mine" / name.removeprefix("evaluation").lstrip("/"))
    before = (tmp_path / "mine" / "test" / "rows.jsonl").read_bytes()
    with pytest.raises(DataError, match="a link leads out of the model folder"):
        write_evaluation(
            tmp_path / "model" / "evaluation" / "test", evaluate_rows(rows_of(wrong=9), SETTINGS)
        )
    assert (tmp_path / "mine" / "test" / "rows.jsonl").read_bytes() == before


@pytest.mark.parametrize("content", ["", "[]", "[" * 100_000])
def test_a_broken_file_of_scores_is_named(content, tmp_path):
    write_evaluation(tmp_path / "test", evaluate_rows(rows_of(), SETTINGS))
    (tmp_path / "test" / "scores.json").write_text(content)
    with pytest.raises(DataError, match=r"scores\.json"):
        read_evaluation(tmp_path / "test")


def change_scores(**values):
    def craft(folder):
        content = json.loads((folder / "scores.json").read_text())
        (folder / "scores.json").write_text(json.dumps({**content, **values}))

    return craft


def put_in_place(name, make):
    def craft(folder):
        (folder / name).unlink()
        make(folder / name)

    return craft


def make_sparse(path):
    with path.open("wb") as file:
        file.truncate(1 << 34)


ROW = '{"source": "a", "references": ["b"], "hypothesis": "c", %s}'
TRICKS = {
    "rows that are a pipe": (put_in_place("rows.jsonl", os.mkfifo), "found a pipe"),
    "scores that are a pipe": (put_in_place("scores.json", os.mkfifo), "found a pipe"),
    "rows that are a link": (
        put_in_place("rows.jsonl", lambda path: path.symlink_to("/dev/zero")),
        "it is a link",
    ),
    "scores that are a link": (
        put_in_place("scores.json", lambda path: path.symlink_to("/etc/passwd")),
        "it is a link",
    ),
    "scores that are a folder": (put_in_place("scores.json", os.mkdir), "found a folder"),
    "no rows": (lambda folder: (folder / "rows.jsonl").unlink(), "no such file"),
    "rows of gigabytes": (put_in_place("rows.jsonl", make_sparse), "bytes, more than"),
    "scores of gigabytes": (put_in_place("scores.json", make_sparse), "bytes, more than"),
    "scores of lists": (
        lambda folder: (folder / "scores.json").write_text("[" + "[]," * 2_000_000),
        "lists and objects",
    ),
    "resamples without end": (
        change_scores(settings={"resamples": 10**12}),
        "resamples is no number",
    ),
    "a cut that is none": (change_scores(cut={"separator": [1]}), "cut holds"),
    "settings that are none": (change_scores(settings=[1]), "no object"),
    "a score that is no number": (
        lambda folder: (folder / "rows.jsonl").write_text(ROW % '"score": NaN'),
        "no finite number",
    ),
    "a score beyond the numbers": (
        lambda folder: (folder / "rows.jsonl").write_text(ROW % '"score": 1e999'),
        "no finite number",
    ),
    "half a character": (
        lambda folder: (folder / "rows.jsonl").write_text(ROW % '"file": "\\ud800"'),
        "lone surrogate",
    ),
    "a number of many digits": (
        lambda folder: (folder / "rows.jsonl").write_text(ROW % f'"line": {"9" * 100_000}'),
        "not JSON",
    ),
    "a row nested without end": (
        lambda folder: (folder / "rows.jsonl").write_text("[" * 100_000),
        "not JSON",
    ),
}


@pytest.mark.parametrize("trick", TRICKS)
def test_a_crafted_evaluation_is_refused_soon(trick, tmp_path):
    craft, told = TRICKS[trick]
    write_evaluation(tmp_path / "test", evaluate_rows(rows_of(), SETTINGS))
    craft(tmp_path / "test")
    start_s = time.monotonic()
    with pytest.raises(DataError, match=told):
        read_evaluation(tmp_path / "test")
    assert time.monotonic() - start_s < 5


def test_an_evaluation_that_is_written_again_takes_the_place_of_the_one_before(tmp_path):
    for count in (1, 9):
        write_evaluation(tmp_path / "test", evaluate_rows(rows_of(wrong=count), SETTINGS))
    assert [path.name for path in tmp_path.iterdir()] == ["test"]
    assert read_evaluation(tmp_path / "test")[0] == rows_of(wrong=9)


def test_the_summary_tells_scores_with_intervals_parts_and_confusions():
    evaluation = evaluate_rows(rows_of(), SETTINGS, speed={"rows_per_s": 12.0, "engine": "torch"})
    told = "\n".join(summarize(evaluation.to_dict()))
    low, high = evaluation.scores.to_dict()["intervals"]["exact_match"]
    for part in (f"90.00  [{low:.2f}, {high:.2f}]", "by feature:", "<odd>", "x 'X' -> '!'", "12.0 rows/s (torch)"):  # fmt: skip
        assert part in told
