import json

import pytest

from dragoman.errors import DataError
from dragoman.evaluation.evaluation import (
    TargetTokenization,
    digest_rows,
    evaluate_rows,
    read_evaluation,
    summarize,
    write_evaluation,
)
from dragoman.evaluation.output_rows import Row
from dragoman.settings import EvaluationSettings
from evaluation.scoring import score

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
    assert last["character_error_rate"] == last["word_error_rate"] == 0.0


def test_each_group_of_rows_has_its_scores():
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
            value, low, high = group["exact_match"]
            assert 0 <= low <= value <= high
            assert low < high
            assert group["character_error_rate"][1:] == [None, None]  # 4 rows are wrong


def test_phones_are_compared_whole():
    rows = [Row(source="s", references=("AH B",), hypothesis="AH P")]
    found = evaluate_rows(rows, SETTINGS, TargetTokenization(has_symbols=True))
    assert [(one.expected, one.found) for one in found.confusions] == [("B", "P")]
    assert found.scores.titles["token_error_rate"] == "PER"
    assert found.scores["token_error_rate"] == 50.0


def test_the_digest_depends_on_test_rows_but_not_on_outputs():
    rows = rows_of()
    assert digest_rows(rows) == digest_rows(rows_of(wrong=9))
    assert digest_rows(rows) != digest_rows(rows[:-1])
    assert digest_rows(rows) != digest_rows(rows[::-1])


def test_a_folder_that_is_not_an_evaluation_is_never_replaced(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(DataError, match="exists and is not an evaluation"):
        write_evaluation(tmp_path / "mine", evaluate_rows(rows_of(), SETTINGS))
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "x"


@pytest.mark.parametrize("content", ["", "[]", "[" * 100_000])
def test_an_invalid_file_of_scores_is_named(content, tmp_path):
    write_evaluation(tmp_path / "test", evaluate_rows(rows_of(), SETTINGS))
    (tmp_path / "test" / "scores.json").write_text(content)
    with pytest.raises(DataError, match=r"scores\.json"):
        read_evaluation(tmp_path / "test")


def test_a_missing_file_of_rows_is_named(tmp_path):
    write_evaluation(tmp_path / "test", evaluate_rows(rows_of(), SETTINGS))
    (tmp_path / "test" / "rows.jsonl").unlink()
    with pytest.raises(DataError, match=r"rows\.jsonl: there is no such file"):
        read_evaluation(tmp_path / "test")


def test_writing_an_evaluation_again_replaces_it(tmp_path):
    for count in (1, 9):
        write_evaluation(tmp_path / "test", evaluate_rows(rows_of(wrong=count), SETTINGS))
    assert [path.name for path in tmp_path.iterdir()] == ["test"]
    assert read_evaluation(tmp_path / "test")[0] == rows_of(wrong=9)


def test_the_summary_has_scores_intervals_groups_and_confusions():
    evaluation = evaluate_rows(rows_of(), SETTINGS, speed={"rows_per_s": 12.0, "engine": "torch"})
    lines = "\n".join(summarize(evaluation.to_dict()))
    low, high = evaluation.scores.to_dict()["intervals"]["exact_match"]
    for part in (f"90.00  [{low:.2f}, {high:.2f}]", "by feature:", "<odd>", "x 'X' -> '!'", "12.0 rows/s (torch)"):  # fmt: skip
        assert part in lines
