"""Scores as sums over rows, against sacrebleu and against plain implementations of each."""

import math
from collections import Counter

import numpy as np
import pytest
import sacrebleu
from hypothesis import given
from hypothesis import strategies as st

from dragoman.evaluation.metrics import choose_metrics, find_task
from dragoman.settings import EvaluationSettings

WORDS = st.sampled_from(["a", "b", "cat", "sat", "mat.", "é", "語", "(x)", "1,5"])
LINES = st.lists(WORDS, max_size=8).map(" ".join)
ROWS = st.lists(st.tuples(LINES, st.lists(LINES, min_size=1, max_size=3)), min_size=1, max_size=6)
TEXT = EvaluationSettings(task="text")


def metrics_of(references, **values):
    found = choose_metrics(EvaluationSettings(**{"task": "text", **values}), references)
    return {metric.name: metric for metric in found}


def measure(metric, hypotheses, references):
    return float(metric.from_sums(metric.count_rows(hypotheses, references).sum(axis=0)))


def to_streams(references):
    most = max(map(len, references))
    return [[row[k] if k < len(row) else None for row in references] for k in range(most)]


def count_edits_plainly(one, other):
    """The table of Wagner and Fischer, a cell at a time."""
    table = [[i + j for j in range(len(other) + 1)] for i in range(len(one) + 1)]
    for i, left in enumerate(one, start=1):
        for j, right in enumerate(other, start=1):
            table[i][j] = min(
                table[i - 1][j] + 1, table[i][j - 1] + 1, table[i - 1][j - 1] + (left != right)
            )
    return table[-1][-1]


def find_rate_plainly(hypotheses, references, cut):
    edits = length = 0
    for hypothesis, row in zip(hypotheses, references, strict=True):
        found = sorted((count_edits_plainly(cut(hypothesis), cut(r)), len(cut(r))) for r in row)
        edits, length = edits + found[0][0], length + found[0][1]
    return 100 * edits / max(1, length)


def ngrams(items, n):
    return Counter(tuple(items[i : i + n]) for i in range(len(items) - n + 1))


def find_bleu_plainly(hypotheses, references):
    """Of one reference each, by white space, with smoothing "exp"."""
    match, total = [0] * 4, [0] * 4
    for hypothesis, reference in zip(hypotheses, references, strict=True):
        for n in range(4):
            found = ngrams(hypothesis.split(), n + 1)
            match[n] += (found & ngrams(reference.split(), n + 1)).total()
            total[n] += found.total()
    if not any(match) or not all(total):
        return 0.0
    product, halvings = 1.0, 0
    for hits, all_of_them in zip(match, total, strict=True):
        halvings += hits == 0
        product *= (hits or 0.5**halvings) / all_of_them
    lengths = [sum(len(text.split()) for text in side) for side in (hypotheses, references)]
    return 100 * product**0.25 * min(1.0, math.exp(1 - lengths[1] / lengths[0]))


def find_chrf_plainly(hypotheses, references):
    """Of one reference each."""
    precisions, recalls = [], []
    for n in range(1, 7):
        match = output = wanted = 0
        for hypothesis, reference in zip(hypotheses, references, strict=True):
            found, known = (ngrams("".join(text.split()), n) for text in (hypothesis, reference))
            wanted += known.total()
            output += found.total() if known else 0  # sacrebleu's rule for short references
            match += (found & known).total()
        if output and wanted:
            precisions.append(match / output)
            recalls.append(match / wanted)
    if not sum(precisions):
        return 0.0
    precision, recall = sum(precisions) / len(precisions), sum(recalls) / len(recalls)
    return 100 * 5 * precision * recall / (4 * precision + recall)


@given(rows=ROWS)
def test_error_rates_agree_with_a_plain_table_of_edits(rows):
    hypotheses, references = zip(*rows, strict=True)
    found = metrics_of(references)
    for name, cut in (("word_error_rate", str.split), ("character_error_rate", list)):
        expected = find_rate_plainly(hypotheses, references, cut)
        assert measure(found[name], hypotheses, references) == pytest.approx(expected, rel=1e-12)


@given(rows=ROWS)
def test_bleu_chrf_and_ter_are_sacrebleus_to_the_last_digit(rows):
    hypotheses, references = zip(*rows, strict=True)
    found, streams = metrics_of(references), to_streams(references)
    known = {"bleu": sacrebleu.BLEU(force=True), "chrf": sacrebleu.CHRF(), "ter": sacrebleu.TER()}
    for name, metric in known.items():
        expected = metric.corpus_score(hypotheses, streams).score
        assert measure(found[name], hypotheses, references) == expected, name
        assert found[name].signature == str(metric.get_signature())


@pytest.mark.parametrize("tokenizer", ["13a", "intl", "char", "zh", "none"])
def test_bleu_uses_the_tokenizer_of_the_settings(tokenizer):
    hypotheses = ["The dog bit the man, 3.5 times!", "我 喜欢 狗。 ok"]
    references = [["The dog bit a man, 3.5 times!"], ["我喜欢狗。 ok"]]
    bleu = sacrebleu.BLEU(tokenize=tokenizer, force=True)
    expected = bleu.corpus_score(hypotheses, to_streams(references)).score
    found = metrics_of(references, bleu_tokenizer=tokenizer)["bleu"]
    assert measure(found, hypotheses, references) == expected
    assert f"tok:{tokenizer}|" in found.signature


def test_bleu_by_characters_is_given_for_text_without_spaces():
    references = [["今天天气很好"]]
    assert "bleu" not in metrics_of(references, task="auto")
    for tokenizer in ("char", "zh"):
        assert "bleu" in metrics_of(references, task="auto", bleu_tokenizer=tokenizer)


@given(rows=st.lists(st.tuples(LINES, LINES), min_size=1, max_size=6))
def test_bleu_and_chrf_agree_with_plain_implementations(rows):
    hypotheses, texts = zip(*rows, strict=True)
    references = [[text] for text in texts]
    found = metrics_of(references, bleu_tokenizer="none")
    for name, plain in (("bleu", find_bleu_plainly), ("chrf", find_chrf_plainly)):
        assert measure(found[name], hypotheses, references) == pytest.approx(
            plain(hypotheses, texts), rel=1e-9, abs=1e-9
        )


@given(rows=ROWS, seed=st.integers(0, 1000))
def test_many_sums_at_once_give_what_sacrebleu_gives_one_by_one(rows, seed):
    hypotheses, references = zip(*rows, strict=True)
    found, streams = metrics_of(references), to_streams(references)
    drawn = np.random.default_rng(seed).integers(0, len(rows), size=(2, 3, len(rows)))
    known = {"bleu": sacrebleu.BLEU(force=True), "chrf": sacrebleu.CHRF(), "ter": sacrebleu.TER()}
    for name, metric in known.items():
        # What its own significance test does.
        rows_of_it = metric._extract_corpus_statistics(hypotheses, streams)
        expected = [
            [metric._aggregate_and_compute([rows_of_it[i] for i in one]).score for one in several]
            for several in drawn
        ]
        sums = found[name].count_rows(hypotheses, references)[drawn].sum(axis=2)
        assert np.allclose(found[name].from_sums(sums), expected, rtol=1e-12, atol=0), name


@given(rows=ROWS, cut=st.integers(0, 6))
def test_rows_are_counted_one_by_one(rows, cut):
    hypotheses, references = zip(*rows, strict=True)
    for metric in metrics_of(references).values():
        whole = metric.count_rows(hypotheses, references)
        parts = [
            metric.count_rows(hypotheses[part], references[part])
            for part in (slice(cut), slice(cut, None))
            if hypotheses[part]
        ]
        assert np.array_equal(whole, np.concatenate(parts)), metric.name


def test_each_task_has_its_scores_by_their_names_its_own_first():
    phones = choose_metrics(EvaluationSettings(), [["w ah n"]], has_symbols=True)
    assert [(metric.name, metric.title) for metric in phones] == [
        ("token_error_rate", "PER"),
        ("word_error_rate", "WER"),
        ("exact_match", "exact match"),
    ]
    text = choose_metrics(EvaluationSettings(), [["a dog with ears"]])
    assert [metric.title for metric in text] == ["chrF", "BLEU", "TER", "CER", "WER", "exact match"]
    # Of words; that of the tokenizer's tokens, a curve of the training, is another score.
    assert [metric.name for metric in text][4] == "word_error_rate"
    strings = choose_metrics(EvaluationSettings(), [["2024-10-03"]])
    assert [metric.title for metric in strings] == ["exact match", "WER", "CER", "chrF"]
    references = [['{"total": 1, "name": "x"}'], ['{"total": 2}']]
    names = [metric.name for metric in choose_metrics(EvaluationSettings(), references)]
    assert names[:5] == ["record_match", "parsed", "field_f1", "field_precision", "field_recall"]
    assert {"field_f1.total", "field_recall.name", "exact_match", "character_error_rate"} < {*names}


def test_a_task_that_is_set_is_not_guessed():
    records = [["a: 1; b: 2"]]
    assert find_task(EvaluationSettings(), records, has_symbols=True) == "records"
    assert find_task(EvaluationSettings(task="phones"), records) == "phones"
    assert find_task(EvaluationSettings(task="text"), [["w ah"]], has_symbols=True) == "text"


def test_the_word_error_rate_of_phones_is_the_fraction_of_rows_not_exact():
    references = [["w ah n"], ["t uw", "t ah"], ["f ay v"]]
    found = metrics_of(references, task="phones")
    hypotheses = ["w ah n", "t ah", "f ay"]
    assert measure(found["word_error_rate"], hypotheses, references) == pytest.approx(100 / 3)
    assert measure(found["token_error_rate"], hypotheses, references) == pytest.approx(100 / 8)


def test_a_long_corpus_without_matches_scores_0():
    references = [["a b c d"]] * 3
    found = metrics_of(references)
    for name in ("bleu", "chrf"):
        assert measure(found[name], ["x y z v"] * 3, references) == 0


def test_words_and_short_phrases_have_neither_bleu_nor_ter_unless_asked_for():
    for references, task, expected in (
        ([["one two three"]], "auto", False),
        ([["one two three"], ["one two three four"]], "auto", True),
        ([["one"]], "text", True),
    ):
        names = metrics_of(references, task=task)
        assert "chrf" in names
        assert ("bleu" in names) is ("ter" in names) is expected
