import io
import json
import random
import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from lightning.pytorch.loggers import Logger
from rich.console import Console
from rich.text import Text

from conftest import BRIEF, SMALL, make_words, quiet_console, write_pairs
from dragoman import read_settings
from dragoman.commands.fit import fit
from dragoman.reading.pairs import Pair
from dragoman.settings import Settings, SideSettings, TokenizerSettings
from dragoman.tokenizers.tokenizer import PairTokenizer
from dragoman.training import callbacks, run_context
from dragoman.training.callbacks import (
    NUM_SAMPLES,
    CollapseWarning,
    _log_text,
    choose_spread,
    describe_collapse,
)
from dragoman.training.logs import read_curves
from dragoman.training.module import learning_rate_factor
from dragoman.training.validation_metrics import DecodedRow, Texts


def run(tmp_path, *words, console=None, pairs=200):
    """Train to write words in capitals; return the output and the curves."""
    console = console or quiet_console()
    settings = read_settings(None, [*SMALL, *BRIEF, *words])
    write_pairs(tmp_path / "pairs.tsv", pairs)
    fit(tmp_path / "pairs.tsv", tmp_path / "model", settings, console=console)
    return console.file.getvalue(), read_curves(tmp_path / "model.training")


def test_the_log_has_all_curves_at_their_steps(tmp_path):
    words = ["--training.max_steps", "7", "--training.valid_every", "2"]
    _, curves = run(tmp_path, *words, "--optimization.warmup_steps", "4")
    every, validated = list(range(1, 8)), [2, 4, 6, 7]
    for name in ("update_loss", "learning_rate", "tokens_per_s"):
        assert [step for step, _ in curves[name]] == every, name
    for name in ("loss", "perplexity", "token_accuracy", "exact_match", "token_error_rate"):
        assert [step for step, _ in curves[f"valid_{name}"]] == validated, name
    assert "valid_character_error_rate" in curves
    assert all(speed > 0.0 for _, speed in curves["tokens_per_s"])
    settings = read_settings(tmp_path / "model" / "config.yaml").optimization
    for step, rate in curves["learning_rate"]:
        factor = learning_rate_factor(step, settings, 7)
        assert rate == pytest.approx(settings.learning_rate * factor, rel=1e-5)


@pytest.mark.parametrize("accumulate", ["1", "3"])
def test_the_loss_of_a_step_is_over_its_own_tokens(tmp_path, accumulate):
    """Across the ends of epochs: with few pairs, an epoch has a step or two."""
    words = ["--training.valid_every", "1", "--training.max_steps", "5"]
    _, curves = run(tmp_path, *words, "--training.accumulate", accumulate, pairs=60)
    assert dict(curves["update_loss"]).keys() == {1, 2, 3, 4, 5}
    if accumulate == "1":
        for step, loss in curves["train_loss"]:
            assert dict(curves["update_loss"])[step] == pytest.approx(loss, rel=1e-5)


def test_steps_and_validations_are_whole_where_an_epoch_has_few_batches(tmp_path):
    words = ["--training.valid_every", "2", "--training.max_steps", "6"]
    _, curves = run(tmp_path, *words, "--training.accumulate", "8", pairs=60)
    assert [step for step, _ in curves["valid_loss"]] == [2, 4, 6]


@pytest.mark.parametrize("width", [80, 200])
def test_the_bar_has_a_label_and_whole_numbers_and_scores_stay_above_it(tmp_path, width):
    console = Console(file=io.StringIO(), width=width, force_terminal=True, legacy_windows=False)
    words = ["--training.valid_every", "1", "--training.monitor", "token_error_rate"]
    output, _ = run(tmp_path, *words, "--training.max_steps", "4", console=console)
    lines = Text.from_ansi(output).plain.splitlines()
    last = [line for line in lines if "4/4" in line][-1]
    figures = r"training .*━ 4/4 +loss \d+\.\d{3}  [\d,]+ tokens/s +0:00:00 left"
    assert re.search(figures, last), last
    assert "…" not in last
    for step in range(1, 5):
        assert any(line.startswith(f"step {step}: train_loss") for line in lines), step


def test_a_run_without_a_limit_says_once_how_long_it_takes(tmp_path, monkeypatch):
    monkeypatch.setattr(callbacks, "_BRIEF_S", 0.0)
    monkeypatch.setattr(callbacks, "_COLD_STEPS", 1)
    monkeypatch.setattr(callbacks, "_TIMED_STEPS", 2)
    output, _ = run(tmp_path, "--training.accumulate", "2")
    assert output.count("about 0 minutes for 3 steps, and the validations; --max-time plans") == 1
    (tmp_path / "limited").mkdir()
    output, _ = run(tmp_path / "limited", "--training.max_minutes", "9")
    assert "about" not in output


def test_without_a_terminal_a_line_comes_at_least_every_so_often(tmp_path, monkeypatch):
    monkeypatch.setattr(callbacks, "LINE_EVERY_S", 0.0)
    monkeypatch.setattr(run_context, "LINE_EVERY_S", 0.001)
    output, _ = run(tmp_path)
    assert re.search(r"\nstep 2 of 3: loss [\d.]+  [\d,]+ tokens/s  0:00:\d\d left\n", output)
    assert "\nvalidating after step 3\n" in output
    for phase in ("reading pairs", "making tokens", "scoring", "comparing", "writing"):
        assert re.search(rf"\n?{phase}.*: 0:00:0\d so far\n", output), phase


def test_the_best_score_is_printed_with_its_step(tmp_path):
    words = ["--training.valid_every", "1", "--training.max_steps", "6"]
    for monitor, better in (("loss", min), ("exact_match", max)):
        (tmp_path / monitor).mkdir()
        output, curves = run(tmp_path / monitor, *words, "--training.monitor", monitor)
        last = next(line for line in output.splitlines() if line.startswith("step 6:"))
        best = better(score for _, score in curves[f"valid_{monitor}"])
        at = next(step for step, score in curves[f"valid_{monitor}"] if score == best)
        assert ("the best so far" if at == 6 else f"best {best:.4g} at {at}") in last


def test_equal_outputs_at_the_end_are_reported_with_usual_causes(tmp_path):
    words = ["--data.valid_fraction", "0.3", "--optimization.learning_rate", "1e-9"]
    output, _ = run(tmp_path, *words)
    assert output.count("warning: step 3: ") == 1
    assert "for example: '" in output
    assert output.count("usual causes: too high a learning rate") == 1
    assert "optimization.learning_rate 1e-09, try 3.3e-10" in output


def test_a_run_that_learns_prints_no_warning(trained):
    output = trained[0].with_name("console.txt").read_text()
    assert "step 250:" in output
    assert "warning" not in output


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


@given(lengths=st.lists(st.integers(1, 50), max_size=40))
def test_samples_include_the_shortest_and_the_longest_source(lengths):
    rows = [DecodedRow([4] * length, [], (), True) for length in lengths]
    chosen = [len(row.source) for row in choose_spread(rows)]
    assert len(chosen) == min(NUM_SAMPLES, len(rows))
    assert chosen == sorted(chosen)
    if len(chosen) > 1:
        assert (chosen[0], chosen[-1]) == (min(lengths), max(lengths))


@pytest.mark.parametrize(
    ("kind", "known", "new", "output"),
    [("symbols", "A B C", "A X X C", "A � � C"), ("characters", "abc", "axbyy", "a�b��")],
)
def test_an_unknown_token_of_a_reference_is_marked(kind, known, new, output):
    side = SideSettings(kind=kind)
    pairs = [Pair(known, known, ("t=<V>",), 1, "x")]
    tokenizer = PairTokenizer.train(pairs, TokenizerSettings(source=side, target=side))
    texts = Texts(tokenizer)
    ids = tokenizer.target.encode(new)
    assert texts.read_reference(ids) == output
    assert texts.read_output(ids) == tokenizer.decode_target(ids)
    [source] = tokenizer.encode_sources([new], [("t=<V>",)])
    assert texts.read_source(source[:-1]) == f"t=<V> {output}"


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


NUM_ROWS = 60


def make_rows(write, *, refer=None, seed=0, is_complete=True):
    """Rows with random sources; `refer` gives their references, `write` the outputs."""
    chance, rows = random.Random(seed), []
    for _ in range(NUM_ROWS):
        source = [chance.randint(4, 30) for _ in range(chance.randint(3, 9))]
        reference = refer(source) if refer else [id_ + 1 for id_ in source]
        rows.append(DecodedRow(source, reference, tuple(write(source, reference)), is_complete))
    return rows


def make_warning(patient_until):
    values = {"optimization": {"warmup_steps": 0}, "training": {"max_steps": 10 * patient_until}}
    return CollapseWarning(quiet_console(), Settings.model_validate(values), None)


COLLAPSED = {
    "all alike": lambda source, reference: [7, 8, 9],
    "a few": lambda source, reference: [[7, 8, 9], [8, 9, 7], [9, 8]][len(source) % 3],
    "one for most": lambda source, reference: reference if source[0] < 12 else [5, 6],
    "empty": lambda source, reference: reference if source[0] < 12 else [],
    "one token over and over": lambda source, reference: [source[0]] * 12,
}
HEALTHY = describe_collapse(make_rows(lambda source, reference: reference))
ALIKE = describe_collapse(make_rows(COLLAPSED["all alike"]))


@pytest.mark.parametrize("write", COLLAPSED.values(), ids=COLLAPSED)
def test_a_planted_collapse_is_reported_once(write):
    warning, fault = make_warning(1000), describe_collapse(make_rows(write))
    assert not any(warning.see(HEALTHY, step) for step in (500, 1000, 1500))
    assert warning.see(fault, 2000)
    assert not any(warning.see(fault, step) for step in (2500, 3000))
    assert not warning.see(HEALTHY, 3500)
    assert not warning.see(fault, 4000)
    assert not warning.see(fault, 4000, is_last=True)


def test_outputs_that_never_end_are_reported_unless_their_references_are_as_long():
    long = make_rows(lambda source, reference: [*source * 9][:40], is_complete=False)
    assert "truncated, far longer" in describe_collapse(long)
    truncated = make_rows(
        lambda source, reference: reference[:40],
        refer=lambda source: source * 20,
        is_complete=False,
    )
    assert describe_collapse(truncated) == ""


def test_the_numbers_are_those_of_the_rows():
    rows = make_rows(lambda source, reference: [7, 8] if source[0] < 21 else reference)
    same = sum(row.hypothesis == (7, 8) for row in rows)
    fault = describe_collapse(rows)
    assert fault.startswith(f"{same / NUM_ROWS:.0%} of the outputs are the same")
    assert f"({NUM_ROWS - same + 1} different outputs of {NUM_ROWS} rows, {NUM_ROWS} diff" in fault


def test_an_untrained_model_is_given_time_to_improve():
    warning = make_warning(1000)
    assert [warning.see(ALIKE, step) for step in range(250, 2000, 250)].index(True) == 3
    assert make_warning(1000).see(ALIKE, 250, is_last=True)


def test_random_outputs_of_an_untrained_model_do_not_count_as_sound():
    warning = make_warning(1000)
    assert not warning.see(HEALTHY, 100)
    assert not warning.see(ALIKE, 200)


@given(seed=st.integers(0, 1000), wrong=st.floats(0.0, 1.0))
def test_outputs_that_differ_are_no_collapse_however_wrong_they_are(seed, wrong):
    chance = random.Random(seed)

    def write(source, reference):
        if chance.random() < 0.1:
            return [5, 6, 7]  # some are alike in any run
        return [id_ if chance.random() > wrong else chance.randint(4, 30) for id_ in reference]

    assert describe_collapse(make_rows(write, seed=seed)) == ""


@given(
    target=st.lists(st.integers(4, 9), max_size=12),
    share=st.floats(0.9, 1.0),
    seed=st.integers(0, 99),
)
def test_data_whose_references_are_alike_are_no_collapse(target, share, seed):
    """Whatever the one target is: empty, one repeated token, or text."""
    chance = random.Random(seed)

    def refer(source):
        return target if chance.random() < share else list(source)

    rows = make_rows(lambda source, reference: target, refer=refer, seed=seed)
    assume(sum(row.reference == target for row in rows) > 0.9 * NUM_ROWS)
    assert describe_collapse(rows) == ""


def test_one_source_with_many_references_is_no_collapse():
    rows = [DecodedRow([5, 6], [i, i + 1], (4, 5), True) for i in range(NUM_ROWS)]
    assert describe_collapse(rows) == ""


def test_fewer_than_sixteen_rows_are_not_judged():
    assert describe_collapse(make_rows(COLLAPSED["all alike"])[:8]) == ""
    assert describe_collapse([]) == ""
