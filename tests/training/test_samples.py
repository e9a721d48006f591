import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.loggers import Logger

from conftest import BRIEF, SMALL, make_words, quiet_console
from dragoman import read_settings
from dragoman.commands.fit import fit
from dragoman.reading.pairs import Pair
from dragoman.settings import SideSettings, TokenizerSettings
from dragoman.tokenizers.pair_tokenizer import PairTokenizer
from dragoman.training.callbacks import NUM_SAMPLES, _log_text, choose_spread
from dragoman.training.validation_metrics import DecodedRow, Texts


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """Samples of a run over words of many lengths, each with a tag."""
    folder = tmp_path_factory.mktemp("samples")
    words = make_words(300)
    rows = [(f"<x> {w * (1 + i % 5)}", (w * (1 + i % 5)).upper()) for i, w in enumerate(words)]
    (folder / "pairs.tsv").write_text("".join(f"{s}\t{t}\n" for s, t in rows))
    settings = read_settings(None, [*SMALL, *BRIEF, "--training.valid_every", "1"])
    fit(folder / "pairs.tsv", folder / "model", settings, console=quiet_console())
    lines = (folder / "model.training" / "samples.jsonl").read_text().splitlines()
    return dict(rows), [json.loads(line) for line in lines]


def test_samples_are_the_same_rows_at_each_validation(samples):
    pairs, lines = samples
    assert [line["step"] for line in lines] == [s for s in (1, 2, 3) for _ in range(NUM_SAMPLES)]
    of_step = [[line["source"] for line in lines if line["step"] == step] for step in (1, 2, 3)]
    assert of_step[0] == of_step[1] == of_step[2]
    assert all(pairs[line["source"]] == line["reference"] for line in lines)
    assert all(isinstance(line["prediction"], str) for line in lines)


def test_samples_are_spread_over_the_lengths(samples):
    _, lines = samples
    lengths = [len(line["source"]) for line in lines[:NUM_SAMPLES]]
    assert lengths == sorted(lengths)
    assert lengths[0] <= 10
    assert lengths[-1] >= 24


@given(lengths=st.lists(st.integers(1, 50), max_size=40), count=st.integers(1, 12))
def test_samples_include_the_shortest_and_the_longest_source(lengths, count):
    rows = [DecodedRow([4] * length, [], (), True) for length in lengths]
    chosen = [len(row.source) for row in choose_spread(rows, count)]
    assert len(chosen) == min(count, len(rows))
    assert chosen == sorted(chosen)
    if len(chosen) > 1:
        assert (chosen[0], chosen[-1]) == (min(lengths), max(lengths))


@pytest.mark.parametrize(
    ("kind", "known", "new", "told"),
    [("symbols", "A B C", "A X X C", "A � � C"), ("characters", "abc", "axbyy", "a�b��")],
)
def test_an_unknown_token_of_a_reference_is_marked(kind, known, new, told):
    side = SideSettings(kind=kind)
    pairs = [Pair(known, known, ("t=<V>",), 1, "x")]
    tokenizer = PairTokenizer.train(pairs, TokenizerSettings(source=side, target=side))
    texts = Texts(tokenizer)
    ids = tokenizer.target.encode(new)
    assert texts.read_reference(ids) == told
    assert texts.read_output(ids) == tokenizer.decode_target(ids)
    [source] = tokenizer.encode_sources([new], [("t=<V>",)])
    assert texts.read_source(source[:-1]) == f"t=<V> {told}"


class TableLogger(Logger):
    """A logger that takes tables, as Lightning's for Wandb does."""

    name, version = "tables", 0

    def __init__(self):
        super().__init__()
        self.tables = []

    def log_metrics(self, metrics, step=None):
        raise AssertionError

    def log_hyperparams(self, params):
        raise AssertionError

    def log_text(self, key, columns=None, data=None, dataframe=None, step=None):
        self.tables.append((key, columns, data, step))


def test_a_table_logger_gets_a_table():
    logger = TableLogger()
    _log_text(logger, [{"source": "a", "prediction": "b"}], 7)
    assert logger.tables == [("samples", ["source", "prediction"], [["a", "b"]], 7)]
