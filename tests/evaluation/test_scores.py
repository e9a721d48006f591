"""Scores against hand-computed examples, sacrebleu itself, and what must hold of any rows."""

import json
import logging
import random
import subprocess
import sys

import pytest
import sacrebleu
from hypothesis import given
from hypothesis import strategies as st

from dragoman.evaluation.evaluation import Scores, collect_statistics
from dragoman.evaluation.metrics import choose_metrics
from dragoman.settings import EvaluationSettings
from evaluation.scoring import score

LINES = st.text(alphabet="ab é語", max_size=12)
ROWS = st.lists(st.tuples(LINES, st.lists(LINES, min_size=1, max_size=3)), min_size=1, max_size=6)


def score_rows(rows, separator: str = " ") -> Scores:
    hypotheses, references = zip(*rows, strict=True)
    return score(hypotheses, references, separator)


def test_rates_divide_summed_edits_by_summed_lengths():
    # "w ah n" -> "w ah n d": 1 of 4 phones; "t uw" -> "t uw": 0 of 2. Not the mean of 1/4 and 0/2.
    scores = score(["w ah n", "t uw"], [["w ah n d"], ["t uw"]])
    assert scores.rows == 2
    assert scores.exact_match == 50.0
    assert scores["word_error_rate"] == pytest.approx(100 * 1 / 6)
    assert scores["character_error_rate"] == pytest.approx(100 * 2 / 12)


def test_the_closest_reference_counts():
    # To "t ah m ey t ow" 1 edit of 6, to "t ah m aa t ow z" 3 edits of 7.
    references = [["t ah m aa t ow z", "t ah m ey t ow"]]
    assert score(["t ah m ey t aa"], references)["word_error_rate"] == pytest.approx(100 * 1 / 6)


def test_the_shorter_of_equally_close_references_counts():
    # 1 edit each to "a b" (a deletion) and to "a b c d" (an insertion).
    for references in (["a b", "a b c d"], ["a b c d", "a b"]):
        assert score(["a b c"], [references])["word_error_rate"] == pytest.approx(100 * 1 / 2)


def test_the_closest_reference_is_chosen_separately_for_tokens_and_characters():
    # Tokens: 1 edit to "xyz b", 2 to "aa bb". Characters: 2 edits of 5 to "aa bb".
    scores = score(["a b"], [["xyz b", "aa bb"]])
    assert scores["word_error_rate"] == pytest.approx(100 * 1 / 2)
    assert scores["character_error_rate"] == pytest.approx(100 * 2 / 5)


def test_an_empty_hypothesis_is_all_deletions():
    scores = score([""], [["a b"]])
    assert (scores.exact_match, scores["word_error_rate"], scores["character_error_rate"]) == (
        0,
        100,
        100,
    )
    assert scores["bleu"] == scores["chrf"] == 0


def test_rates_may_pass_100():
    assert score(["b c d"], [["a"]])["word_error_rate"] == 300


def test_the_separator_splits_tokens():
    assert score(["a|b c|d"], [["a|x|d"]], separator="|")["word_error_rate"] == pytest.approx(
        100 / 3
    )


def test_doubled_and_outer_separators_make_no_tokens():
    assert score([" a  b "], [["a b"]])["word_error_rate"] == 0


def test_an_empty_separator_means_white_space():
    assert score(["a\tb  c"], [["a b c"]], separator="")["word_error_rate"] == 0


def test_bleu_and_chrf_equal_sacrebleus():
    hypotheses = ["The dog bit the man.", "It was not unexpected .", "The man bit him first."]
    first = ["The dog bit the man.", "It was not unexpected.", "The man bit him first."]
    second = ["The dog had bit the man.", "No one was surprised.", "The man had bitten the dog."]
    scores = score(hypotheses, list(zip(first, second, strict=True)))
    assert scores["bleu"] == sacrebleu.corpus_bleu(hypotheses, [first, second], force=True).score
    assert scores["chrf"] == sacrebleu.corpus_chrf(hypotheses, [first, second]).score
    assert scores.signatures["bleu"].startswith("nrefs:2|case:mixed|eff:no|tok:13a|smooth:exp|")
    assert scores.signatures["chrf"].startswith("nrefs:2|case:mixed|eff:yes|nc:6|nw:0|space:no|")


def test_a_row_with_fewer_references_has_no_empty_one():
    hypotheses = ["the cat sat on the mat", "a"]
    scores = score(hypotheses, [["the cat sat on a mat"], ["b c d", "a b"]])
    streams = [["the cat sat on a mat", "b c d"], [None, "a b"]]
    bleu = sacrebleu.BLEU(force=True)
    assert scores["bleu"] == bleu.corpus_score(hypotheses, streams).score
    assert scores.signatures["bleu"] == str(bleu.get_signature())
    assert "nrefs:var" in scores.signatures["bleu"]
    assert scores["chrf"] == sacrebleu.CHRF().corpus_score(hypotheses, streams).score


def test_bleu_is_zero_where_no_hypothesis_has_four_words():
    scores = score(["went", "gone away"], [["went"], ["gone away"]])
    assert (scores.exact_match, scores["bleu"]) == (100, 0)
    assert scores["chrf"] == pytest.approx(100)


def test_text_that_looks_tokenized_is_scored_without_a_warning(caplog, capfd):
    with caplog.at_level(logging.DEBUG):
        score(["a b c ."] * 200, [["a b c ."]] * 200)
    assert not caplog.records
    assert capfd.readouterr() == ("", "")


@given(rows=ROWS)
def test_a_reference_scores_perfectly_against_its_row(rows):
    scores = score_rows([(references[-1], references) for _, references in rows])
    assert scores.exact_match == 100
    assert scores["word_error_rate"] == scores["character_error_rate"] == 0


@given(lines=st.lists(LINES.map(lambda line: f"one two three four {line}"), min_size=1, max_size=5))
def test_bleu_and_chrf_of_the_reference_are_100(lines):
    scores = score(lines, [[line] for line in lines])
    assert scores["bleu"] == pytest.approx(100)
    assert scores["chrf"] == pytest.approx(100)


@given(rows=ROWS, seed=st.integers(0, 1000))
def test_the_order_of_rows_changes_no_score(rows, seed):
    mixed = random.Random(seed).sample(rows, len(rows))
    expected, found = score_rows(rows).to_dict(), score_rows(mixed).to_dict()
    del expected["intervals"], found["intervals"]  # which rows are drawn depends on their order
    for name, value in expected.items():
        assert found[name] == (pytest.approx(value) if isinstance(value, float) else value)


@given(rows=ROWS, seed=st.integers(0, 1000))
def test_the_order_of_references_changes_no_score_but_chrf(rows, seed):
    generator = random.Random(seed)
    mixed = [(h, generator.sample(references, len(references))) for h, references in rows]
    expected, found = score_rows(rows).to_dict(), score_rows(mixed).to_dict()
    # Of references that fit equally well sacrebleu's chrF takes the first, whatever its length.
    for values in (expected, found):
        del values["chrf"], values["intervals"]["chrf"]
    assert found.pop("ter") == pytest.approx(expected.pop("ter"))
    assert found["intervals"].pop("ter") == pytest.approx(expected["intervals"].pop("ter"))
    assert found == expected


@given(rows=ROWS)
def test_rates_are_in_their_ranges(rows):
    scores = score_rows(rows)
    assert scores["word_error_rate"] >= 0
    assert scores["character_error_rate"] >= 0
    assert 0 <= scores.exact_match <= 100
    assert 0 <= scores["bleu"] <= 100 + 1e-9
    assert 0 <= scores["chrf"] <= 100 + 1e-9


@given(rows=ROWS)
def test_exact_match_agrees_with_a_count(rows):
    count = 0
    for hypothesis, references in rows:
        for reference in references:
            if hypothesis == reference:
                count += 1
                break
    assert score_rows(rows).exact_match == pytest.approx(100 * count / len(rows))


@given(rows=ROWS)
def test_another_reference_never_adds_edits(rows):
    """Adding the hypothesis itself as a reference of each row leaves no edit."""
    scores = score_rows([(hypothesis, [*refs, hypothesis]) for hypothesis, refs in rows])
    assert scores.exact_match == 100
    assert scores["character_error_rate"] == 0


def test_to_dict_gives_plain_values_by_name():
    hypotheses = ["a b c d", "e"] * 10
    values = score(hypotheses, [["a b c d"], ["f"]] * 10).to_dict()
    names = ("exact_match", "word_error_rate", "character_error_rate", "bleu", "chrf", "ter")
    assert values.keys() == {
        "rows", *names, "bleu_signature", "chrf_signature", "ter_signature", "intervals", "titles",
            "is_higher_better", "tiles",
    }  # fmt: skip
    assert json.loads(json.dumps(values)) == values
    assert values["titles"]["word_error_rate"] == "WER"
    assert values["intervals"].keys() == values["titles"].keys() == {*names}
    for name, (low, high) in values["intervals"].items():
        assert low <= values[name] <= high
    assert {type(values[name]) for name in names} == {float}


def test_a_score_without_an_interval_has_none_in_its_place():
    intervals = score(["a b c d", "e"], [["a b c d"], ["f"]]).to_dict()["intervals"]
    assert intervals["chrf"] is None
    assert len(intervals["exact_match"]) == 2


def test_settings_choose_the_scores():
    phones = score(["w ah n"], [["w ah n"]], settings=EvaluationSettings(), has_symbols=True)
    assert phones.to_dict()["titles"] == {
        "exact_match": "exact match", "token_error_rate": "PER", "word_error_rate": "WER"
    }  # fmt: skip
    records = score(["a: 1; b: 2"], [["a: 1; b: 3"]], settings=EvaluationSettings())
    assert records["field_f1"] == 50
    assert "field_f1.b" in records.intervals
    assert "bleu" not in records.intervals


def test_single_rows_have_the_same_statistics_as_their_sum():
    hypotheses, references = ["a b", "c d e"], [["a b"], ["c x e"]]
    metrics = choose_metrics(EvaluationSettings(task="text"), references)
    statistics = collect_statistics(metrics, hypotheses, references)
    for metric in metrics:
        assert float(metric.from_sums(statistics[metric.name])[1]) == pytest.approx(
            score(hypotheses[1:], references[1:])[metric.name]
        )


def test_scoring_loads_neither_torch_nor_lightning():
    code = (
        "import sys; from dragoman.evaluation.evaluation import evaluate_rows;"
        "from dragoman.evaluation.output_rows import Row;"
        "from dragoman.settings import EvaluationSettings;"
        "rows = [Row(source='a', references=('a',), hypothesis='a')];"
        "evaluate_rows(rows, EvaluationSettings(task='text'));"
        "sys.exit(any(name in sys.modules for name in ('torch', 'lightning')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
