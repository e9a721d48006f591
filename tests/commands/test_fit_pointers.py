"""A model whose records point into their sources copies words that it has never seen."""

import pickle
import random

import pytest

import dragoman
from conftest import BRIEF, SMALL, make_words, quiet_console
from dragoman import Predictor, fit, read_settings
from dragoman.commands.evaluate import find_run
from dragoman.engines.html_export import find_browser
from dragoman.errors import DragomanError, SettingsError
from dragoman.reporting.sections import choose_samples

WORDS = make_words(400)
UNSEEN = ["Qyx", "zuv17", "WOBB"]


def make_pairs(count):
    chance = random.Random(1)
    for _ in range(count):
        name, city, total = (chance.choice(WORDS) for _ in range(3))
        if chance.random() < 0.5:
            source = f"from {name} in {city} for {total}"
        else:
            source = f"{city}: {total} paid by {name}"
        yield source, f"name: {name} | total: {total} | city: {city}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder, console = tmp_path_factory.mktemp("pointers") / "model", quiet_console()
    words = [*SMALL, "--training.loggers", "none", "--training.patience", "0"]
    settings = read_settings(None, [*words, "--training.valid_every", "100"])
    fit(list(make_pairs(600)), folder, settings, console=console)
    assert "pointers: most values of the records stand in their sources" in console.file.getvalue()
    return folder


@pytest.mark.parametrize("engine", ["ctranslate2", "torch"])
def test_words_that_were_never_seen_are_copied(folder, engine):
    name, total, city = UNSEEN
    model = Predictor.load(folder, engine=engine)
    [[found]] = model.predict_n_best([f"from {name} in {city} for {total}"])
    assert found.text == f"name: {name} | total: {total} | city: {city}"
    assert [span.kind for span in found.spans] == ["exact"] * 3
    assert [(one.field, one.value) for one in found.fields] == [
        ("name", name), ("total", total), ("city", city),
    ]  # fmt: skip
    product = sum(one.score for one in found.fields)
    assert found.score <= product + 1e-4 <= 1e-4  # all tokens but the structure belong to a value
    assert len(found.tokens) < 10


def test_a_value_stands_where_the_model_points_to(folder, tmp_path):
    model, source = Predictor.load(folder), "from abc in abc for abc"
    [[found]] = model.predict_n_best([source])
    assert found.text == "name: abc | total: abc | city: abc"
    spans = pickle.loads(pickle.dumps(found)).spans
    assert spans == found.spans
    assert [(span.field, span.start) for span in spans] == [
        ("name", 5),
        ("total", 20),
        ("city", 12),
    ]
    assert [span.start for span in found.without(found.fields[:1]).spans] == [20, 12]
    dragoman.evaluate(folder, [(source, found.text)], out=tmp_path / "rows")
    rows, _ = find_run(tmp_path / "rows")
    [sample] = choose_samples(rows, form="|")[0]["samples"]
    assert sample["spans"] == rows[0].spans == tuple(spans)


def test_letters_that_only_sources_have_are_not_out_of_reach(tmp_path):
    kinds = [f"--tokenizer.{side}.kind" for side in ("source", "target")]
    words = [*SMALL, *BRIEF, kinds[0], "characters", kinds[1], "characters"]
    settings = read_settings(None, [*words, "--training.loggers", "none"])
    model = fit(list(make_pairs(80)), tmp_path / "m", settings, console=quiet_console())
    assert model.tokenizer.pointers is not None
    target = "name: Ω | total: ab | city: cd"
    pairs = [("from Ω in cd for ab", target), ("from ab in cd for ab", target)]
    found = dragoman.evaluate(tmp_path / "m", pairs).model["out_of_reach"]
    assert found == {"rows": 1, "first": ["pairs[1]: 'Ω'"]}


def test_a_given_target_is_scored_as_pointers(folder):
    model = Predictor.load(folder)
    source = f"from {UNSEEN[0]} in ab for cd"
    right, wrong = model.score(
        [source] * 2, [f"name: {name} | total: cd | city: ab" for name in (UNSEEN[0], "ab")]
    )
    assert right.text == f"name: {UNSEEN[0]} | total: cd | city: ab"
    assert right.score > wrong.score + 1


def test_a_model_that_starts_from_it_points_alike(folder, tmp_path):
    settings = read_settings(
        None,
        ["--training.start_from", str(folder), "--training.max_steps", "1", "--optimization.learning_rate", "1e-6",
         "--evaluation.report", "none", "--training.loggers", "none"],
    )  # fmt: skip
    fit(list(make_pairs(80)), tmp_path / "model", settings, console=quiet_console())
    old, new = (Predictor.load(one).tokenizer for one in (folder, tmp_path / "model"))
    assert new.pointers == old.pointers
    source = f"from {UNSEEN[0]} in ab for cd"
    assert Predictor.load(tmp_path / "model").predict([source]) == Predictor.load(folder).predict(
        [source]
    )


@pytest.mark.parametrize("extra", [[], ["--evaluation.task", "records"]])
def test_records_whose_values_do_not_point_are_spelled(extra, tmp_path):
    rows = [(f"name {word} price 3", "name: red | price: low") for word in WORDS]
    words = [*SMALL, *BRIEF, *extra, "--training.loggers", "none"]
    model = fit(rows, tmp_path / "model", read_settings(None, words), console=quiet_console())
    assert model.tokenizer.pointers is None


def test_a_prefix_points_too_or_is_refused(folder):
    model, source = Predictor.load(folder), f"from {UNSEEN[0]} in ab for cd"
    start = f"name: {UNSEEN[0]} | total: "
    [[found]] = model.predict_n_best([source], prefixes=[start])
    assert found.text == f"name: {UNSEEN[0]} | total: cd | city: ab"
    with pytest.raises(DragomanError, match=r"its prefix is not made of whole fields and words"):
        model.predict_n_best([source], prefixes=["name: Qy"])


def test_constraints_are_refused(folder):
    with pytest.raises(SettingsError, match=r"decoding\.regex.*tokenizer\.pointers false"):
        Predictor.load(folder, {"decoding.regex": "a+"})


@pytest.mark.skipif(find_browser() is None, reason="needs a browser")
def test_a_page_points_alike(folder):
    check = dragoman.export(folder, "html")
    assert check.is_equal
